"""Moments in the order of their time, each with its snapshot."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Protocol

from odctl.fleet import FleetSnapshot


class Timeline(Protocol):
    @property
    def times(self) -> Sequence[float]:
        """Seconds since the epoch, ascending; a snapshot each."""
        ...

    @property
    def step_s(self) -> float:
        """Seconds between two moments as they were meant to be; much more is a gap."""
        ...

    def snapshot_at(self, at_s: float) -> FleetSnapshot:
        """The last one at or before that time, or else the first. Raises FleetError where it cannot be read."""
        ...


def index_at(times: Sequence[float], at_s: float) -> int:
    """The last moment at or before that time, or else the first. There must be one."""
    assert times, "a timeline without a moment"
    return max(0, bisect_right(times, at_s) - 1)
