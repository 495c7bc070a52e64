"""Stop a deployment on every member. The agent does it, not its asker: a lost operator leaves nothing half done.

While a member is out of reach the performing host keeps the record, so that a later destroy finds what is left.
"""

from __future__ import annotations

import time
from typing import Literal

from agent.errors import ErrorDetail, FleetError
from agent.supervisor.progress import ProgressLog
from agent.supervisor.reach import Reach
from agent.wire.agent import (
    ApplyEvent,
    ApplyPhase,
    DeploymentRecord,
    Forget,
    InstructionReply,
    RetireBackends,
    StopRanks,
)

FORGET_TIMEOUT_S = 45.0


class Demolition:
    """One destroy on one host, which need not be the controller: that one may be what is lost."""

    def __init__(self, record: DeploymentRecord, *, host: str, reach: Reach) -> None:
        self.progress = ProgressLog()
        self._record = record
        self._host = host
        self._reach = reach

    async def run(self) -> tuple[str, ...]:
        """The gateway's host first, so that no client is let in any more. Returns the hosts out of reach.

        The last event is the caller's to emit (`end`), once its own state is gone too.
        """
        record = self._record
        self._reach.learn(record.members)
        await self._emit("retire", "started")
        others = sorted({member.host for member in record.members} - {self._host})
        lost: list[str] = []
        for hosts in ([host for host in others if host == record.gateway_host],
                      [host for host in others if host != record.gateway_host]):  # fmt: skip
            outcomes = await self._reach.try_all(
                dict.fromkeys(hosts, Forget(deployment=record.name)), timeout_s=FORGET_TIMEOUT_S
            )
            lost += await self._tell(outcomes)
        lost += await self._tell({self._host: await self._stop_own(lost)})
        return tuple(lost)

    async def end(self, lost: tuple[str, ...]) -> None:
        name = self._record.name
        error = None
        if lost:
            error = FleetError(
                "E301",
                f"{', '.join(lost)} could not be reached and may still run ranks of {name}",
                hint=f"when it is back: odctl destroy {name} again",
                host=lost[0],
            ).detail
        await self._emit("done", "failed" if error else "finished", message="destroyed", error=error, is_last=True)

    async def _stop_own(self, lost: list[str]) -> InstructionReply | FleetError:
        record = self._record
        try:
            if not lost:
                return await self._reach.instruct(self._host, Forget(deployment=record.name))
            retire = RetireBackends(deployment=record.name, generation=record.generation + 1, drain_s=0.0)
            await self._reach.instruct(self._host, retire)
            await self._reach.instruct(self._host, StopRanks(deployment=record.name, keep_generations=()))
            return InstructionReply()
        except FleetError as error:
            return error

    async def _tell(self, outcomes: dict[str, InstructionReply | FleetError]) -> list[str]:
        lost = []
        for host, outcome in sorted(outcomes.items()):
            if isinstance(outcome, FleetError):
                lost.append(host)
                await self._emit("retire", "failed", host=host, message=f"not stopped: {outcome.message}")
            else:
                await self._emit("retire", "progress", host=host, message="stopped")
        return lost

    async def _emit(
        self,
        phase: ApplyPhase,
        state: Literal["started", "progress", "finished", "failed"],
        *,
        host: str = "",
        message: str = "",
        error: ErrorDetail | None = None,
        is_last: bool = False,
    ) -> None:
        event = ApplyEvent(
            phase=phase,
            state=state,
            host=host,
            message=message,
            at_s=time.time(),
            generation=self._record.generation,
            error=error,
        )
        await self.progress.emit(event, is_last=is_last)
