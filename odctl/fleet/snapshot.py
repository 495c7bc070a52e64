"""The whole fleet at one moment, as frozen values. No I/O, no clock: every age is reckoned when it is taken."""

from __future__ import annotations

from typing import Literal

import msgspec

from agent.errors import ErrorDetail
from agent.facts.cluster import HostFacts
from agent.facts.fault import Fault
from agent.facts.probe import ProbeRecord
from agent.facts.sample import HostSample
from agent.wire.agent import DeploymentRecord, DeploymentStatus, Handshake
from odctl.fleet.digest import HostDigest
from odctl.fleet.flow import DeploymentFlow
from odctl.fleet.history import DeploymentRow, History, HostRow
from odctl.timeline.journal import HostJournal

HostState = Literal["connecting", "live", "stale", "lost", "unreachable"]
STALE_AFTER_S = 3.5
"""Agents sample once a second; three missed samples and a half are silence, not jitter."""


class HostView(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One host as we see it.

    live: samples arrive. stale: connected, but silent. lost: answered before, does not now; the last values stay.
    unreachable: never answered. Values of a host that is not live are as old as `sample_age_s` says.
    """

    name: str
    state: HostState
    reason: str = ""
    way_out: str = ""
    facts: HostFacts | None = None
    handshake: Handshake | None = None
    sample: HostSample | None = None
    sample_age_s: float = 0.0
    history: History[HostRow] = History()
    records: tuple[DeploymentRecord, ...] = ()
    probes: ProbeRecord | None = None
    """What `odctl probe` last found there; None where the agent has not told yet."""
    digest: HostDigest | None = None
    """The sample over all its devices; None where whoever made this view left it to the reader."""
    journal: HostJournal = HostJournal()
    """Its agent's events that tell of trouble."""


class DeploymentView(msgspec.Struct, frozen=True, kw_only=True):
    """A deployment: its controller's word, or why there is none (`error`) with the last word kept."""

    name: str
    record: DeploymentRecord
    status: DeploymentStatus | None = None
    error: ErrorDetail | None = None
    history: History[DeploymentRow] = History()
    flow: DeploymentFlow | None = None
    """What its ranks and links did over the last seconds; None before two looks could be compared."""


class FleetSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Hosts and deployments by name; faults open first, then newest first."""

    cluster: str
    taken_at_s: float
    hosts: tuple[HostView, ...]
    deployments: tuple[DeploymentView, ...] = ()
    faults: tuple[Fault, ...] = ()

    def host(self, name: str) -> HostView | None:
        return next((host for host in self.hosts if host.name == name), None)

    def deployment(self, name: str) -> DeploymentView | None:
        return next((deployment for deployment in self.deployments if deployment.name == name), None)


def sorted_faults(faults: dict[str, Fault]) -> tuple[Fault, ...]:
    """Open before healed, then newest first; the id settles ties so that equal facts give equal order."""
    return tuple(
        sorted(
            faults.values(),
            key=lambda fault: (fault.healed_at_s is not None, -fault.observed_at_s, fault.fault_id),
        )
    )
