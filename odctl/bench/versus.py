"""Two servers under the same load in alternation, and the ratios of what was measured. Pure but for the driving.

On a machine that others use too, times drift; what is measured right after each other is compared with each other.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import msgspec

from odctl.bench.measure import Figures


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """First server / second server, of each round: the median of the rounds, and the least and the largest."""

    what: str
    is_more_better: bool
    median: float
    least: float
    largest: float
    num_rounds: int


_MEASURES: tuple[tuple[str, bool, Callable[[Figures], float | None]], ...] = (
    ("output tokens/s", True, lambda figures: figures.output_tokens_per_s),
    ("input tokens/s", True, lambda figures: figures.input_tokens_per_s),
    ("requests/s", True, lambda figures: figures.requests_per_s),
    ("goodput", True, lambda figures: figures.goodput_per_s),
    ("time to first token, p50", False, lambda figures: figures.ttft_s.p50 if figures.ttft_s else None),
    ("time per token, p50", False, lambda figures: figures.tpot_s.p50 if figures.tpot_s else None),
    ("whole request, p50", False, lambda figures: figures.request_s.p50 if figures.request_s else None),
)


def ratios(rounds: Sequence[tuple[Figures, Figures]]) -> tuple[Ratio, ...]:
    """Of all that both servers have figures for; a round in which either has none is left out."""
    found = []
    for what, is_more_better, of in _MEASURES:
        each = [first / second for first, second in ((of(a), of(b)) for a, b in rounds) if first and second]
        if each:
            found.append(
                Ratio(
                    what=what,
                    is_more_better=is_more_better,
                    median=statistics.median(each),
                    least=min(each),
                    largest=max(each),
                    num_rounds=len(each),
                )
            )
    return tuple(found)
