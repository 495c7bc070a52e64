"""Watches the members of the deployments this agent decides for, asks `healing` what to do, and does it."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable

import msgspec

from agent.errors import FleetError
from agent.facts.fault import Fault
from agent.healing.detect import DeathSeen, DetectState, HostSeen, Observation, RankSeen, SilentHost, detect
from agent.healing.react import react
from agent.healing.state import (
    CloseFaults,
    HealEvent,
    HealInstruction,
    HealState,
    RankState,
    Rebuild,
    RebuildFailed,
    Rebuilt,
    RecordFault,
    ReportState,
    RestartDeadRank,
    RestartFailed,
    TimePassed,
)
from agent.planner.file import plan_from_toml
from agent.planner.plan import Plan, rank_places
from agent.supervisor import bring_up
from agent.supervisor.clean_up import commit_everywhere
from agent.supervisor.deployment import Controlled, ControllerState
from agent.supervisor.faults import FaultBook
from agent.supervisor.history import HistoryBook
from agent.supervisor.outcomes import OutcomeBook
from agent.supervisor.reach import Reach
from agent.supervisor.runs import RunBook
from agent.supervisor.stretch import GatewayMeter
from agent.wire.agent import DeploymentStatus, Heartbeat, RankView, RestartRank, RetireBackends
from agent.wire.gateway import BackendStatus
from agent.wire.rank import RankStatus

log = logging.getLogger(__name__)

BEAT_INTERVAL_S = 0.4
BEAT_TIMEOUT_S = 0.8
PORT_PROBE_TIMEOUT_S = 0.3
OWN_STALL_S = 0.5
RESTART_TIMEOUT_S = 15.0


class DeploymentWatch:
    """One deployment under this controller, from its switch to its end."""

    def __init__(
        self,
        controlled: Controlled,
        *,
        host: str,
        reach: Reach,
        state: ControllerState,
        faults: FaultBook,
        outcomes: OutcomeBook,
        runs: RunBook,
        history: HistoryBook,
        own_heartbeat: Callable[[], Heartbeat],
        is_apply_pending: Callable[[], bool],
        is_new: bool,
    ) -> None:
        """`is_new`: the layout has just been switched to; else an earlier controller of this host watched it."""
        self.controlled = controlled
        self.plan: Plan = plan_from_toml(controlled.plan_toml, file="plan.toml")
        self._host = host
        self._reach = reach
        self._state = state
        self._faults = faults
        self._outcome = outcomes.open(self.plan, controlled)
        self._runs = runs.open(self.plan, controlled)
        self._history = history
        history.note(self.plan.name, controlled)
        self._meter = GatewayMeter(is_new=is_new, now_s=time.monotonic())
        self._own_heartbeat = own_heartbeat
        self._is_apply_pending = is_apply_pending
        self._beats: dict[str, Heartbeat] = {}
        self._restarts: dict[str, int] = {}
        self._inbox: list[HealEvent] = []
        self._ports = state.step_ports(self.plan.name, controlled.spawn_generation)
        self._is_still = asyncio.Event()
        self._is_still.set()
        reach.learn(controlled.members)
        hosts = {address.host for address in controlled.members}
        self._health = HealState(
            deployment=self.plan.name,
            generation=controlled.generation,
            ranks={
                place.rank_id: RankState(
                    host=place.shard.host,
                    replica=place.replica,
                    generation=self._replica_generations()[place.replica],
                )
                for place in rank_places(self.plan)
            },
            hosts=dict.fromkeys(hosts, "up"),
            gateway_host=self.plan.gateway_host,
            may_restart=self.plan.healing.restart,
            max_restarts_per_minute=self.plan.healing.max_restarts_per_minute,
            open_faults=faults.open_keys(self.plan.name),
        )
        now = time.monotonic()
        self._detect = DetectState(heard_at=dict.fromkeys(hosts, now))

    async def run(self) -> None:
        """Watch for ever. Rebuilds run beside the heartbeats, so that a second fault is seen during them."""
        async with asyncio.TaskGroup() as group:
            while True:
                started = time.monotonic()
                beats, silent = await self._listen()
                self._remember(beats)
                self._measure()
                is_late = time.monotonic() - started > BEAT_TIMEOUT_S + PORT_PROBE_TIMEOUT_S + OWN_STALL_S
                if not self._is_apply_pending():
                    for event in self._events(beats, silent, was_stalled=is_late):
                        await self._take_in(event, group)
                asleep_at = time.monotonic()
                await asyncio.sleep(max(0.0, BEAT_INTERVAL_S - (asleep_at - started)))
                if time.monotonic() - asleep_at > BEAT_INTERVAL_S + OWN_STALL_S:
                    now = time.monotonic()
                    self._detect = msgspec.structs.replace(
                        self._detect, heard_at=dict.fromkeys(self._detect.heard_at, now)
                    )

    async def wait_until_still(self) -> None:
        """Until no rebuild is under way: it holds a generation that an apply would take, too."""
        await self._is_still.wait()

    def status(self) -> DeploymentStatus:
        health = self._health
        return DeploymentStatus(
            name=self.plan.name,
            generation=health.generation,
            plan_hash=self.controlled.plan_hash,
            controller=self._host,
            state="healing" if health.phase == "rebuilding" else health.phase,
            reason=health.reason,
            way_out=health.way_out,
            plan_toml=self.controlled.plan_toml,
            listen=self.plan.serving.listen,
            gateway_host=self.plan.gateway_host,
            gateway_socket=self.controlled.gateway_socket,
            applied_at_s=self.controlled.applied_at_s,
            ranks=self._rank_views(),
            backend=self._backend(),
            predicted=self.plan.predicted,
            checked=self.controlled.checked,
        )

    # --- seeing -------------------------------------------------------------------------------------

    async def _listen(self) -> tuple[dict[str, Heartbeat], dict[str, SilentHost]]:
        beats: dict[str, Heartbeat] = {}
        silent: dict[str, SilentHost] = {}

        async def ask(host: str) -> None:
            if host == self._host:
                beats[host] = self._own_heartbeat()
                return
            try:
                beats[host] = await self._reach.heartbeat(host, timeout_s=BEAT_TIMEOUT_S)
            except FleetError as error:
                silent[host] = await self._probe_ranks(host, error.message)

        async with asyncio.TaskGroup() as group:
            for address in self.controlled.members:
                group.create_task(ask(address.host))
        return beats, silent

    async def _probe_ranks(self, host: str, error: str) -> SilentHost:
        """Whether a silent host's ranks still accept connections: an agent's death is not a host's."""
        ports = self._ports.get(host, ())
        address = self._reach.address(host).address
        answers = 0
        for port in ports:
            try:
                async with asyncio.timeout(PORT_PROBE_TIMEOUT_S):
                    _, writer = await asyncio.open_connection(address, port)
                writer.close()
                answers += 1
            except (OSError, TimeoutError):
                continue
        return SilentHost(
            ranks_answer=answers > 0,
            evidence={"agent": error, "rank_ports_tried": len(ports), "rank_ports_open": answers},
        )

    def _remember(self, beats: dict[str, Heartbeat]) -> None:
        """The ranks' ports durably: one that has just been started must tell a silent agent from a lost host."""
        self._beats = beats
        found = {
            host: tuple(status.step_port for status in self._own_ranks(beat) if status.step_port)
            for host, beat in beats.items()
        }
        ports = self._ports | {host: numbers for host, numbers in found.items() if numbers}
        if ports != self._ports:
            self._ports = ports
            self._state.put_step_ports(self.plan.name, self.controlled.spawn_generation, ports)

    def _own_ranks(self, beat: Heartbeat) -> list[RankStatus]:
        """Of this layout: an apply runs ranks of the same ids beside them, the new ones first and then the old."""
        return [
            status
            for status in beat.ranks
            if status.deployment == self.plan.name and status.spawn_generation == self.controlled.spawn_generation
        ]

    def _events(
        self, beats: dict[str, Heartbeat], silent: dict[str, SilentHost], *, was_stalled: bool
    ) -> list[HealEvent]:
        now = time.monotonic()
        observation = Observation(
            at_s=now,
            was_stalled=was_stalled,
            hosts={host: self._seen(host, beat) for host, beat in beats.items()},
            silent=silent,
        )
        self._detect, events = detect(self._detect, self._health, observation)
        told, self._inbox = self._inbox, []
        return [*told, *events, TimePassed(at_s=now)]

    def _seen(self, host: str, beat: Heartbeat) -> HostSeen:
        name = self.plan.name
        broken = {
            replica: backend.error.message if backend.error else "broken"
            for backend in beat.backends
            if backend.deployment == name and backend.generation == self._health.generation
            for replica in backend.broken_replicas
        }
        return HostSeen(
            ranks={
                status.rank_id: RankSeen(
                    pid=status.pid,
                    state=status.state,
                    generation=status.generation,
                    error=status.error.message if status.error else "",
                )
                for status in self._own_ranks(beat)
            },
            deaths=tuple(
                DeathSeen(rank_id=dead.rank_id, pid=dead.pid, kind=dead.kind, evidence=dead.evidence)
                for dead in beat.dead_ranks
                if dead.deployment == name and dead.generation == self.controlled.spawn_generation
            ),
            unheard=tuple(
                rank.rank_id
                for rank in beat.unheard_ranks
                if rank.deployment == name and rank.spawn_generation == self.controlled.spawn_generation
            ),
            has_gateway=host != self.plan.gateway_host or self.plan.serving.listen in beat.gateways,
            gateway_evidence=beat.dead_gateways.get(self.plan.serving.listen, {}),
            broken_replicas=broken,
            started_at_s=beat.started_at_s,
            was_killed=beat.was_killed,
        )

    # --- deciding and doing -------------------------------------------------------------------------

    async def _take_in(self, event: HealEvent, group: asyncio.TaskGroup) -> None:
        self._health, instructions = react(self._health, event)
        if self._health.phase == "rebuilding":
            self._is_still.clear()
        else:
            self._is_still.set()
        for instruction in instructions:
            await self._perform(instruction, group)

    async def _perform(self, instruction: HealInstruction, group: asyncio.TaskGroup) -> None:
        match instruction:
            case RecordFault():
                self._faults.record(self._fault(instruction), plan_hash=self.controlled.plan_hash)
            case CloseFaults(keys=keys):
                self._faults.close(self.plan.name, keys, plan_hash=self.controlled.plan_hash)
            case ReportState():
                self._faults.report_state(
                    self.plan.name, instruction, self._health.generation, self.controlled.plan_hash
                )
            case RestartDeadRank(host=host, rank_id=rank_id):
                self._restarts[rank_id] = self._restarts.get(rank_id, 0) + 1
                group.create_task(self._restart(host, rank_id))
            case Rebuild():
                group.create_task(self._rebuild(instruction))

    async def _restart(self, host: str, rank_id: str) -> None:
        order = RestartRank(deployment=self.plan.name, generation=self.controlled.spawn_generation, rank_id=rank_id)
        try:
            await self._reach.instruct(host, order, timeout_s=RESTART_TIMEOUT_S)
        except FleetError as error:
            if error.code == "E206":
                # Its host is silent: the heartbeats will say so, and a host that comes back starts over.
                log.info("restart not delivered", extra={"on_host": host, "rank": rank_id})
                return
            self._inbox.append(RestartFailed(rank_id=rank_id, message=str(error), at_s=time.monotonic()))

    async def _rebuild(self, order: Rebuild) -> None:
        generation, message = order.generation, ""
        try:
            await self._bring_up(order)
        except FleetError as error:
            message = str(error)
        except Exception as error:
            # Whatever it was, the decider waits for word of this rebuild.
            log.exception("rebuild failed unexpectedly", extra={"deployment": self.plan.name})
            message = f"unexpected {type(error).__name__}: {error}"
        now = time.monotonic()
        if message:
            self._inbox.append(RebuildFailed(generation=generation, message=message, at_s=now))
        else:
            self._inbox.append(Rebuilt(generation=generation, at_s=now))

    async def _bring_up(self, order: Rebuild) -> None:
        controlled, plan, generation = self.controlled, self.plan, order.generation
        before = self._replica_generations()
        replica_generations = tuple(
            generation if index in order.replicas else before[index] if index in order.kept else 0
            for index in range(len(plan.replicas))
        )
        endpoints = await bring_up.link_all(
            self._reach,
            plan,
            generation=generation,
            replica_generations=replica_generations,
            spawn_generation=controlled.spawn_generation,
            controller=self._host,
        )
        socket = await bring_up.attach(
            self._reach,
            plan,
            controlled.spec,
            endpoints,
            generation=generation,
            replica_generations=replica_generations,
            plan_hash=controlled.plan_hash,
        )
        await bring_up.check(self._reach, plan, generation=generation)
        await bring_up.tell(self._reach, plan, "activate", generation=generation)
        after = msgspec.structs.replace(
            controlled,
            generation=generation,
            gateway_socket=socket,
            replica_generations=replica_generations,
            cause="healing",
            by=self._host,
            reason=self._healed(),
            apply_s=0.0,
        )
        self.controlled = after
        self._state.put(plan.name, after)
        self._history.note(plan.name, after)
        await commit_everywhere(self._reach, plan, after, controller=self._host)
        await self._reach.try_all(
            {plan.gateway_host: RetireBackends(deployment=plan.name, generation=generation, drain_s=0.0)}
        )

    # --- small things -------------------------------------------------------------------------------

    def _replica_generations(self) -> tuple[int, ...]:
        controlled = self.controlled
        return controlled.replica_generations or (controlled.generation,) * len(self.plan.replicas)

    def _healed(self) -> str:
        """The troubles that made a rebuild necessary, for the history."""
        open_ones = [
            fault
            for fault in self._faults.all()
            if fault.deployment == self.plan.name and fault.healed_at_s is None
        ]
        return "; ".join(f"{fault.kind}: {fault.message}" for fault in reversed(open_ones)) or "links built anew"

    def _fault(self, order: RecordFault) -> Fault:
        return Fault(
            fault_id=uuid.uuid4().hex[:12],
            kind=order.key.kind,
            severity=order.severity,
            observed_at_s=time.time(),
            observed_by=self._host,
            host=order.key.host,
            deployment=self.plan.name,
            generation=self._health.generation,
            rank_id=order.key.rank_id,
            message=order.message,
            evidence=order.evidence,
            way_out=order.way_out,
        )

    def _backend(self) -> BackendStatus | None:
        is_own = self.plan.gateway_host == self._host
        beat = self._own_heartbeat() if is_own else self._beats.get(self.plan.gateway_host)
        return next(
            (
                backend
                for backend in (beat.backends if beat else ())
                if backend.deployment == self.plan.name and backend.generation == self._health.generation
            ),
            None,
        )

    def _measure(self) -> None:
        """What the backend did since it was measured last, told to all who write of it."""
        stretch = self._meter.look(self._backend(), now_s=time.monotonic())
        if stretch is None:
            return
        self._outcome.write_measured(stretch)
        if self._health.phase == "serving":
            self._runs.take(stretch)
        else:
            self._runs.forget()

    def _rank_views(self) -> tuple[RankView, ...]:
        views = []
        for place in rank_places(self.plan):
            beat = self._beats.get(place.shard.host)
            status = next(
                (status for status in (self._own_ranks(beat) if beat else ()) if status.rank_id == place.rank_id),
                None,
            )
            health = self._health.ranks[place.rank_id].health
            silent = self._health.hosts.get(place.shard.host, "up") != "up"
            views.append(
                RankView(
                    host=place.shard.host,
                    rank_id=place.rank_id,
                    device=place.shard.device,
                    status=status,
                    restarts=self._restarts.get(place.rank_id, 0),
                    trouble="host silent" if silent else "" if health == "up" else health,
                )
            )
        return tuple(views)
