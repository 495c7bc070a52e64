"""A live session's memory: how far back it goes, and what it takes."""

from __future__ import annotations

import sys
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from odctl.fleet import FleetSnapshot
from odctl.recording import SnapshotRing
from odctl.recording.ring import new_bytes
from tests.odctl.recording.moving_fleet import MovingFleet, moments
from tests.odctl.tui import frozen_fleet as frozen


def test_it_goes_back_over_its_span_and_no_further() -> None:
    ring = SnapshotRing(step_s=1.0, span_s=30.0)
    snapshots = moments(50)
    for snapshot in snapshots:
        ring.append(snapshot)
    assert list(ring.times) == [snapshot.taken_at_s for snapshot in snapshots[-31:]]
    assert ring.latest is snapshots[-1]
    assert ring.snapshot_at(snapshots[40].taken_at_s + 0.5) is snapshots[40]
    assert ring.snapshot_at(0.0) is snapshots[-31], "before all it knows: the first"


def test_it_keeps_its_span_within_its_bytes_by_larger_steps() -> None:
    fleet = MovingFleet(num_hosts=3)
    ring = SnapshotRing(step_s=1.0, span_s=900.0, max_bytes=400_000)
    largest = 0
    for _ in range(300):
        ring.append(fleet.next())
        largest = max(largest, ring.num_bytes)
    times = ring.times
    assert largest <= 400_000
    assert times[-1] - times[0] == 299.0, "the oldest moment is still there"
    steps = [after - before for before, after in pairwise(times)]
    assert steps[-20:] == [1.0] * 20, "the latest moments are all there"
    assert max(steps) > 1.0
    assert len(times) > 30


def test_a_moment_that_is_not_later_takes_the_place_of_the_last() -> None:
    ring = SnapshotRing(step_s=1.0)
    first = frozen.snapshot()
    again = frozen.snapshot(faults=())
    ring.append(first)
    ring.append(again)
    assert list(ring.times) == [frozen.NOW_S]
    assert ring.latest is again
    assert ring.num_bytes == new_bytes(None, again)


@pytest.mark.parametrize("num_hosts", [3, 12])
def test_its_bytes_are_about_those_that_python_takes(num_hosts: int) -> None:
    fleet = MovingFleet(num_hosts=num_hosts)
    before = fleet.next()
    now = fleet.next()
    seen: set[int] = set()
    _deep_bytes(before, seen)
    real = _deep_bytes(now, seen)
    assert 0.5 < new_bytes(before, now) / real < 2.0, (new_bytes(before, now), real)


def test_a_large_fleet_is_reckoned_from_some_of_its_hosts() -> None:
    base = frozen.host("base")
    hosts = tuple(msgspec.structs.replace(base, name=f"h{index:05d}") for index in range(3000))
    large = FleetSnapshot(cluster="lab", taken_at_s=frozen.NOW_S, hosts=hosts)
    small = FleetSnapshot(cluster="lab", taken_at_s=frozen.NOW_S, hosts=hosts[:100])
    assert new_bytes(None, large) == pytest.approx(30 * new_bytes(None, small), rel=0.05)


def _deep_bytes(value: Any, seen: set[int]) -> int:
    """Bytes of a value and all that it holds, each object once; names and other shared strings are free."""
    if id(value) in seen or value is None or isinstance(value, bool | str | type):
        return 0
    seen.add(id(value))
    size = sys.getsizeof(value)
    if isinstance(value, msgspec.Struct):
        return size + sum(_deep_bytes(getattr(value, name), seen) for name in value.__struct_fields__)
    if isinstance(value, tuple | list):
        return size + sum(_deep_bytes(each, seen) for each in value)
    if isinstance(value, dict):
        return size + sum(_deep_bytes(each, seen) for each in value.values())
    if hasattr(value, "chunks") or type(value).__name__ == "History":
        return size + _deep_bytes(value._chunks, seen) + _deep_bytes(value._tail, seen)
    return size
