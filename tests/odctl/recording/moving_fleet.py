"""A fleet that moves: hosts come, go, fall silent and come back; a deployment serves, heals and is taken away.

Invented for these tests, and consistent with each other.
"""

from __future__ import annotations

import msgspec

from agent.errors import ErrorDetail
from agent.facts.fault import Fault
from agent.wire.agent import DeploymentStatus
from odctl.fleet import FleetSnapshot, HostView
from odctl.fleet.history import DeploymentRow, History, HostRow, host_row
from odctl.fleet.snapshot import DeploymentView
from tests.odctl.fleet import values
from tests.odctl.tui import frozen_fleet as frozen

START_S = frozen.NOW_S


class MovingFleet:
    """`next` is the fleet a second later."""

    def __init__(self, *, num_hosts: int = 4, past_rows: int = 70) -> None:
        self.at_s = START_S
        self.second = 0
        self._names = [f"h{index:02d}" for index in range(num_hosts)]
        self._histories: dict[str, History[HostRow]] = {}
        for name in self._names:
            history: History[HostRow] = History()
            for second in range(past_rows):
                history = history.append(host_row(values.sample(name, at_s=START_S - past_rows + second)))
            self._histories[name] = history
        self._rows: History[DeploymentRow] = History()
        self._views: dict[str, HostView] = {}
        self._received_s: dict[str, float] = {}
        self._status = frozen.status()
        self._record = frozen.deployment().record

    def next(self) -> FleetSnapshot:
        self.second += 1
        self.at_s += 1.0
        hosts = [self._host(name) for name in self._names]
        if self.second >= 40:
            hosts.append(self._late_host())
        if self.second >= 70:
            hosts = hosts[1:]
        return FleetSnapshot(
            cluster="lab",
            taken_at_s=self.at_s,
            hosts=tuple(hosts),
            deployments=self._deployments(),
            faults=self._faults(),
        )

    def _host(self, name: str) -> HostView:
        index = self._names.index(name)
        if index == 1 and 20 <= self.second < 35:
            # Silent: what came last stays, and ages.
            held = self._views[name]
            age_s = self.at_s - self._received_s[name]
            state = "stale" if age_s < 8 else "lost"
            return msgspec.structs.replace(
                held, state=state, sample_age_s=age_s, reason=f"no sample for {age_s:.0f} s"
            )
        sample = values.sample(name, at_s=self.at_s - 0.25, cpu=(self.second % 10) / 10)
        if index == 0:
            sample = msgspec.structs.replace(sample, devices=(*sample.devices, frozen.gpu(0), frozen.gpu(1)))
        self._histories[name] = self._histories[name].append(host_row(sample))
        self._received_s[name] = self.at_s - 0.125
        view = HostView(
            name=name,
            state="live",
            facts=frozen.gpu_facts(name) if index == 0 else values.facts(name),
            handshake=values.handshake(name),
            sample=sample,
            sample_age_s=self.at_s - self._received_s[name],
            history=self._histories[name],
            records=(self._record,) if index == 0 else (),
        )
        self._views[name] = view
        return view

    def _late_host(self) -> HostView:
        return HostView(name="late", state="connecting", reason="waiting for the first sample")

    def _deployments(self) -> tuple[DeploymentView, ...]:
        if self.second >= 90:
            return ()
        if self.second % 2 == 0:
            self._status = self._counted(self._status)
            self._rows = self._rows.append(
                DeploymentRow(at_s=self.at_s, tokens_per_s=float(self.second), running=2, queued=0)
            )
        if self.second == 60:
            self._rows = History()  # it was taken away and deployed anew
        error = ErrorDetail(code="E211", message="silent") if 50 <= self.second < 55 else None
        return (
            DeploymentView(name="chat", record=self._record, status=self._status, error=error, history=self._rows),
        )

    def _counted(self, status: DeploymentStatus) -> DeploymentStatus:
        assert status.backend is not None
        backend = msgspec.structs.replace(status.backend, generated_tokens=status.backend.generated_tokens + 57)
        return msgspec.structs.replace(status, backend=backend, state="healing" if self.second == 44 else "serving")

    def _faults(self) -> tuple[Fault, ...]:
        if self.second < 30:
            return ()
        fault = msgspec.structs.replace(frozen.faults()[0], observed_at_s=START_S + 30)
        healed = msgspec.structs.replace(fault, healed_at_s=START_S + 45) if self.second >= 45 else fault
        return (healed,)


def moments(count: int, *, num_hosts: int = 4) -> list[FleetSnapshot]:
    """So many seconds of it."""
    fleet = MovingFleet(num_hosts=num_hosts)
    return [fleet.next() for _ in range(count)]
