"""What a run of `make bench-preview` showed, as text: errors, rankings, and every case."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import msgspec

from agent.serving.metrics import percentile
from tests.benchmarks.output import write_between

DOCUMENT = Path(__file__).parents[2] / "docs" / "preview-accuracy.md"
CASES = DOCUMENT.with_suffix(".json")
"""What was measured, as it was: clusters may be measured on different days."""
BEGIN, END = "<!-- preview: begin -->", "<!-- preview: end -->"
FIGURES = ("time to first token", "time per token", "throughput")
TIMES = (0.07, 0.15)
"""Goals of the error's median and of its 90th percentile."""
MEMORY = 0.02
CLOSE = 0.05
"""A plan ranked first is right when it is as close as this to the best measured."""
RIGHT = 0.9
"""Goal of the share of plans that are."""


Figures = tuple[float, float, float]
"""Seconds to the first token, seconds per token, tokens/s."""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    taken: str
    """When, on which processor, in which dtype, and of which commit."""
    condition: str
    model: str
    layout: str
    shape: str
    """Hosts and layers, in words."""
    predicted: Figures
    bounds: tuple[tuple[float, ...], ...]
    """Low and high of each prediction."""
    passes: tuple[Figures, ...]
    """Measured right after the prediction, and again when all other layouts of the model had been."""
    planned_bytes: int
    held_bytes: int
    num_runs: int

    @property
    def measured(self) -> Figures:
        """The mean of the passes."""
        ttft_s, time_per_token_s, tokens_per_s = (statistics.fmean(each) for each in zip(*self.passes, strict=True))
        return ttft_s, time_per_token_s, tokens_per_s

    def error(self, figure: int) -> float:
        return self.predicted[figure] / self.measured[figure] - 1

    def drift(self, figure: int) -> float:
        """How far the last pass is from the first: what that one says of the same deployment some minutes later."""
        return self.passes[0][figure] / self.passes[-1][figure] - 1


def kept_cases() -> list[Case]:
    """All that was measured last of each cluster; none before the first time."""
    return msgspec.json.decode(CASES.read_bytes(), type=list[Case]) if CASES.exists() else []


def keep_cases(cases: Sequence[Case]) -> None:
    CASES.write_bytes(msgspec.json.format(msgspec.json.encode(cases), indent=1) + b"\n")


def with_cluster(kept: Sequence[Case], fresh: Sequence[Case], *, order: Sequence[str]) -> list[Case]:
    """Cases of clusters in their order, where those of the fresh one's cluster take the place of its older ones."""
    measured = {case.condition for case in fresh}
    cases = [case for case in kept if case.condition not in measured and case.condition in order]
    return sorted([*cases, *fresh], key=lambda case: order.index(case.condition))


def summary(cases: Sequence[Case]) -> list[str]:
    lines = [
        "| figure | error, p50 | p90 | within the interval | one pass for the other: p50 | p90 | |",
        "|---|---|---|---|---|---|---|",
    ]
    every: list[float] = []
    every_drift: list[float] = []
    for index, name in enumerate(FIGURES):
        errors = [abs(case.error(index)) for case in cases]
        drift = [abs(case.drift(index)) for case in cases]
        every += errors
        every_drift += drift
        inside = sum(low <= case.measured[index] <= high for case in cases for low, high in [case.bounds[index]])
        lines.append(
            f"| {name} | {_p50_p90(errors)} | {inside} of {len(cases)} | {_p50_p90(drift)} | {_verdict(errors)} |"
        )
    lines.append(f"| all | {_p50_p90(every)} | | {_p50_p90(every_drift)} | {_verdict(every)} |")
    memory = max(abs(case.planned_bytes / case.held_bytes - 1) for case in cases)
    lines += [
        "",
        f"Memory: weights and KV cache as planned and as ranks hold them differ by {memory:.2%} at most "
        f"({'met' if memory <= MEMORY else '**missed**'}, goal {MEMORY:.0%}).",
        "",
        *_rankings(cases),
    ]
    return lines


def _rankings(cases: Sequence[Case]) -> list[str]:
    """For each cluster and model, whether the plan predicted best is about the best.

    The floor beside it is how often the first pass says as much of the last.
    """
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.condition, case.model), []).append(case)
    right = right_by_first_pass = 0
    worst = []
    for (condition, model), group in groups.items():
        measured = [case.measured for case in group]
        for index, name in enumerate(FIGURES):
            chosen, best, loss = _behind(group, index, [case.predicted for case in group], measured)
            right += loss <= CLOSE
            if loss > CLOSE:
                worst.append(f"{condition}, {model}, {name}: {chosen.layout} is {loss:.0%} behind {best.layout}")
            *_, loss = _behind(
                group, index, [case.passes[0] for case in group], [case.passes[-1] for case in group]
            )
            right_by_first_pass += loss <= CLOSE
    total = len(groups) * len(FIGURES)
    verdict = "met" if right >= RIGHT * total else "**missed**"
    return [
        f"The plan ranked first is within {CLOSE:.0%} of the best measured in {right} of {total} cases ({verdict}, "
        f"goal {RIGHT:.0%}); the one that was best in the first pass is within {CLOSE:.0%} of the best of the last "
        f"in {right_by_first_pass}." + (f" Not in: {'; '.join(worst)}." if worst else "")
    ]


def _behind(
    group: Sequence[Case], figure: int, told: Sequence[Figures], found: Sequence[Figures]
) -> tuple[Case, Case, float]:
    """The case told to be best, the one found to be, and by what share it is behind.

    `told` and `found` are of each case.
    """
    sign = -1 if FIGURES[figure] == "throughput" else 1
    every = range(len(group))
    chosen = min(every, key=lambda index: sign * told[index][figure])
    best = min(every, key=lambda index: sign * found[index][figure])
    return group[chosen], group[best], float((found[chosen][figure] / found[best][figure]) ** sign - 1)


def table(cases: Sequence[Case]) -> list[str]:
    lines = [
        "| cluster | model | layout | hosts and layers | runs before | TTFT: predicted, measured | time per token "
        "| tokens/s | first pass for last |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        ttft, tpot, rate = (
            f"{case.predicted[i] * k:.4g}, {case.measured[i] * k:.4g} {unit} ({case.error(i):+.0%})"
            for i, k, unit in ((0, 1e3, "ms"), (1, 1e3, "ms"), (2, 1, ""))
        )
        drift = ", ".join(f"{case.drift(index):+.0%}" for index in range(len(FIGURES)))
        lines.append(
            f"| {case.condition} | {case.model} | {case.layout} | {case.shape} | {case.num_runs} | {ttft} | {tpot} "
            f"| {rate} | {drift} |"
        )
    return lines


def _p50_p90(errors: Sequence[float]) -> str:
    return f"{statistics.median(errors):.1%} | {percentile(errors, 90):.1%}"


def _verdict(errors: Sequence[float]) -> str:
    median, high = TIMES
    met = statistics.median(errors) <= median and percentile(errors, 90) <= high
    return "met" if met else "**missed**"


def write(text: str) -> None:
    """Between the document's marks."""
    write_between(DOCUMENT, BEGIN, END, text)
