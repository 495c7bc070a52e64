"""Watches every host of a fleet and gives one snapshot a second.

Each host has a sample stream of its own that reconnects by itself, so that one dead host costs the others nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

from agent.errors import ErrorDetail, FleetError
from agent.facts.cluster import HostFacts
from agent.facts.fault import Fault
from agent.facts.probe import ProbeRecord
from agent.facts.sample import HostSample
from agent.wire.agent import DeploymentRecord, DeploymentStatus, FaultReport, Handshake
from odctl.fleet.clock import Clock
from odctl.fleet.connection import Fleet
from odctl.fleet.digest import HostDigest, host_digest
from odctl.fleet.flow import DeploymentFlow, flow_between
from odctl.fleet.history import HISTORY_S, DeploymentRow, History, HostRow, deployment_row, host_row
from odctl.fleet.journals import JournalTail
from odctl.fleet.snapshot import (
    STALE_AFTER_S,
    DeploymentView,
    FleetSnapshot,
    HostState,
    HostView,
    sorted_faults,
)
from odctl.ssh.failures import connection_lost

TICK_S = 1.0
RECONNECT_FIRST_S = 1.0
RECONNECT_MAX_S = 15.0
POLL_S = 2.0
FLOW_S = 10.0
"""Rates of deployments are over about this long."""
HOSTS_PER_POLL_S = 50
PROBES_POLL_S = 10.0
"""Polls slow down with the fleet: this many hosts are asked for deployments and faults a second."""
POLL_TIMEOUT_S = 5.0
SETTLE_POLL_S = 0.05


class _HostWatch:
    """What is known of one host so far."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.error: FleetError | None = None
        self.poll_error: FleetError | None = None
        self.is_connected = asyncio.Event()
        self.is_polled = False
        """Whether it told its deployments and faults, or why it does not."""
        self.facts: HostFacts | None = None
        self.handshake: Handshake | None = None
        self.sample: HostSample | None = None
        self.received_at_s = 0.0
        self.history: History[HostRow] = History()
        self.records: tuple[DeploymentRecord, ...] = ()
        self.faults: tuple[Fault, ...] = ()
        self.probes: ProbeRecord | None = None
        self._digest: HostDigest | None = None
        self.journal = JournalTail(name)

    def take(self, sample: HostSample, now_s: float) -> None:
        """Keep a sample, unless a reconnect replayed it."""
        last = self.history.last
        self.error = None
        self.is_connected.set()
        self.journal.take_time(sent_s=sample.taken_at_s, received_s=now_s)
        if last is None or sample.taken_at_s > last.at_s:
            self.history = self.history.append(host_row(sample))
            self.sample = sample
            self.received_at_s = now_s
            self._digest = None

    def lose(self, error: FleetError) -> None:
        self.error = error
        self.is_connected.clear()
        self.journal.forget_place()

    def view(self, now_s: float) -> HostView:
        age_s = max(0.0, now_s - self.received_at_s) if self.sample else 0.0
        state, reason, way_out = self._state(age_s)
        if self._digest is None and self.sample is not None:
            # Here, not in `take`: of the minutes that a reconnect replays only the last sample is looked at.
            self._digest = host_digest(self.sample)
        return HostView(
            name=self.name,
            state=state,
            reason=reason,
            way_out=way_out,
            facts=self.facts,
            handshake=self.handshake,
            sample=self.sample,
            sample_age_s=age_s,
            history=self.history,
            records=self.records,
            probes=self.probes,
            digest=self._digest,
            journal=self.journal.view,
        )

    def _state(self, age_s: float) -> tuple[HostState, str, str]:
        if self.error is not None:
            state: HostState = "unreachable" if self.sample is None else "lost"
            return state, self.error.message, self.error.hint
        if self.sample is None:
            return "connecting", "waiting for the first sample", ""
        if age_s > STALE_AFTER_S:
            return "stale", f"no sample for {age_s:.0f} s", ""
        if self.poll_error is not None:
            return "live", f"deployments and faults unknown: {self.poll_error.message}", self.poll_error.hint
        return "live", "", ""


class _DeploymentWatch:
    def __init__(self, record: DeploymentRecord) -> None:
        self.record = record
        self.status: DeploymentStatus | None = None
        self.error: ErrorDetail | None = None
        self.history: History[DeploymentRow] = History()
        self.flow: DeploymentFlow | None = None
        self._looks: deque[tuple[float, DeploymentStatus]] = deque()
        """Those of the last `FLOW_S` seconds and the one before them, oldest first."""

    def take(self, status: DeploymentStatus, now_s: float) -> None:
        self.status, self.error = status, None
        while len(self._looks) > 1 and self._looks[1][0] <= now_s - FLOW_S:
            self._looks.popleft()
        if self._looks and self._looks[0][0] >= now_s - FLOW_S - POLL_TIMEOUT_S:
            before_s, before = self._looks[0]
            self.flow = flow_between(before, status, span_s=now_s - before_s)
        else:
            self._looks.clear()
            self.flow = None
        self._looks.append((now_s, status))
        if status.backend is not None:
            self.history = self.history.append(deployment_row(status.backend, self.flow, at_s=now_s))

    def lose(self, error: ErrorDetail) -> None:
        """Its controller does not answer: rates of before are rates no more."""
        self.error, self.flow = error, None

    def view(self) -> DeploymentView:
        return DeploymentView(
            name=self.record.name,
            record=self.record,
            status=self.status,
            error=self.error,
            history=self.history,
            flow=self.flow,
        )


class FleetWatch:
    """The watch's state, and the loops that keep it. `snapshot` may be called at any time."""

    def __init__(self, fleet: Fleet, clock: Clock, *, history_s: float = HISTORY_S) -> None:
        """`history_s` is how much of its past each host is asked for at first."""
        self._fleet = fleet
        self._clock = clock
        self._history_s = history_s
        self._hosts = {name: _HostWatch(name) for name in fleet.hosts}
        self._deployments: dict[str, _DeploymentWatch] = {}
        self._poll_s = max(POLL_S, len(self._hosts) / HOSTS_PER_POLL_S)

    @property
    def is_settled(self) -> bool:
        """Whether every host has told all that is asked of it, or does not answer."""
        hosts = self._hosts.values()
        return all(host.error is not None or (host.sample is not None and host.is_polled) for host in hosts)

    def snapshot(self) -> FleetSnapshot:
        now_s = self._clock.now_s()
        faults = {fault.fault_id: fault for host in self._hosts.values() for fault in host.faults}
        return FleetSnapshot(
            cluster=self._fleet.cluster,
            taken_at_s=now_s,
            hosts=tuple(host.view(now_s) for host in self._hosts.values()),
            deployments=tuple(self._deployments[name].view() for name in sorted(self._deployments)),
            faults=sorted_faults(faults),
        )

    def start(self, group: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        """Start every loop in the group; they end only by being cancelled."""
        loops = [self._follow_samples(host) for host in self._hosts.values()]
        loops += [self._poll_host(host) for host in self._hosts.values()]
        loops += [self._poll_probes(host) for host in self._hosts.values()]
        loops.append(self._poll_deployments())
        return [group.create_task(loop) for loop in loops]

    async def _follow_samples(self, host: _HostWatch) -> None:
        wait_s = RECONNECT_FIRST_S
        while True:
            try:
                host.handshake = await self._fleet.get(host.name, "/v1/handshake", Handshake)
                host.facts = await self._fleet.get(host.name, "/v1/facts", HostFacts)
                async with aclosing(self._samples(host)) as samples:
                    async for sample in samples:
                        host.take(sample, self._clock.now_s())
                        wait_s = RECONNECT_FIRST_S
                host.lose(connection_lost(host.name, "the agent ended its sample stream"))
            except FleetError as error:
                host.lose(error)
            await self._clock.sleep(wait_s)
            wait_s = min(RECONNECT_MAX_S, wait_s * 2)

    def _samples(self, host: _HostWatch) -> AsyncGenerator[HostSample, None]:
        """The past that we lack (all of it at first), then live samples."""
        history_s = self._history_s
        if host.sample is not None:
            history_s = min(HISTORY_S, self._clock.now_s() - host.received_at_s + STALE_AFTER_S)
        return self._fleet.stream(
            host.name, "GET", f"/v1/samples?history_s={history_s:.0f}&follow=1", None, HostSample
        )

    async def _poll_host(self, host: _HostWatch) -> None:
        """Deployments and faults that this host knows, while it is connected."""
        while True:
            await host.is_connected.wait()
            try:
                host.records = await self._fleet.get(
                    host.name, "/v1/deployments", tuple[DeploymentRecord, ...], timeout_s=POLL_TIMEOUT_S
                )
                host.faults = await self._faults(host.name)
                host.poll_error = None
            except FleetError as error:
                # The sample stream alone judges a host's state; this is said beside it.
                host.poll_error = error
            for deployment in self._adopt_records():
                await self._ask_controller(deployment)
            await host.journal.read(self._fleet, now_s=self._clock.now_s())
            host.is_polled = True
            await self._clock.sleep(self._poll_s)

    async def _poll_probes(self, host: _HostWatch) -> None:
        """What was measured there. An agent that knows no probes has none: that is no trouble of the host."""
        while True:
            await host.is_connected.wait()
            with suppress(FleetError):
                host.probes = await self._fleet.get(host.name, "/v1/probes", ProbeRecord, timeout_s=POLL_TIMEOUT_S)
            await self._clock.sleep(max(PROBES_POLL_S, self._poll_s))

    async def _faults(self, host: str) -> tuple[Fault, ...]:
        report = await self._fleet.get(host, "/v1/faults", FaultReport, timeout_s=POLL_TIMEOUT_S)
        return report.faults

    async def _poll_deployments(self) -> None:
        """The controller's word on every deployment that any host knows."""
        while True:
            async with asyncio.TaskGroup() as group:
                for deployment in list(self._deployments.values()):
                    group.create_task(self._ask_controller(deployment))
            await self._clock.sleep(POLL_S)

    def _adopt_records(self) -> list[_DeploymentWatch]:
        """Keep the newest committed record of each name; drop those that no host knows. Returns the new ones."""
        newest: dict[str, DeploymentRecord] = {}
        for host in self._hosts.values():
            for record in host.records:
                if record.generation == 0:
                    continue  # locked for a first apply, and nothing committed yet
                if record.name not in newest or record.generation > newest[record.name].generation:
                    newest[record.name] = record
        for name in set(self._deployments) - set(newest):
            del self._deployments[name]
        added = {name: _DeploymentWatch(newest[name]) for name in newest if name not in self._deployments}
        self._deployments |= added
        for name, record in newest.items():
            self._deployments[name].record = record
        return list(added.values())

    async def _ask_controller(self, deployment: _DeploymentWatch) -> None:
        record = deployment.record
        try:
            status = await self._fleet.get(
                record.controller, f"/v1/deployments/{record.name}", DeploymentStatus, timeout_s=POLL_TIMEOUT_S
            )
        except FleetError as error:
            deployment.lose(error.detail)
        else:
            deployment.take(status, self._clock.now_s())


async def watch_fleet(
    fleet: Fleet, clock: Clock, *, history_s: float = HISTORY_S, settles_s: float = 0.0
) -> AsyncGenerator[FleetSnapshot, None]:
    """A snapshot at once, then one a second. Close the iterator (`aclosing`) to stop watching.

    With `settles_s` the first one waits, so long at most, until every host has answered or is known not to.
    """
    watch = FleetWatch(fleet, clock, history_s=history_s)
    async with asyncio.TaskGroup() as group:
        loops = watch.start(group)
        try:
            settled_by_s = clock.now_s() + settles_s
            while not watch.is_settled and clock.now_s() < settled_by_s:
                await clock.sleep(SETTLE_POLL_S)
            while True:
                yield watch.snapshot()
                await clock.sleep(TICK_S)
        except GeneratorExit:
            # The group would wrap it; closing an iterator is no error.
            return
        finally:
            for loop in loops:
                loop.cancel()
