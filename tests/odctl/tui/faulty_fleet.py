"""Three hosts whose journals tell of a killed rank that was healed, and of what a test adds to that."""

from __future__ import annotations

import msgspec

from odctl.fleet import FleetSnapshot
from odctl.timeline import HostJournal
from tests.odctl.timeline.events import Journals, killed_rank
from tests.odctl.tui import frozen_fleet as frozen

HOSTS = ("h1", "h2", "h3")


def snapshot(told: Journals | None = None, **changes: object) -> FleetSnapshot:
    """Everything began at T0, 15 minutes before the frozen clock's now."""
    journals = (told or killed_rank()).read()
    hosts = tuple(frozen.host(name, journal=journals.get(name, HostJournal())) for name in HOSTS)
    found = FleetSnapshot(
        cluster="lab", taken_at_s=frozen.NOW_S, hosts=hosts, deployments=(frozen.deployment(),), faults=()
    )
    return msgspec.structs.replace(found, **changes)


def with_host(found: FleetSnapshot, name: str, **changes: object) -> FleetSnapshot:
    """The same fleet with one host changed."""
    hosts = tuple(msgspec.structs.replace(host, **changes) if host.name == name else host for host in found.hosts)
    return msgspec.structs.replace(found, hosts=hosts)
