"""Apply as a transaction: everything new is brought up beside the old, one step switches, then the old retires.

Before the switch any failure rolls back, and the old deployment has not missed a request. After it nothing rolls
back: what is left (commit, retire) is repeated until done. The controller runs it, not the operator's process, so
a closed laptop changes nothing; the pending state is in the journal, so neither does a restart of this agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Literal

import msgspec

from agent.errors import FleetError
from agent.facts.model import ModelSpec
from agent.journal import Journal
from agent.planner.plan import ModelRef, Plan, draft_places, rank_places
from agent.planner.shards import ShardExtent, whole_extent
from agent.supervisor import bring_up
from agent.supervisor.clean_up import commit_everywhere, retire_old, undo
from agent.supervisor.deployment import Controlled, ControllerState, PendingApply
from agent.supervisor.progress import ProgressLog
from agent.supervisor.reach import Reach
from agent.supervisor.runs import RunBook
from agent.supervisor.topology import extent_of, starts_by_host
from agent.wire.agent import (
    ApplyEvent,
    ApplyPhase,
    ApplyRequest,
    AskRanks,
    DeploymentRecord,
    FetchShards,
    HostAddress,
    Instruction,
    InstructionReply,
    Prepare,
    StartRanks,
)
from agent.wire.gateway import CheckReport

log = logging.getLogger(__name__)

LOCK_LEASE_S = 60.0
LOCK_RENEWAL_S = 20.0
FETCH_TIMEOUT_S = 4 * 3600.0
START_TIMEOUT_S = 1800.0
START_POLL_S = 0.2
REFUSALS = ("E401", "E501")
"""Of a member that stands elsewhere or is another operator's: no silence, which is forgiven."""
BEFORE_SWITCH: tuple[ApplyPhase, ...] = ("prepare", "fetch", "start", "link", "warm", "check")


class Transaction:
    """One apply, on the controller."""

    def __init__(
        self,
        request: ApplyRequest,
        plan: Plan,
        *,
        host: str,
        reach: Reach,
        state: ControllerState,
        journal: Journal,
        old_record: DeploymentRecord | None,
        on_switched: Callable[[Controlled], Awaitable[None]],
    ) -> None:
        self._request = request
        self._plan = plan
        self._host = host
        self._reach = reach
        self._state = state
        self._journal = journal
        self._old_record = old_record
        self._on_switched = on_switched
        self.generation = request.expected_generation + 1
        self.progress = ProgressLog()
        self.phase: ApplyPhase = "prepare"
        self.plan_hash = request.plan_hash
        self.holder = request.holder
        self._stop_after = request.stop_after
        self._abort_reason = ""
        self._abort = asyncio.Event()
        self._is_held_no_more = asyncio.Event()
        self._saved_phase: ApplyPhase = "prepare"
        self._members = _all_members(request, old_record)
        self._socket = ""
        self._checked: CheckReport | None = None
        self._began_s = time.monotonic()
        self._applied_at_s = 0.0
        self._apply_s = 0.0
        reach.learn(self._members.values())

    @property
    def is_before_commit(self) -> bool:
        """True while the old layout serves: its healing waits, for the new one is about to replace it."""
        return self.phase not in ("commit", "retire", "done")

    @property
    def can_roll_back(self) -> bool:
        return self.phase in BEFORE_SWITCH

    def abort(self, reason: str = "aborted on request") -> bool:
        """Ask it to stop at its next step and roll back. False when it switches or has switched: too late."""
        if self.can_roll_back:
            self._abort_reason = self._abort_reason or reason
            self._abort.set()
        self._is_held_no_more.set()
        return self.can_roll_back

    def join(self, request: ApplyRequest) -> ProgressLog:
        """Another operator applies the same plan: where it is held is for the newer one to say."""
        if request.stop_after != self._stop_after:
            self._stop_after = request.stop_after
            self._is_held_no_more.set()
        return self.progress

    async def run(self) -> None:
        """Perform all phases. Never raises: the last event carries what went wrong."""
        async with asyncio.TaskGroup() as group:
            renewal = group.create_task(self._renew_lock())
            error = await self._attempt(self._bring_up())
            renewal.cancel()
        if error is not None:
            await self._roll_back(error.message)
        else:
            # What this leaves undone is in the journal: the next start of this agent goes on with it.
            error = await self._attempt(self._finish())
        if error is not None:
            await self._emit(self.phase, "failed", message=error.message, error=error, is_last=True)
            return
        self.phase = "done"
        await self._emit("done", "finished", message="serving", checked=self._checked, is_last=True)

    async def _attempt(self, work: Awaitable[None]) -> FleetError | None:
        """Why it failed, whatever the reason: an apply must end with a word to its followers."""
        try:
            await work
        except FleetError as error:
            return error
        except Exception as error:
            log.exception("apply failed unexpectedly", extra={"phase": self.phase})
            why = f"unexpected {type(error).__name__}: {error}"
            return FleetError("E900", why, hint="the agent's log has the traceback")
        return None

    async def _bring_up(self) -> None:
        async with self._phase("prepare"):
            await self._prepare()
        async with self._phase("fetch"):
            await self._fetch()
        async with self._phase("start"):
            await self._start()
        async with self._phase("link"):
            endpoints = await self._link()
        async with self._phase("warm"):
            await self._warm(endpoints)
        async with self._phase("check"):
            await self._check()
        async with self._phase("switch"):
            await self._switch()

    async def _finish(self) -> None:
        async with self._phase("commit"):
            await commit_everywhere(self._reach, self._plan, self._after_switch(), controller=self._host)
        async with self._phase("retire"):
            left = await retire_old(self._reach, self._plan, self._pending("retire"))
            self._state.leave_behind(self._plan.name, left)
        self._state.end_apply(self._plan.name)
        self._journal.append(
            "Applied",
            deployment=self._plan.name,
            generation=self.generation,
            plan_hash=self._request.plan_hash,
            body={"predicted": msgspec.to_builtins(self._plan.predicted)}
            | ({"checked": msgspec.to_builtins(self._checked)} if self._checked else {}),
        )
        if self._checked is not None:
            RunBook(self._journal).record_check(
                self._plan,
                self._checked,
                plan_hash=self._request.plan_hash,
                plan_toml=self._request.plan_toml,
                spec=self._request.spec,
                generation=self.generation,
            )

    @contextlib.asynccontextmanager
    async def _phase(self, phase: ApplyPhase) -> AsyncIterator[None]:
        if phase not in ("commit", "retire"):
            self._check_abort()
        self.phase = phase
        await self._emit(phase, "started")
        yield
        await self._emit(phase, "finished")
        if self._stop_after == phase:
            await self._emit(phase, "progress", message="held")
            await self._is_held_no_more.wait()

    # --- phases -------------------------------------------------------------------------------------

    async def _prepare(self) -> None:
        """Compare and swap on every host, old and new; none keeps its lock when one refuses."""
        self._save_pending("prepare")
        outcomes = await self._reach.try_all(
            {host: self._prepare_order() for host in self._members}, timeout_s=10.0
        )
        needed = set(self._plan.hosts)
        errors = {
            host: outcome
            for host, outcome in outcomes.items()
            if isinstance(outcome, FleetError) and (host in needed or outcome.code in REFUSALS)
        }
        if errors:
            raise errors[min(errors)]
        for host, outcome in outcomes.items():
            if isinstance(outcome, FleetError):
                # An old host that is down cannot hold the new layout up; its agent forgets when it is back.
                await self._emit("prepare", "progress", host=host, message=f"skipped: {outcome.message}")
        self._save_pending("fetch")

    async def _fetch(self) -> None:
        extents: dict[str, dict[str, ShardExtent]] = {host: {} for host in self._plan.hosts}
        for place in rank_places(self._plan):
            extents[place.shard.host][place.rank_id] = extent_of(self._plan, place)
        await self._fetch_model(self._plan.model, self._request.spec, extents)
        if self._plan.draft is not None:
            assert self._request.draft_spec is not None, "who asks for a draft model says what it is"
            whole = whole_extent(self._request.draft_spec)
            drafts = {place.shard.host: {place.rank_id: whole} for place in draft_places(self._plan)}
            await self._fetch_model(self._plan.draft, self._request.draft_spec, drafts)

    async def _fetch_model(
        self, model: ModelRef, spec: ModelSpec, extents: dict[str, dict[str, ShardExtent]]
    ) -> None:
        sources = self._sources(model)
        outcomes = await self._unless_aborted(
            {
                host: FetchShards(
                    deployment=self._plan.name,
                    generation=self.generation,
                    model=model,
                    spec=spec,
                    extents=of_host,
                    sources=tuple(source for source in sources if source.host != host),
                )
                for host, of_host in extents.items()
            }
        )
        of_draft = "" if model is self._plan.model else f" of draft model {model.name}"
        for host, reply in sorted(outcomes.items()):
            if isinstance(reply, FleetError):
                raise reply
            await self._emit(
                "fetch",
                "progress",
                host=host,
                message=(f"fetched {reply.fetched_bytes} bytes" if reply.fetched_bytes else "already there")
                + of_draft,
                done=reply.fetched_bytes,
                total=reply.fetched_bytes,
            )

    async def _unless_aborted(self, fetches: dict[str, Instruction]) -> dict[str, InstructionReply | FleetError]:
        """A fetch may take hours: it is left alone when the apply is called off; what it brings stays of use."""
        async with asyncio.TaskGroup() as group:
            fetching = group.create_task(self._reach.try_all(fetches, timeout_s=FETCH_TIMEOUT_S))
            aborting = group.create_task(self._abort.wait())
            await asyncio.wait({fetching, aborting}, return_when=asyncio.FIRST_COMPLETED)
            is_aborted = not fetching.done()
            fetching.cancel()
            aborting.cancel()
        if is_aborted:
            self._check_abort()
        return fetching.result()

    async def _start(self) -> None:
        starts = starts_by_host(self._plan)
        await self._reach.instruct_all(
            {
                host: StartRanks(
                    deployment=self._plan.name,
                    generation=self.generation,
                    plan_hash=self._request.plan_hash,
                    model=self._plan.model,
                    spec=self._request.spec,
                    serving=self._plan.serving,
                    ranks=ranks,
                    draft=self._plan.draft,
                    draft_spec=self._request.draft_spec,
                )
                for host, ranks in starts.items()
            }
        )
        waiting = {place.rank_id: place.shard.host for place in rank_places(self._plan)}
        deadline = time.monotonic() + START_TIMEOUT_S
        shown: dict[str, float] = {}
        while waiting:
            self._check_abort()
            if time.monotonic() > deadline:
                late = ", ".join(sorted(waiting))
                raise FleetError("E804", f"ranks did not load within {START_TIMEOUT_S:.0f} s: {late}")
            replies = await self._reach.instruct_all(
                {
                    host: AskRanks(deployment=self._plan.name, generation=self.generation)
                    for host in set(waiting.values())
                }
            )
            for host, reply in replies.items():
                for status in reply.ranks:
                    if status.rank_id not in waiting:
                        continue
                    if status.state == "failed":
                        assert status.error is not None, "a failed rank says why"
                        raise FleetError.from_detail(status.error, host=host)
                    if status.state in ("loaded", "linked"):
                        del waiting[status.rank_id]
                    if shown.get(status.rank_id) != status.loaded_fraction:
                        shown[status.rank_id] = status.loaded_fraction
                        await self._emit(
                            "start",
                            "progress",
                            host=host,
                            message=f"{status.rank_id} {status.state}",
                            done=int(status.loaded_fraction * 100),
                            total=100,
                        )
                dead = [rank for rank in reply.dead_ranks if rank.rank_id in waiting]
                if dead:
                    last = dead[0].evidence.get("last_log_line", "")
                    raise FleetError(
                        "E804",
                        f"rank {dead[0].rank_id} ended while it loaded: {dead[0].evidence}",
                        hint=str(last),
                        host=host,
                    )
            await asyncio.sleep(START_POLL_S)

    async def _link(self) -> bring_up.Endpoints:
        return await bring_up.link_all(
            self._reach,
            self._plan,
            generation=self.generation,
            replica_generations=self._replica_generations,
            spawn_generation=self.generation,
            controller=self._host,
        )

    async def _warm(self, endpoints: bring_up.Endpoints) -> None:
        self._socket = await bring_up.attach(
            self._reach,
            self._plan,
            self._request.spec,
            endpoints,
            generation=self.generation,
            replica_generations=self._replica_generations,
            plan_hash=self._request.plan_hash,
        )

    async def _check(self) -> None:
        self._checked = await bring_up.check(self._reach, self._plan, generation=self.generation)
        await self._emit(
            "check",
            "progress",
            host=self._plan.gateway_host,
            message=f"{self._checked.time_per_token_s * 1000:.1f} ms per token",
            checked=self._checked,
        )

    async def _switch(self) -> None:
        """The one atomic step. The journal says so before, and the gateway is asked after a crash in between."""
        # One moment for all that remember it: a recovery must not take this layout for another one.
        self._applied_at_s = time.time()
        self._apply_s = time.monotonic() - self._began_s
        self._save_pending("switch")
        await bring_up.tell(self._reach, self._plan, "activate", generation=self.generation)
        after = self._after_switch()
        self._state.put(self._plan.name, after)
        self._save_pending("commit")
        await self._on_switched(after)

    # --- failure ------------------------------------------------------------------------------------

    async def _roll_back(self, reason: str) -> None:
        if self._saved_phase == "prepare":
            # Refused before anything was begun: there are locks to give back, and no more.
            await undo(self._reach, self._pending("prepare"))
            self._state.end_apply(self._plan.name)
            return
        await self._emit("roll_back", "started", message=reason)
        await undo(self._reach, self._pending(self._saved_phase))
        self._state.end_apply(self._plan.name)
        self._journal.append(
            "ApplyRolledBack",
            deployment=self._plan.name,
            generation=self.generation,
            plan_hash=self._request.plan_hash,
            body={"reason": reason, "phase": self.phase},
        )
        await self._emit("roll_back", "finished", message=f"generation {self._old_generation} is untouched")

    # --- small things -------------------------------------------------------------------------------

    @property
    def _old_generation(self) -> int:
        return self._request.expected_generation

    @property
    def _replica_generations(self) -> tuple[int, ...]:
        return (self.generation,) * len(self._plan.replicas)

    @property
    def _kept(self) -> tuple[int, ...]:
        """Generations whose processes serve now."""
        return (self._old_record.spawn_generation,) if self._old_record else ()

    def _check_abort(self) -> None:
        if self._abort.is_set():
            raise FleetError(
                "E901", self._abort_reason, hint="the deployment stands as it was; apply again to go on"
            )

    def _prepare_order(self) -> Instruction:
        return Prepare(
            deployment=self._plan.name,
            expected_generation=self._request.expected_generation,
            generation=self.generation,
            holder=self._request.holder,
            controller=self._host,
            lease_s=LOCK_LEASE_S,
            members=tuple(self._members.values()),
        )

    async def _renew_lock(self) -> None:
        while True:
            await asyncio.sleep(LOCK_RENEWAL_S)
            outcomes = await self._reach.try_all({host: self._prepare_order() for host in self._members})
            refused = [
                outcome
                for outcome in outcomes.values()
                if isinstance(outcome, FleetError) and outcome.code in REFUSALS
            ]
            if refused:
                self.abort(f"the lock is lost: {refused[0].message}")

    def _sources(self, model: ModelRef) -> tuple[HostAddress, ...]:
        """The host that the plan names first, then every member: any of them may hold the bytes."""
        known = self._members | {address.host: address for address in self._request.sources}
        first = model.source_host or self._host
        others = [address for host, address in sorted(known.items()) if host != first]
        return (known[first], *others) if first in known else tuple(others)

    def _after_switch(self) -> Controlled:
        return Controlled(
            plan_toml=self._request.plan_toml,
            plan_hash=self._request.plan_hash,
            spec=self._request.spec,
            members=tuple(self._members[host] for host in self._plan.hosts),
            generation=self.generation,
            spawn_generation=self.generation,
            gateway_socket=self._socket,
            applied_at_s=self._applied_at_s,
            checked=self._checked,
            cause=self._request.cause,
            by=self._request.holder,
            reason=self._request.reason,
            apply_s=self._apply_s,
        )

    def _pending(self, phase: ApplyPhase) -> PendingApply:
        return PendingApply(
            deployment=self._plan.name,
            generation=self.generation,
            holder=self._request.holder,
            phase=phase,
            members=tuple(self._members.values()),
            keep_generations=self._kept,
            gateway_host=self._plan.gateway_host,
            listen=self._plan.serving.listen,
            after_switch=self._after_switch(),
            old_gateway_host=self._old_record.gateway_host if self._old_record else "",
        )

    def _save_pending(self, phase: ApplyPhase) -> None:
        self._saved_phase = phase
        self._state.put_apply(self._pending(phase))

    async def _emit(
        self,
        phase: ApplyPhase,
        state: Literal["started", "progress", "finished", "failed"],
        *,
        host: str = "",
        message: str = "",
        done: int = 0,
        total: int = 0,
        error: FleetError | None = None,
        checked: CheckReport | None = None,
        is_last: bool = False,
    ) -> None:
        event = ApplyEvent(
            phase=phase,
            state=state,
            host=host,
            message=message,
            done=done,
            total=total,
            at_s=time.time(),
            generation=self.generation,
            error=error.detail if error else None,
            checked=checked,
        )
        await self.progress.emit(event, is_last=is_last)


def _all_members(request: ApplyRequest, old: DeploymentRecord | None) -> dict[str, HostAddress]:
    members = {address.host: address for address in (old.members if old else ())}
    return members | {address.host: address for address in request.members}
