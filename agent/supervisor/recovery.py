"""An earlier agent died in an apply: go forward when the gateway has switched, else take all back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from agent.errors import FleetError
from agent.journal import Journal
from agent.planner.file import plan_from_toml
from agent.supervisor.clean_up import commit_everywhere, is_switched, retire_old, undo
from agent.supervisor.deployment import ControllerState, PendingApply
from agent.supervisor.reach import Reach

log = logging.getLogger(__name__)

RETRY_S = 2.0


class Recovery:
    """Of one interrupted apply. An apply that comes meanwhile waits for `is_over`."""

    def __init__(
        self,
        pending: PendingApply,
        *,
        host: str,
        reach: Reach,
        state: ControllerState,
        journal: Journal,
        watch: Callable[[str], None],
    ) -> None:
        self.pending = pending
        self._host = host
        self._reach = reach
        self._state = state
        self._journal = journal
        self._watch = watch
        self.is_over = asyncio.Event()
        self.went_forward = False
        self.trouble = ""
        """Why it waits."""

    async def run(self) -> None:
        """Until done. While the gateway's host is silent, neither way is known to be right, and it waits."""
        pending, name = self.pending, self.pending.deployment
        self._reach.learn(pending.members)
        self.went_forward = await self._must_go_forward()
        if self.went_forward:
            plan = plan_from_toml(pending.after_switch.plan_toml, file="plan.toml")
            self._state.put(name, pending.after_switch)
            self._watch(name)
            await commit_everywhere(self._reach, plan, pending.after_switch, controller=self._host)
            left = await retire_old(self._reach, plan, pending)
            self._state.leave_behind(name, left)
        else:
            await undo(self._reach, pending)
            if self._state.get(name) is not None:
                self._watch(name)
        self._state.end_apply(name)
        self._journal.append(
            "ApplyResumed" if self.went_forward else "ApplyRolledBack",
            deployment=name,
            generation=pending.generation,
            plan_hash=pending.after_switch.plan_hash,
            body={"reason": "the agent was restarted", "phase": pending.phase},
        )
        self.is_over.set()

    async def _must_go_forward(self) -> bool:
        if self.pending.phase not in ("switch", "commit", "retire"):
            return False
        while True:
            try:
                return await is_switched(self._reach, self.pending)
            except FleetError as error:
                self.trouble = str(error)
                log.warning("recovery waits", extra={"deployment": self.pending.deployment, "error": str(error)})
                await asyncio.sleep(RETRY_S)
