"""Wires a host's rooms together and is what the API talks to (`agent.api.control.Control`)."""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

import msgspec

from agent.api.cluster_client import ClusterClient
from agent.errors import FleetError
from agent.facts.cluster import HostFacts
from agent.facts.fault import Fault
from agent.facts.probe import HostProbe, ProbeRecord
from agent.facts.sample import HostSample
from agent.healing.state import FaultKey
from agent.journal import Journal
from agent.planner.file import plan_from_toml
from agent.planner.learning.records import Lessons
from agent.supervisor import in_flight
from agent.supervisor.accuracy import AccuracyChecks
from agent.supervisor.apply import Transaction
from agent.supervisor.clean_up import tell_left_behind
from agent.supervisor.controller import DeploymentWatch
from agent.supervisor.deployment import Controlled, ControllerState
from agent.supervisor.destroy import Demolition
from agent.supervisor.faults import FaultBook
from agent.supervisor.foreign import end_foreign, restart_agent
from agent.supervisor.gateways import GatewayTable
from agent.supervisor.history import HistoryBook
from agent.supervisor.instruct import Member
from agent.supervisor.members import MemberTable
from agent.supervisor.outcomes import OutcomeBook
from agent.supervisor.paths import HostPaths
from agent.supervisor.probes import Probes
from agent.supervisor.processes import ProcessExit, ProcessTable
from agent.supervisor.progress import ProgressLog
from agent.supervisor.ranks import RankTable
from agent.supervisor.reach import Reach
from agent.supervisor.recovery import Recovery
from agent.supervisor.runs import RunBook
from agent.supervisor.store import RendezvousStore
from agent.supervisor.weights import WeightStore
from agent.telemetry.facts import read_boot_id
from agent.telemetry.host import OwnProcess
from agent.wire.accuracy import AccuracyReport, CheckModel
from agent.wire.agent import (
    AbortRequest,
    AgentConfig,
    ApplyEvent,
    ApplyRequest,
    DeploymentRecord,
    DeploymentStatus,
    DestroyRequest,
    Done,
    FaultReport,
    Handshake,
    Heartbeat,
    HostAddress,
    Instruction,
    InstructionReply,
    ModelHolding,
    ModelManifest,
    ModelQuery,
    RangeRequest,
    RunReport,
    StoreReply,
    StoreRequest,
    UploadReply,
)
from agent.wire.gateway import BackendReport, CancelRequest, RequestReport, RequestView
from agent.wire.history import GenerationHistory
from agent.wire.host import EndProcess, RestartAgent
from agent.wire.probe import LinkReport, ProbeDevices, ProbeLinks, ProbeModel

log = logging.getLogger(__name__)

CONTROLLER_SILENT_S = 1.5
QUIET_WAIT_S = 60.0
"""How long an apply waits for a recovery or a rebuild of its deployment to end."""
WATCH_RESTART_S = 1.0
RUNNING_KEY = "agent/running"
LEFT_BEHIND_INTERVAL_S = 3.0
KEPT_PROBE_MEETINGS = 2


class Supervisor:
    """One host's agent, without its planes. `run` must be entered before anything is asked of it."""

    def __init__(
        self,
        config: AgentConfig,
        *,
        journal: Journal,
        client: ClusterClient,
        make_handshake: Callable[[], Handshake],
        collect_facts: Callable[[], HostFacts],
    ) -> None:
        self._config = config
        self._journal = journal
        self._make_handshake = make_handshake
        self._collect_facts = collect_facts
        self._paths = HostPaths(Path(config.prefix))
        self._processes = ProcessTable(self._paths, on_exit=self._note_exit)
        self._ranks = RankTable(config, self._paths, self._processes)
        self._gateways = GatewayTable(config, self._paths, self._processes)
        self._members = MemberTable(config.host, journal)
        self._weights = WeightStore(config, self._paths, client)
        self._accuracy = AccuracyChecks(config, self._paths, self._weights)
        self._probes = Probes(config, self._paths, journal, serving=self._served_deployments)
        self._store = RendezvousStore()
        self._state = ControllerState(journal)
        self._faults = FaultBook(journal)
        self._outcomes = OutcomeBook(journal)
        self._runs = RunBook(journal)
        self._history = HistoryBook(journal, host=config.host)
        self._member = Member(
            ranks=self._ranks,
            gateways=self._gateways,
            members=self._members,
            weights=self._weights,
            on_fenced=self._leave_to,
            on_forgotten=self._drop_state,
        )
        self._reach = Reach(config.host, self._member.perform, client)
        self._reach.learn([self.own_address])
        self._watches: dict[str, DeploymentWatch] = {}
        self._watch_tasks: dict[str, asyncio.Task[None]] = {}
        self._applies: dict[str, Transaction] = {}
        self._recoveries: dict[str, Recovery] = {}
        self._demolitions: dict[str, Demolition] = {}
        self._controllers_heard: dict[str, float] = {}
        self._probe_ids: list[str] = []
        self._started_at_s = time.time()
        self._group: asyncio.TaskGroup | None = None
        self._was_killed = journal.get_state(RUNNING_KEY) is not None
        """The agent before this one had no time to say that it ends."""

    @property
    def own_address(self) -> HostAddress:
        config = self._config
        return HostAddress(host=config.host, address=config.cluster_address, port=config.cluster_port)

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Adopt what an earlier agent left, then watch until cancelled. Ranks and gateways live on after it."""
        self._journal.put_state(RUNNING_KEY, b"1")
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                for record in self._processes.adopt_all():
                    exit_event = ProcessExit(
                        record=record,
                        was_expected=False,
                        evidence={"pid": record.pid, "exit_status": "unknown: it ended while no agent ran"},
                    )
                    self._note_exit(exit_event)
                # What is adopted is asked first, so that the first heartbeat says how it is.
                await asyncio.gather(self._ranks.look(), self._gateways.look())
                self._recover_applies()
                for name in self._state.names():
                    if name not in self._recoveries:
                        self._watch(name)
                group.create_task(self._ranks.watch())
                group.create_task(self._gateways.watch())
                group.create_task(self._watch_controllers())
                group.create_task(self._tell_left_behind())
                if self._was_killed:
                    self._record_own_death()
                on_ready()
        finally:
            self._processes.close()
            self._journal.delete_state(RUNNING_KEY)

    def own_processes(self) -> Iterable[OwnProcess]:
        """For telemetry: ranks and gateways of this host."""
        for record in self._processes.all():
            yield OwnProcess(
                pid=record.pid,
                role=record.role,
                name=record.name,
                deployment=record.deployment,
                rank_id=record.rank_id,
            )

    # --- Control ------------------------------------------------------------------------------------

    def handshake(self) -> Handshake:
        return self._make_handshake()

    async def facts(self) -> HostFacts:
        return await asyncio.to_thread(self._collect_facts)

    async def holdings(self) -> tuple[ModelHolding, ...]:
        return await self._weights.holdings()

    async def manifest(self, query: ModelQuery) -> ModelManifest:
        return await self._weights.manifest(query)

    async def check(self, request: CheckModel) -> AccuracyReport:
        return await self._accuracy.check(request)

    async def probes(self) -> ProbeRecord:
        return self._probes.record(await self.facts())

    async def probe(self, request: ProbeDevices) -> HostProbe:
        return await self._probes.measure_devices(request, await self.facts())

    async def probe_model(self, request: ProbeModel) -> HostProbe:
        return await self._probes.measure_model(request, await self.facts())

    async def probe_links(self, order: ProbeLinks) -> LinkReport:
        """Others may still need the end of a rendezvous that this agent keeps: the last few are not dropped yet."""
        self._reach.learn(address for address in order.members if address.host != self._config.host)
        try:
            return await self._probes.measure_links(order)
        finally:
            if order.keeper == self._config.host:
                self._probe_ids.append(order.probe_id)
                for probe_id in self._probe_ids[:-KEPT_PROBE_MEETINGS]:
                    self._store.forget(f"{probe_id}/")
                del self._probe_ids[:-KEPT_PROBE_MEETINGS]

    async def ranges(self, request: RangeRequest) -> tuple[str, AsyncIterator[bytes]]:
        return await self._weights.ranges(request)

    async def upload(self, digest: str, file: str, offset: int, chunks: AsyncIterator[bytes]) -> UploadReply:
        return await self._weights.upload(digest, file, offset, chunks)

    def deployments(self) -> tuple[DeploymentRecord, ...]:
        return self._members.all()

    async def deployment(self, name: str) -> DeploymentStatus:
        """Raises E701 when another agent decides for it, naming that one, or when nobody knows it."""
        watch = self._watched(name)
        if watch.plan.gateway_host == self._config.host:
            await self._gateways.look()
        apply = self._applies.get(name)
        return msgspec.structs.replace(watch.status(), apply_phase=apply.phase if apply else None)

    async def requests(self, deployment: str) -> RequestReport:
        """What is in flight at its gateway. Raises E701 as `deployment` does, E206 or E808 without a gateway."""
        return await in_flight.list_requests(self._reach, self._watched(deployment).plan)

    async def cancel_request(self, order: CancelRequest) -> RequestView:
        """Raises as `requests` does, and E125 for a request that is not in flight."""
        watch = self._watched(order.deployment)
        return await in_flight.cancel_request(self._reach, self._journal, watch.plan, watch.controlled, order)

    def _watched(self, name: str) -> DeploymentWatch:
        watch = self._watches.get(name)
        if watch is None:
            record = self._members.get(name)
            where = f"its controller is {record.controller}" if record else "nothing of that name runs here"
            raise FleetError("E701", f"deployment {name}: {where}", host=self._config.host)
        return watch

    async def faults(self) -> FaultReport:
        return FaultReport(faults=self._faults.all())

    def lessons(self) -> Lessons:
        return self._outcomes.lessons()

    def runs(self) -> RunReport:
        return RunReport(runs=self._runs.all())

    def history(self) -> GenerationHistory:
        return self._history.all()

    async def apply(self, request: ApplyRequest) -> AsyncIterator[ApplyEvent]:
        """Start the transaction, or join the one under way when it is of the same plan. E501 otherwise."""
        plan = plan_from_toml(request.plan_toml, file="plan.toml")
        finished = await self._wait_until_quiet(plan.name, request)
        if finished is not None:
            yield finished
            return
        running = self._applies.get(plan.name)
        if running is None:
            progress = self._start_apply(request)
        elif running.plan_hash == request.plan_hash:
            progress = running.join(request)
        else:
            raise FleetError(
                "E501",
                f"an apply of {plan.name} by {running.holder} is in phase {running.phase}",
                hint="wait for it to end",
                host=self._config.host,
            )
        async for event in progress.follow():
            yield event

    async def abort(self, request: AbortRequest) -> Done:
        running = self._applies.get(request.deployment)
        if running is None:
            raise FleetError("E701", f"no apply of {request.deployment} is under way here", host=self._config.host)
        if running.abort():
            return Done(message="it will roll back")
        return Done(message="it has switched already and goes on")

    async def destroy(self, request: DestroyRequest) -> AsyncIterator[ApplyEvent]:
        """Stop the deployment on every member. A member out of reach is named; it keeps its fence."""
        name = request.deployment
        if name in self._applies:
            raise FleetError("E501", f"an apply of {name} is under way", hint="wait, or abort it first")
        demolition = self._demolitions.get(name)
        if demolition is None:
            record = self._members.get(name)
            if record is None:
                raise FleetError("E701", f"deployment {name} is not known here", host=self._config.host)
            demolition = Demolition(record, host=self._config.host, reach=self._reach)
            self._demolitions[name] = demolition
            self._tasks.create_task(self._demolish(demolition, record, request.holder))
        async for event in demolition.progress.follow():
            yield event

    async def instruct(self, instruction: Instruction) -> InstructionReply:
        return await self._member.perform(instruction)

    async def store(self, request: StoreRequest) -> StoreReply:
        """Serve the rendezvous store, or pass the request on to the controller that keeps it."""
        if request.controller in ("", self._config.host):
            return await self._store.perform(request)
        self._reach.learn(self._members.addresses(request.keys[0].split("/", 1)[0]))
        return await self._reach.store(request.controller, request)

    async def report(self, report: BackendReport) -> Done:
        """A gateway lost its backend. The heartbeats carry it to the controller; here it is evidence."""
        record = self._members.get(report.deployment)
        self._journal.append(
            "BackendBroken",
            deployment=report.deployment,
            generation=report.generation,
            plan_hash=record.plan_hash if record else "",
            body=report,
        )
        return Done()

    def heartbeat(self, controller: str) -> Heartbeat:
        if controller and controller != self._config.host:
            self._controllers_heard[controller] = time.monotonic()
        return Heartbeat(
            host=self._config.host,
            boot_id=read_boot_id(),
            started_at_s=self._started_at_s,
            at_s=time.time(),
            ranks=self._ranks.statuses(),
            unheard_ranks=self._ranks.unheard(),
            dead_ranks=tuple(self._ranks.dead.values()),
            gateways=self._gateways.running(),
            backends=self._gateways.backends(),
            dead_gateways=dict(self._gateways.died),
            was_killed=self._was_killed,
        )

    def end_process(self, order: EndProcess, sample: HostSample) -> Done:
        own = {os.getpid(), *(process.pid for process in self.own_processes())}
        return end_foreign(
            order,
            host=self._config.host,
            devices=sample.devices,
            own_pids=frozenset(own),
            journal=self._journal,
        )

    def restart(self, order: RestartAgent) -> Done:
        return restart_agent(order, host=self._config.host, paths=self._paths, journal=self._journal)

    def log_path(self, name: str) -> Path:
        return self._paths.log(name)

    def log_names(self) -> tuple[str, ...]:
        return tuple(sorted(path.stem for path in self._paths.logs.glob("*.log")))

    # --- applies ------------------------------------------------------------------------------------

    def _start_apply(self, request: ApplyRequest) -> ProgressLog:
        plan = plan_from_toml(request.plan_toml, file="plan.toml")
        transaction = Transaction(
            request,
            plan,
            host=self._config.host,
            reach=self._reach,
            state=self._state,
            journal=self._journal,
            old_record=self._members.running(plan.name, told=request.running),
            on_switched=self._take_over,
        )
        self._applies[plan.name] = transaction
        self._tasks.create_task(self._run_apply(plan.name, transaction))
        return transaction.progress

    async def _run_apply(self, name: str, transaction: Transaction) -> None:
        try:
            await transaction.run()
        finally:
            del self._applies[name]

    async def _demolish(self, demolition: Demolition, record: DeploymentRecord, holder: str) -> None:
        name = record.name
        self._unwatch(name)
        try:
            lost = await demolition.run()
            self._drop_state(name)
            self._journal.append(
                "Destroyed",
                deployment=name,
                generation=record.generation,
                plan_hash=record.plan_hash,
                body={"holder": holder, "out_of_reach": list(lost)},
            )
            await demolition.end(lost)
        finally:
            del self._demolitions[name]

    def _drop_state(self, name: str) -> None:
        """This agent decides no longer for that deployment."""
        self._unwatch(name)
        self._state.delete(name)
        self._state.end_apply(name)
        self._faults.close_all(name)
        self._store.forget(f"{name}/")

    async def _wait_until_quiet(self, name: str, request: ApplyRequest) -> ApplyEvent | None:
        """Let a recovery or a rebuild of the deployment end first. The last event of an apply whose recovery has
        done all that this request asks for. Raises E501 when it takes too long.
        """
        recovery = self._recoveries.get(name)
        watch = self._watches.get(name)
        try:
            async with asyncio.timeout(QUIET_WAIT_S):
                if recovery is not None:
                    await recovery.is_over.wait()
                if watch is not None:
                    await watch.wait_until_still()
        except TimeoutError as error:
            what = "an interrupted apply is being recovered" if recovery is not None else "it is being healed"
            why = f": {recovery.trouble}" if recovery is not None and recovery.trouble else ""
            raise FleetError(
                "E501", f"deployment {name}: {what}{why}", hint="odctl status shows it", host=self._config.host
            ) from error
        if recovery is None or not recovery.went_forward:
            return None
        done = recovery.pending
        if (done.after_switch.plan_hash, done.generation) != (request.plan_hash, request.expected_generation + 1):
            return None
        return ApplyEvent(
            phase="done",
            state="finished",
            message="serving: the interrupted apply had switched and was finished",
            at_s=time.time(),
            generation=done.generation,
            checked=done.after_switch.checked,
        )

    async def _take_over(self, controlled: Controlled) -> None:
        """The switch is done: from here on the new layout is what is watched."""
        plan = plan_from_toml(controlled.plan_toml, file="plan.toml")
        self._unwatch(plan.name)
        self._faults.close_all(plan.name)
        self._watch(plan.name, is_new=True)

    def _recover_applies(self) -> None:
        for pending in self._state.interrupted_applies():
            recovery = Recovery(
                pending,
                host=self._config.host,
                reach=self._reach,
                state=self._state,
                journal=self._journal,
                watch=self._watch,
            )
            self._recoveries[pending.deployment] = recovery
            self._tasks.create_task(self._run_recovery(recovery))

    async def _run_recovery(self, recovery: Recovery) -> None:
        try:
            await recovery.run()
        finally:
            del self._recoveries[recovery.pending.deployment]

    # --- watching -----------------------------------------------------------------------------------

    def _watch(self, name: str, *, is_new: bool = False) -> None:
        controlled = self._state.get(name)
        assert controlled is not None, f"{name} is not under this controller"
        watch = DeploymentWatch(
            controlled,
            host=self._config.host,
            reach=self._reach,
            state=self._state,
            faults=self._faults,
            outcomes=self._outcomes,
            runs=self._runs,
            history=self._history,
            own_heartbeat=lambda: self.heartbeat(self._config.host),
            is_apply_pending=lambda: self._is_apply_pending(name),
            is_new=is_new,
        )
        self._watches[name] = watch
        self._watch_tasks[name] = self._tasks.create_task(self._keep_watching(name, watch))

    def _is_apply_pending(self, name: str) -> bool:
        """Here, or on another controller whose lock this host has given."""
        apply = self._applies.get(name)
        return apply.is_before_commit if apply is not None else self._members.is_locked(name)

    async def _keep_watching(self, name: str, watch: DeploymentWatch) -> None:
        """A fault in our own watching must end neither the agent nor the watch: it is logged, and goes on."""
        while True:
            try:
                await watch.run()
            except Exception:
                log.exception("watch failed", extra={"deployment": name})
                await asyncio.sleep(WATCH_RESTART_S)

    def _unwatch(self, name: str) -> None:
        self._watches.pop(name, None)
        task = self._watch_tasks.pop(name, None)
        if task is not None:
            task.cancel()

    def _leave_to(self, record: DeploymentRecord) -> None:
        """A commit named another controller: this agent decides no longer."""
        if record.controller != self._config.host and record.name in self._watches:
            self._drop_state(record.name)

    async def _tell_left_behind(self) -> None:
        """Hosts that missed the end of a layout learn of it when they are back."""
        while True:
            for name, left in self._state.left_behind().items():
                if name not in self._applies:
                    still_left = await tell_left_behind(self._reach, left)
                    if name not in self._applies:
                        self._state.leave_behind(name, still_left)
            await asyncio.sleep(LEFT_BEHIND_INTERVAL_S)

    async def _watch_controllers(self) -> None:
        """Members watch their controllers too: when one falls silent, somebody must have seen it."""
        silent: set[str] = set()
        while True:
            now = time.monotonic()
            watched = {
                record.controller
                for record in self._members.all()
                if record.generation and record.controller != self._config.host
            }
            for controller in watched:
                silence = now - self._controllers_heard.setdefault(controller, now)
                if silence >= CONTROLLER_SILENT_S and controller not in silent:
                    silent.add(controller)
                    self._record_silent_controller(controller, silence)
                elif silence < CONTROLLER_SILENT_S and controller in silent:
                    silent.discard(controller)
                    for record in self._members.all():
                        if record.controller == controller:
                            self._faults.close(record.name, (FaultKey("agent_lost", controller),))
            await asyncio.sleep(0.25)

    def _record_own_death(self) -> None:
        """Its deployments went unwatched meanwhile, and its members may have been too slow to see that."""
        for name, watch in self._watches.items():
            now = time.time()
            fault = Fault(
                fault_id=uuid.uuid4().hex[:12],
                kind="agent_lost",
                severity="warning",
                observed_at_s=now,
                observed_by=self._config.host,
                host=self._config.host,
                deployment=name,
                generation=watch.controlled.generation,
                message=f"the controller {self._config.host} was killed and started again; ranks served on",
                evidence={"agent": "killed, and started again"},
                healed_at_s=now,
            )
            self._faults.record(fault, plan_hash=watch.controlled.plan_hash)

    def _record_silent_controller(self, controller: str, silence_s: float) -> None:
        for record in self._members.all():
            if record.controller != controller:
                continue
            fault = Fault(
                fault_id=f"{record.name}-{controller}-{int(time.time())}",
                kind="agent_lost",
                severity="warning",
                observed_at_s=time.time(),
                observed_by=self._config.host,
                host=controller,
                deployment=record.name,
                generation=record.generation,
                message=f"the controller {controller} is silent for {silence_s:.1f} s; ranks serve on unwatched",
                evidence={"silence_s": round(silence_s, 3)},
                way_out=f"odctl bootstrap {controller}",
            )
            self._faults.record(fault, plan_hash=record.plan_hash)

    def _served_deployments(self) -> list[str]:
        return [record.deployment for record in self._processes.all() if record.role == "rank"]

    def _note_exit(self, event: ProcessExit) -> None:
        if event.record.role == "rank":
            self._ranks.note_exit(event)
        else:
            self._gateways.note_exit(event)

    @property
    def _tasks(self) -> asyncio.TaskGroup:
        assert self._group is not None, "the supervisor does not run yet"
        return self._group
