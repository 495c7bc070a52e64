"""The last minutes of a fleet in memory, for going back in a live session. No I/O.

Snapshots are kept as they are, since they share what did not change. When they outgrow their limit, every second
one of the older half is let go: the time that can be gone back over stays, its steps grow.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from odctl.fleet import FleetSnapshot, HostView
from odctl.fleet.history import HISTORY_S
from odctl.recording.timeline import index_at

RING_BYTES = 192 * 1024 * 1024
SAMPLED_HOSTS = 40
"""Hosts that are looked at to reckon a snapshot's bytes; in a larger fleet, evenly chosen ones."""
VIEW_BYTES = 900
"""A host's view with its new history row, and a tail's pointers."""
SAMPLE_BYTES = 900
DEVICE_BYTES = 900
PART_BYTES = 260
"""A NIC, a disk or a process of a sample. These four are held against real objects by a test."""


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    snapshot: FleetSnapshot
    num_bytes: int
    """What it takes beside the one before it."""


class SnapshotRing:
    """A `Timeline` of the last `span_s` seconds, in at most about `max_bytes`."""

    def __init__(self, *, step_s: float, span_s: float = HISTORY_S, max_bytes: int = RING_BYTES) -> None:
        self.step_s = step_s
        self.span_s = span_s
        self.max_bytes = max_bytes
        self._kept: list[_Kept] = []
        self._num_bytes = 0

    @property
    def times(self) -> Sequence[float]:
        return [kept.snapshot.taken_at_s for kept in self._kept]

    @property
    def num_bytes(self) -> int:
        """As reckoned: what the snapshots take that nothing else would keep."""
        return self._num_bytes

    @property
    def latest(self) -> FleetSnapshot | None:
        return self._kept[-1].snapshot if self._kept else None

    def append(self, snapshot: FleetSnapshot) -> None:
        """Keep a later snapshot than all before. One that is not later takes the place of the last."""
        if self._kept and snapshot.taken_at_s <= self._kept[-1].snapshot.taken_at_s:
            self._num_bytes -= self._kept.pop().num_bytes
        before = self._kept[-1].snapshot if self._kept else None
        kept = _Kept(snapshot=snapshot, num_bytes=new_bytes(before, snapshot))
        self._kept.append(kept)
        self._num_bytes += kept.num_bytes
        while self._kept[0].snapshot.taken_at_s < snapshot.taken_at_s - self.span_s:
            self._num_bytes -= self._kept.pop(0).num_bytes
        while self._num_bytes > self.max_bytes and len(self._kept) > 2:
            self._thin()

    def snapshot_at(self, at_s: float) -> FleetSnapshot:
        return self._kept[index_at(self.times, at_s)].snapshot

    def _thin(self) -> None:
        """Let go of every second one of the older half, but the oldest."""
        older = max(2, len(self._kept) // 2)
        self._kept = [*self._kept[:older:2], *self._kept[older:]]
        self._num_bytes = sum(kept.num_bytes for kept in self._kept)


def new_bytes(before: FleetSnapshot | None, now: FleetSnapshot) -> int:
    """About what a snapshot takes in memory beside the one before it."""
    stride = max(1, len(now.hosts) // SAMPLED_HOSTS)
    earlier = before.hosts if before is not None else ()
    chosen = range(0, len(now.hosts), stride)
    counted = sum(
        _host_bytes(earlier[index] if index < len(earlier) else None, now.hosts[index]) for index in chosen
    )
    scale = len(now.hosts) / len(chosen) if chosen else 1.0
    return int(counted * scale) + VIEW_BYTES * (1 + len(now.deployments))


def _host_bytes(before: HostView | None, now: HostView) -> int:
    if now is before:
        return 8
    sample = now.sample
    if sample is None or (before is not None and before.sample is sample):
        return VIEW_BYTES
    parts = len(sample.nics) + len(sample.disks) + len(sample.processes)
    processes = sum(len(device.processes) for device in sample.devices)
    return VIEW_BYTES + SAMPLE_BYTES + DEVICE_BYTES * len(sample.devices) + PART_BYTES * (parts + processes)
