"""A predicted quantity with its uncertainty. Pure; no numpy, for every agent reads plans."""

from __future__ import annotations

import math

import msgspec


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """Four in five measured values should lie between `low` and `high`; equal where nothing is known of them."""

    low: float
    expected: float
    high: float

    def __post_init__(self) -> None:
        assert self.low <= self.expected <= self.high, f"{self.low} <= {self.expected} <= {self.high} does not hold"

    @property
    def log_width(self) -> float:
        """Logarithm of `high / low`: 0 for a certain figure."""
        return math.log(self.high / self.low)
