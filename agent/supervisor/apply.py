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
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Literal

import msgspec

from agent.errors import FleetError
from agent.journal import Journal
from agent.planner.plan import Plan, rank_places
from agent.planner.shards import ShardExtent
from agent.supervisor import bring_up
from agent.supervisor.deployment import Controlled, ControllerState, PendingApply
from agent.supervisor.reach import INSTRUCT_TIMEOUT_S, Reach
from agent.supervisor.topology import extent_of, starts_by_host
from agent.wire.agent import (
    ApplyEvent,
    ApplyPhase,
    ApplyRequest,
    AskGateway,
    AskRanks,
    Commit,
    DeploymentRecord,
    FetchShards,
    Forget,
    HostAddress,
    Instruction,
    Prepare,
    Release,
    RetireBackends,
    StartRanks,
    StopRanks,
    TellGateway,
)
from agent.wire.gateway import BackendRef, CheckReport

log = logging.getLogger(__name__)

LOCK_LEASE_S = 60.0
LOCK_RENEWAL_S = 20.0
FETCH_TIMEOUT_S = 4 * 3600.0
START_TIMEOUT_S = 1800.0
START_POLL_S = 0.2
DRAIN_S = 30.0


class ProgressLog:
    """Events of one apply, for any number of followers; a late one sees them from the start."""

    def __init__(self) -> None:
        self._events: list[ApplyEvent] = []
        self._changed = asyncio.Condition()
        self.is_over = False

    async def emit(self, event: ApplyEvent, *, is_last: bool = False) -> None:
        async with self._changed:
            self._events.append(event)
            self.is_over = is_last
            self._changed.notify_all()

    async def follow(self) -> AsyncIterator[ApplyEvent]:
        seen = 0
        while True:
            async with self._changed:
                while len(self._events) == seen and not self.is_over:
                    await self._changed.wait()
                fresh = self._events[seen:]
                is_over = self.is_over
            for event in fresh:
                yield event
            seen += len(fresh)
            if is_over and seen == len(self._events):
                return


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
        self._abort = asyncio.Event()
        self._members = _all_members(request, old_record)
        self._socket = ""
        self._checked: CheckReport | None = None
        reach.learn(self._members.values())

    @property
    def is_before_commit(self) -> bool:
        """True while the old layout serves: its healing waits, for the new one is about to replace it."""
        return self.phase not in ("commit", "retire", "done")

    def abort(self) -> bool:
        """Ask it to stop before its next phase and roll back. False when the switch is done: too late."""
        self._abort.set()
        return self.is_before_commit

    async def run(self) -> None:
        """Perform all phases. Never raises FleetError: the last event carries it."""
        try:
            async with asyncio.TaskGroup() as group:
                renewal = group.create_task(self._renew_lock())
                try:
                    await self._perform()
                finally:
                    renewal.cancel()
        except* FleetError as errors:
            error = _first(errors)
            await self._emit(self.phase, "failed", message=error.message, error=error, is_last=True)

    async def _perform(self) -> None:
        async with self._phase("prepare"):
            await self._prepare()
        try:
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
        except FleetError as error:
            await self._roll_back(error.message)
            raise
        except Exception as error:
            log.exception("apply failed unexpectedly", extra={"phase": self.phase})
            await self._roll_back(f"{type(error).__name__}: {error}")
            raise FleetError(
                "E900", f"unexpected {type(error).__name__}: {error}", hint="the agent's log has the traceback"
            ) from error
        async with self._phase("commit"):
            await commit_everywhere(self._reach, self._plan, self._after_switch(), controller=self._host)
        async with self._phase("retire"):
            await retire_old(self._reach, self._plan, self._pending("retire"), self._old_gateway_host)
        self._state.end_apply(self._plan.name)
        self._journal.append(
            "Applied",
            deployment=self._plan.name,
            generation=self.generation,
            plan_hash=self._request.plan_hash,
            body={"predicted": msgspec.to_builtins(self._plan.predicted)}
            | ({"checked": msgspec.to_builtins(self._checked)} if self._checked else {}),
        )
        self.phase = "done"
        await self._emit("done", "finished", message="serving", checked=self._checked, is_last=True)

    @contextlib.asynccontextmanager
    async def _phase(self, phase: ApplyPhase) -> AsyncIterator[None]:
        if phase not in ("commit", "retire"):
            self._check_abort()
        self.phase = phase
        await self._emit(phase, "started")
        yield
        await self._emit(phase, "finished")
        if self._request.stop_after == phase:
            await self._abort.wait()

    # --- phases -------------------------------------------------------------------------------------

    async def _prepare(self) -> None:
        """Compare and swap on every host, old and new; none keeps its lock when one refuses."""
        outcomes = await self._reach.try_all(
            {host: self._prepare_order() for host in self._members}, timeout_s=10.0
        )
        needed = set(self._plan.hosts)
        errors = {
            host: outcome
            for host, outcome in outcomes.items()
            if isinstance(outcome, FleetError) and (host in needed or outcome.code in ("E401", "E501"))
        }
        if errors:
            taken = [host for host, outcome in outcomes.items() if not isinstance(outcome, FleetError)]
            await self._reach.try_all({host: self._release_order() for host in taken})
            raise errors[min(errors)]
        for host, outcome in outcomes.items():
            if isinstance(outcome, FleetError):
                # An old host that is down cannot hold the new layout up; its agent forgets when it is back.
                await self._emit("prepare", "progress", host=host, message=f"skipped: {outcome.message}")
        self._save_pending("prepare")

    async def _fetch(self) -> None:
        spec = self._request.spec
        sources = self._sources()
        extents: dict[str, dict[str, ShardExtent]] = {host: {} for host in self._plan.hosts}
        for place in rank_places(self._plan):
            extents[place.shard.host][place.rank_id] = extent_of(self._plan, place)
        replies = await self._reach.instruct_all(
            {
                host: FetchShards(
                    deployment=self._plan.name,
                    generation=self.generation,
                    model=self._plan.model,
                    spec=spec,
                    extents=of_host,
                    sources=tuple(source for source in sources if source.host != host),
                )
                for host, of_host in extents.items()
            },
            timeout_s=FETCH_TIMEOUT_S,
        )
        for host, reply in sorted(replies.items()):
            await self._emit(
                "fetch",
                "progress",
                host=host,
                message=f"fetched {reply.fetched_bytes} bytes" if reply.fetched_bytes else "already there",
                done=reply.fetched_bytes,
                total=reply.fetched_bytes,
            )

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
        self._save_pending("switch")
        await bring_up.tell(self._reach, self._plan, "activate", generation=self.generation)
        after = self._after_switch()
        self._state.put(self._plan.name, after)
        self._save_pending("commit")
        await self._on_switched(after)

    # --- failure ------------------------------------------------------------------------------------

    async def _roll_back(self, reason: str) -> None:
        await self._emit("roll_back", "started", message=reason)
        await undo(self._reach, self._pending("roll_back"))
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
    def _old_gateway_host(self) -> str:
        return self._old_record.gateway_host if self._old_record else ""

    @property
    def _kept(self) -> tuple[int, ...]:
        """Generations whose processes serve now."""
        return (self._old_record.spawn_generation,) if self._old_record else ()

    def _check_abort(self) -> None:
        if self._abort.is_set():
            raise FleetError(
                "E901", "aborted on request", hint="the deployment stands as it was; apply again to go on"
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

    def _release_order(self) -> Instruction:
        return Release(deployment=self._plan.name, generation=self.generation)

    async def _renew_lock(self) -> None:
        while True:
            await asyncio.sleep(LOCK_RENEWAL_S)
            if self.is_before_commit:
                await self._reach.try_all({host: self._prepare_order() for host in self._members})

    def _sources(self) -> tuple[HostAddress, ...]:
        """The host that the plan names first, then every member: any of them may hold the bytes."""
        first = self._plan.model.source_host or self._host
        others = [address for host, address in sorted(self._members.items()) if host != first]
        return (self._members[first], *others) if first in self._members else tuple(others)

    def _after_switch(self) -> Controlled:
        return Controlled(
            plan_toml=self._request.plan_toml,
            plan_hash=self._request.plan_hash,
            spec=self._request.spec,
            members=tuple(self._members[host] for host in self._plan.hosts),
            generation=self.generation,
            spawn_generation=self.generation,
            gateway_socket=self._socket,
            applied_at_s=time.time(),
            checked=self._checked,
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
        )

    def _save_pending(self, phase: ApplyPhase) -> None:
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


async def commit_everywhere(reach: Reach, plan: Plan, after: Controlled, *, controller: str) -> None:
    """Have every host of the plan remember the generation; a host out of reach learns it when it is back."""
    record = DeploymentRecord(
        name=plan.name,
        generation=after.generation,
        plan_hash=after.plan_hash,
        controller=controller,
        members=after.members,
        gateway_host=plan.gateway_host,
        spawn_generation=after.spawn_generation,
    )
    outcomes = await reach.try_all({address.host: Commit(record=record) for address in after.members})
    for host, outcome in sorted(outcomes.items()):
        if isinstance(outcome, FleetError):
            log.warning("commit not taken", extra={"on_host": host, "error": outcome.message})


async def retire_old(reach: Reach, plan: Plan, pending: PendingApply, old_gateway_host: str) -> None:
    """Drain the old generation, then stop its ranks; hosts that left the plan forget the deployment."""
    gateways = {plan.gateway_host, old_gateway_host} - {""}
    await _try_and_log(
        reach,
        {
            host: RetireBackends(deployment=plan.name, generation=pending.generation, drain_s=DRAIN_S)
            for host in gateways
        },
        timeout_s=DRAIN_S + 30.0,
    )
    stay = set(plan.hosts)
    orders: dict[str, Instruction] = {
        address.host: (
            StopRanks(deployment=plan.name, keep_generations=(pending.generation,))
            if address.host in stay
            else Forget(deployment=plan.name)
        )
        for address in pending.members
    }
    await _try_and_log(reach, orders, timeout_s=30.0)


async def undo(reach: Reach, pending: PendingApply) -> None:
    """Take back everything of an apply that did not switch. Each step is tried, none stops the others."""
    backend = BackendRef(deployment=pending.deployment, generation=pending.generation, drain_s=0.0)
    await _try_and_log(
        reach,
        {pending.gateway_host: TellGateway(listen=pending.listen, verb="detach", backend=backend)},
        timeout_s=15.0,
    )
    hosts = [address.host for address in pending.members]
    await _try_and_log(
        reach,
        {
            host: StopRanks(deployment=pending.deployment, keep_generations=pending.keep_generations)
            for host in hosts
        },
        timeout_s=30.0,
    )
    await _try_and_log(
        reach, {host: Release(deployment=pending.deployment, generation=pending.generation) for host in hosts}
    )


async def is_switched(reach: Reach, pending: PendingApply) -> bool:
    """Ask the gateway whether it serves the pending generation: the truth after a crash around the switch."""
    reply = await reach.instruct(pending.gateway_host, AskGateway(listen=pending.listen))
    return any(
        backend.deployment == pending.deployment
        and backend.generation == pending.generation
        and backend.state == "active"
        for backend in reply.backends
    )


async def _try_and_log(
    reach: Reach, orders: Mapping[str, Instruction], *, timeout_s: float = INSTRUCT_TIMEOUT_S
) -> None:
    outcomes = await reach.try_all(dict(orders), timeout_s=timeout_s)
    for host, outcome in sorted(outcomes.items()):
        if isinstance(outcome, FleetError):
            log.warning("clean-up step failed", extra={"on_host": host, "error": outcome.message})


def _all_members(request: ApplyRequest, old: DeploymentRecord | None) -> dict[str, HostAddress]:
    members = {address.host: address for address in (old.members if old else ())}
    return members | {address.host: address for address in request.members}


def _first(errors: BaseExceptionGroup[FleetError]) -> FleetError:
    first: BaseException = errors
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    assert isinstance(first, FleetError)
    return first
