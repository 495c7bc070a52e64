"""One row of the table: two sides measured in alternation, and the ratios of neighbours."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import msgspec

from tests.benchmarks.output import say

ROUNDS = 5


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of both sides, round by round, in `unit`."""

    unit: str
    ours: tuple[float, ...]
    others: tuple[float, ...]
    note: str = ""

    @property
    def ratios(self) -> tuple[float, ...]:
        return tuple(ours / other for ours, other in zip(self.ours, self.others, strict=True))

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)


def alternate(
    unit: str,
    ours: Callable[[], float],
    other: Callable[[], float],
    *,
    rounds: int = ROUNDS,
    is_warm: bool = False,
    note: str = "",
) -> Measured:
    """One warm-up each unless they are warm, then ABAB; every figure is told as it comes."""
    if not is_warm:
        ours()
        other()
    found: list[tuple[float, float]] = []
    for _ in range(rounds):
        pair = (ours(), other())
        say(f"  ours {pair[0]:.4g} {unit}, other {pair[1]:.4g} {unit}: {pair[0] / pair[1]:.2f}")
        found.append(pair)
    return Measured(
        unit=unit, ours=tuple(each[0] for each in found), others=tuple(each[1] for each in found), note=note
    )
