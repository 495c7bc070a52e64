"""`make bench-silicon`: the cost model against public measured deployments, as it is and as it is calibrated.

Constants are fitted to one system and judged on the other (leave one system out). A refit takes six runs of a
deployment beside them and is judged on its other runs. Writes its table into docs/benchmarks.md. The data lie in
../shared/data, or where ODCTL_SHARED_DATA points.
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path

import msgspec

from agent.planner.calibration import (
    COVERAGE,
    PRIOR,
    Calibration,
    MeasuredTime,
    fit_calibration,
    predict_interval,
)
from agent.planner.interval import Interval
from tests.benchmarks.output import write_between
from tests.benchmarks.silicon_runs import Run, SiliconRuns, bare_roofline_s, parts_of, read_runs
from tests.shared_data import find_shared_data

DATA = "planner/silicon_sample.csv"
NUM_PROBES = 6
LEAST_JUDGED = 4
"""Runs of a deployment beside its probes, for it to count."""
GLOBAL_GOAL, REFIT_GOAL, RANKING_GOAL = 0.20, 0.12, 0.97
DOCUMENT = Path(__file__).parents[2] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- silicon: begin -->", "<!-- silicon: end -->"


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """Predictions of some runs, as intervals where there are any."""

    runs: tuple[Run, ...]
    expected_s: tuple[float, ...]
    intervals: tuple[Interval, ...] = ()

    @property
    def errors(self) -> list[float]:
        return [abs(s / run.measured_s - 1) for run, s in zip(self.runs, self.expected_s, strict=True)]

    @property
    def mean_error(self) -> float:
        """MAPE, as a fraction."""
        return statistics.fmean(self.errors)

    @property
    def median_error(self) -> float:
        return statistics.median(self.errors)

    @property
    def covered(self) -> float:
        """Share of the runs that lie in their interval."""
        pairs = zip(self.runs, self.intervals, strict=True)
        return statistics.fmean(each.low <= run.measured_s <= each.high for run, each in pairs)

    @property
    def half_width(self) -> float:
        """Median of half the intervals' logarithmic width."""
        return statistics.median(each.log_width / 2 for each in self.intervals)


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    bare: Judged
    published: Judged
    fitted: Judged
    refitted: Judged
    num_deployments: int
    rankings: int
    rankings_right: int

    @property
    def ranking_share(self) -> float:
        return self.rankings_right / self.rankings


def judge(runs: Sequence[Run]) -> Figures:
    """All figures of the table. Raises ValueError where runs of fewer than two systems are there."""
    systems = sorted({run.system for run in runs})
    if len(systems) < 2:
        raise ValueError(f"runs of {len(systems)} systems: leaving one out takes two")
    left_out = {system: _fit(run for run in runs if run.system != system) for system in systems}
    fitted = _predict(runs, [left_out[run.system] for run in runs])
    deployments = _deployments(runs)
    refitted = [_refit(own, left_out[own[0].system]) for own in deployments]
    pairs = list(_rankings(fitted))
    return Figures(
        bare=Judged(runs=tuple(runs), expected_s=tuple(bare_roofline_s(run) for run in runs)),
        published=_predict(runs, [PRIOR] * len(runs)),
        fitted=fitted,
        refitted=Judged(
            runs=tuple(run for each in refitted for run in each.runs),
            expected_s=tuple(seconds for each in refitted for seconds in each.expected_s),
            intervals=tuple(interval for each in refitted for interval in each.intervals),
        ),
        num_deployments=len(deployments),
        rankings=len(pairs),
        rankings_right=sum(pairs),
    )


def _fit(runs: Iterable[Run]) -> Calibration:
    """Constants common to all models: what is peculiar to one of them is left to its own runs."""
    return fit_calibration([MeasuredTime(parts=parts_of(run), measured_s=run.measured_s) for run in runs])


def _predict(runs: Sequence[Run], calibrations: Sequence[Calibration]) -> Judged:
    """With the interval of a model that nothing was measured of."""
    # The constants come from another system's runs: they are known no better than before on this one.
    unsure = [Calibration(corrections=calibration.corrections) for calibration in calibrations]
    intervals = [
        predict_interval(parts_of(run), calibration, model=run.name)
        for run, calibration in zip(runs, unsure, strict=True)
    ]
    return Judged(
        runs=tuple(runs), expected_s=tuple(each.expected for each in intervals), intervals=tuple(intervals)
    )


def _deployments(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs of one model in one precision by one server on one system, all tensor-parallel sizes together."""
    found: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run in runs:
        found[run.model, run.system, run.backend, run.dense_mode, run.expert_mode].append(run)
    return [own for own in found.values() if len(own) >= NUM_PROBES + LEAST_JUDGED]


def _refit(runs: list[Run], start: Calibration) -> Judged:
    """Probes from the smallest to the largest batch, prompt and answer; the others are judged."""
    ordered = sorted(runs, key=lambda run: (run.batch, run.prompt_tokens, run.output_tokens, run.id))
    chosen = {round(index * (len(ordered) - 1) / (NUM_PROBES - 1)) for index in range(NUM_PROBES)}
    model = runs[0].name
    probes = [
        MeasuredTime(parts=parts_of(ordered[index]), measured_s=ordered[index].measured_s, model=model)
        for index in sorted(chosen)
    ]
    calibration = fit_calibration(probes, start=start)
    rest = [run for index, run in enumerate(ordered) if index not in chosen]
    intervals = [predict_interval(parts_of(run), calibration, model=model) for run in rest]
    return Judged(
        runs=tuple(rest), expected_s=tuple(each.expected for each in intervals), intervals=tuple(intervals)
    )


def _rankings(judged: Judged) -> Iterable[bool]:
    """Of two tensor-parallel sizes of one deployment under one load: is the faster one predicted so?

    Repeated runs count as their median.
    """
    groups: dict[tuple[str | int | bool, ...], dict[int, list[tuple[float, float]]]] = defaultdict(dict)
    for run, seconds in zip(judged.runs, judged.expected_s, strict=True):
        key = (
            *(run.model, run.system, run.backend, run.version, run.dense_mode, run.expert_mode),
            *(run.expert_parallel_size > 1, run.prompt_tokens, run.output_tokens, run.batch),
        )
        groups[key].setdefault(run.tensor_parallel_size, []).append((seconds, run.measured_s))
    for sizes in groups.values():
        medians = [
            (statistics.median(p for p, _ in pairs), statistics.median(m for _, m in pairs))
            for pairs in sizes.values()
        ]
        for (predicted, measured), (other_predicted, other_measured) in combinations(medians, 2):
            yield (predicted > other_predicted) == (measured > other_measured)


def table(found: SiliconRuns, figures: Figures) -> str:
    left_out = ", ".join(f"{count} {reason}" for reason, count in found.left_out.items())
    num_models = len({run.name for run in found.runs})
    systems = ", ".join(sorted({run.system for run in found.runs}))
    rows = [
        ("data sheet's roofline, no constants", figures.bare, ""),
        ("published constants, as the planner starts", figures.published, ""),
        ("constants fitted to the other system", figures.fitted, _goal(figures.fitted.mean_error, GLOBAL_GOAL)),
        (
            f"the same, refitted to {NUM_PROBES} runs of each deployment",
            figures.refitted,
            _goal(figures.refitted.mean_error, REFIT_GOAL),
        ),
    ]
    right = f"{figures.rankings_right} of {figures.rankings} ({figures.ranking_share:.1%})"
    met = "met" if figures.ranking_share >= RANKING_GOAL else "**missed**"
    return "\n".join(
        [
            f"{len(found.runs)} runs of {num_models} models on {systems}; left out: {left_out}. "
            "The published constants were fitted to runs of these systems as well.",
            "",
            "| model of time per token | runs | MAPE | median error | goal | in their interval | half width |",
            "|---|---|---|---|---|---|---|",
            *(_row(*row) for row in rows),
            "",
            f"Pairs of tensor-parallel sizes ranked as measured: {right}, goal >= {RANKING_GOAL:.0%} {met}. "
            f"{figures.num_deployments} deployments have enough runs for a refit. Intervals should contain "
            f"{COVERAGE:.0%}; half widths are logarithmic (0.36: from 0.70 to 1.43 times the expected).",
        ]
    )


def _row(name: str, judged: Judged, goal: str) -> str:
    inside = (f"{judged.covered:.0%}", f"{judged.half_width:.2f}") if judged.intervals else ("", "")
    return (
        f"| {name} | {len(judged.runs)} | {judged.mean_error:.1%} | {judged.median_error:.1%} | {goal} | "
        f"{inside[0]} | {inside[1]} |"
    )


def _goal(value: float, goal: float) -> str:
    return f"<= {goal:.0%} {'met' if value <= goal else '**missed**'}"


def main() -> int:
    path = find_shared_data(DATA)
    if path is None:
        print(f"no {DATA}: put it into ../shared/data, or point ODCTL_SHARED_DATA at its folder", file=sys.stderr)
        return 1
    found = read_runs(path)
    text = table(found, judge(found.runs))
    print(text)
    write_between(DOCUMENT, BEGIN, END, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
