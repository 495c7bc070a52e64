"""Page-Hinkley: whether a series has moved away from its own mean for good. Pure."""

from __future__ import annotations

import msgspec

TOLERANCE = 0.15
"""A change of the mean that is of no interest, in logarithms: the linear model is that far off on its own."""
THRESHOLD = 2.5
"""How far the excess over the tolerance may add up: five values of twice the usual time, or two of four times."""
MIN_VALUES = 5


class PageHinkley(msgspec.Struct, frozen=True, kw_only=True):
    """Two-sided test (Page, 1954; Hinkley, 1971): sums of deviations from the running mean, less a tolerance.

    An alarm is due when a sum has risen by more than the threshold above its least value, which is 0 here.
    """

    count: int = 0
    mean: float = 0.0
    above: float = 0.0
    below: float = 0.0

    def with_value(self, value: float) -> PageHinkley:
        count = self.count + 1
        mean = self.mean + (value - self.mean) / count
        return PageHinkley(
            count=count,
            mean=mean,
            above=max(0.0, self.above + value - mean - TOLERANCE),
            below=max(0.0, self.below + mean - value - TOLERANCE),
        )

    @property
    def is_alarmed(self) -> bool:
        return self.count >= MIN_VALUES and max(self.above, self.below) > THRESHOLD
