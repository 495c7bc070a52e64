"""From what happened to single requests to the figures of a load. Pure.

TTFT: seconds from sending a request to its first piece of text. TPOT: seconds per token after the first, (last
piece - first piece) / (output tokens - 1), as vLLM defines it. Gap: seconds between two pieces, which may hold
several tokens. Goodput: answered requests a second that held the objectives (DistServe, Zhong et al. 2024).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence

import msgspec


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One request. Times are seconds since the begin of the load; `error` is its kind, empty when all went well."""

    index: int
    sent_s: float
    end_s: float
    piece_s: tuple[float, ...] = ()
    """When each piece of text came."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    wanted_output_tokens: int = 0
    error: str = ""
    detail: str = ""

    @property
    def ttft_s(self) -> float:
        return self.piece_s[0] - self.sent_s

    @property
    def tpot_s(self) -> float | None:
        """None for an answer of one token: there is none after the first."""
        if self.output_tokens < 2:
            return None
        return (self.piece_s[-1] - self.piece_s[0]) / (self.output_tokens - 1)


class Objectives(msgspec.Struct, frozen=True, kw_only=True):
    """What counts as good; None: anything."""

    ttft_s: float | None = None
    tpot_s: float | None = None

    def are_held(self, outcome: Outcome) -> bool:
        tpot_s = outcome.tpot_s
        is_prompt = self.ttft_s is None or outcome.ttft_s <= self.ttft_s
        is_steady = self.tpot_s is None or tpot_s is None or tpot_s <= self.tpot_s
        return is_prompt and is_steady


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    count: int
    mean: float
    p50: float
    p95: float
    p99: float
    largest: float


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Of one load on one server. Distributions are in seconds, and None when nothing was measured."""

    num_answered: int
    num_unfinished: int
    """Broken off by the operator: neither answered nor failed."""
    errors: dict[str, int]
    """Failed requests by kind."""
    examples: dict[str, str]
    """What the server said, once for each kind."""
    elapsed_s: float
    requests_per_s: float
    input_tokens_per_s: float
    output_tokens_per_s: float
    goodput_per_s: float
    good_share: float
    """Of all requests that were answered or failed."""
    mean_prompt_tokens: float
    mean_output_tokens: float
    num_short: int
    """Answers with fewer tokens than were asked for."""
    ttft_s: Distribution | None
    tpot_s: Distribution | None
    gap_s: Distribution | None
    request_s: Distribution | None

    @property
    def num_failed(self) -> int:
        return sum(self.errors.values())


UNFINISHED = "unfinished"
"""The kind of a request that was broken off with the load itself."""


def figures(outcomes: Sequence[Outcome], *, elapsed_s: float, objectives: Objectives) -> Figures:
    answered = [each for each in outcomes if not each.error]
    failed = [each for each in outcomes if each.error not in ("", UNFINISHED)]
    good = [each for each in answered if objectives.are_held(each)]
    counted = len(answered) + len(failed)
    prompt_tokens = sum(each.prompt_tokens for each in answered)
    output_tokens = sum(each.output_tokens for each in answered)
    per_s = 1 / elapsed_s if elapsed_s > 0 else 0.0
    return Figures(
        num_answered=len(answered),
        num_unfinished=len(outcomes) - counted,
        errors=dict(Counter(each.error for each in failed)),
        examples={each.error: each.detail for each in reversed(failed)},
        elapsed_s=elapsed_s,
        requests_per_s=len(answered) * per_s,
        input_tokens_per_s=prompt_tokens * per_s,
        output_tokens_per_s=output_tokens * per_s,
        goodput_per_s=len(good) * per_s,
        good_share=len(good) / counted if counted else 0.0,
        mean_prompt_tokens=prompt_tokens / len(answered) if answered else 0.0,
        mean_output_tokens=output_tokens / len(answered) if answered else 0.0,
        num_short=sum(each.output_tokens < each.wanted_output_tokens for each in answered),
        ttft_s=distribution([each.ttft_s for each in answered]),
        tpot_s=distribution([each.tpot_s for each in answered if each.tpot_s is not None]),
        gap_s=distribution([gap for each in answered for gap in _gaps(each.piece_s)]),
        request_s=distribution([each.end_s - each.sent_s for each in answered]),
    )


def distribution(values: Sequence[float]) -> Distribution | None:
    if not values:
        return None
    ordered = sorted(values)
    return Distribution(
        count=len(ordered),
        mean=math.fsum(ordered) / len(ordered),
        p50=percentile(ordered, 50),
        p95=percentile(ordered, 95),
        p99=percentile(ordered, 99),
        largest=ordered[-1],
    )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Linear between the two nearest of the ascending values (Hyndman and Fan's type 7, numpy's default)."""
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _gaps(times: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(times)]
