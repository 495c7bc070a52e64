"""Exponential moving averages that are right from the first value on. Pure."""

from __future__ import annotations

import math

import msgspec

RATE = 0.1
"""Weight of a new value: about the last 20 values count."""


class MovingAverage(msgspec.Struct, frozen=True, kw_only=True):
    """Mean and variance of a series, later values counting more.

    m_t = (1 - a) m_(t-1) + a x_t starts at 0 and is divided by 1 - (1 - a)^t (Kingma and Ba, 2015, section 3); the
    variance is that of the squares, corrected likewise, less the mean's square.
    """

    count: int = 0
    mean_part: float = 0.0
    square_part: float = 0.0

    def with_value(self, value: float) -> MovingAverage:
        return MovingAverage(
            count=self.count + 1,
            mean_part=(1 - RATE) * self.mean_part + RATE * value,
            square_part=(1 - RATE) * self.square_part + RATE * value * value,
        )

    @property
    def mean(self) -> float | None:
        """None before the first value."""
        return self.mean_part / self._weight if self.count else None

    @property
    def variance(self) -> float | None:
        mean = self.mean
        return None if mean is None else max(0.0, self.square_part / self._weight - mean * mean)

    @property
    def deviation(self) -> float | None:
        """Standard deviation, in the values' own unit."""
        variance = self.variance
        return None if variance is None else math.sqrt(variance)

    @property
    def _weight(self) -> float:
        # expm1 keeps the digits that 1 - (1 - a)^t would lose for a small a.
        return -math.expm1(self.count * math.log1p(-RATE))
