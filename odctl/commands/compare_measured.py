"""What `odctl compare --measure` says: measured beside predicted, and whether the same plans win."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from agent.errors import FleetError
from agent.planner.compare import Comparison
from agent.planner.measured import HeldFigure, MeasuredVerdict, hold_figures, measured_verdicts
from agent.planner.plan import Plan, Predicted
from agent.planner.words import rate_interval_words, rate_words, seconds_interval_words, seconds_words
from odctl.bench.measure import Figures
from odctl.measuring import TrialLoads, TrialOutcome, measured_of
from odctl.result import ExitCode, Result, exit_code_of, render_error

Standing = dict[str, tuple[int, str]]


def measured_result(
    comparison: Comparison,
    plans: Sequence[Plan],
    outcomes: Sequence[TrialOutcome],
    loads: TrialLoads,
    *,
    for_load: Sequence[Predicted | None],
    before: Standing,
    after: Standing,
    prose: Sequence[str],
) -> Result:
    """`prose` is of the comparison itself; `before` and `after` are what stood around the measurement.

    `for_load` are predictions of these loads, where the plans' own are of others.
    """
    found = [measured_of(outcome, loads) for outcome in outcomes]
    found += [None] * (len(plans) - len(found))
    held = [
        hold_figures(plan, each, for_load=own) if each is not None else ()
        for plan, each, own in zip(plans, found, for_load, strict=True)
    ]
    predicted = [own or plan.predicted for plan, own in zip(plans, for_load, strict=True)]
    verdicts = measured_verdicts(predicted, found)
    lines = [*prose, "", _loads_line(loads)]
    if any(for_load):
        lines.append(
            "the files' predictions are of another load: these are made for this one, on the cluster as it is"
        )
    for index, outcome in enumerate(outcomes):
        lines += ["", *_outcome_lines(chr(ord("A") + index), outcome, held[index])]
    lines += ["", *(_verdict_line(verdict, len(plans)) for verdict in verdicts)]
    lines += ["", _standing_line(before, after)]
    for outcome in outcomes:
        if outcome.error is not None:
            sys.stderr.write(render_error(outcome.error))
    if any(outcome.is_interrupted for outcome in outcomes):
        lines.append("interrupted: these are the figures up to then")
    data: dict[str, Any] = msgspec.to_builtins(comparison)
    data["measured"] = {
        "loads": msgspec.to_builtins(loads),
        "plans": [
            msgspec.to_builtins(outcome)
            | {"held": [_data(each) for each in held[index]], "predicted": msgspec.to_builtins(predicted[index])}
            for index, outcome in enumerate(outcomes)
        ],
        "verdicts": msgspec.to_builtins(verdicts),
        "before": before,
        "after": after,
        "is_restored": before == after,
    }
    return Result(kind="comparison", data=data, prose="\n".join(lines), exit_code=_exit_code(comparison, outcomes))


def _exit_code(comparison: Comparison, outcomes: Sequence[TrialOutcome]) -> ExitCode:
    if any(outcome.is_interrupted for outcome in outcomes):
        return ExitCode.INTERRUPTED
    for outcome in outcomes:
        if outcome.error is not None:
            return exit_code_of(FleetError.from_detail(outcome.error))
    if any(outcome.num_failed for outcome in outcomes):
        return ExitCode.PARTIAL
    return ExitCode.OK if comparison.is_same else ExitCode.CHANGES


def _loads_line(loads: TrialLoads) -> str:
    alone, full = loads.alone, loads.full
    second = f", then {full.num_requests} {full.concurrency} at a time" if full.concurrency > 1 else ""
    return (
        f"measured with {alone.num_requests} requests one at a time{second}: prompts of {alone.prompt} tokens, "
        f"answers of {alone.output}"
    )


def _outcome_lines(letter: str, outcome: TrialOutcome, held: Sequence[HeldFigure]) -> list[str]:
    under = f", as {outcome.deployment}" if outcome.applied_hash != outcome.plan_hash else ""
    applied = f"applied in {outcome.apply_s:.1f} s" if outcome.apply_s is not None else "not applied"
    lines = [f"{letter}  {outcome.label}{under}  {applied}"]
    if held:
        lines.append(f"   {'':<21}{'PREDICTED':<26}{'MEASURED p50':>13}{'p95':>12}{'RATIO':>8}")
        lines += [_held_line(figure) for figure in held]
    for name, figures in (("one at a time", outcome.alone), ("together", outcome.full)):
        if figures is not None:
            lines.append(f"   {name:<15}{_requests_words(figures)}")
    if outcome.error is not None:
        lines.append(f"   ended early: {outcome.error.message}")
    return lines


def _data(figure: HeldFigure) -> dict[str, Any]:
    data: dict[str, Any] = msgspec.to_builtins(figure)
    p50, p95 = data.pop("measured"), data.pop("measured_p95")
    return data | {"measured": None if p50 is None else {"p50": p50, "p95": p95}}


def _held_line(figure: HeldFigure) -> str:
    interval_words, words = (
        (seconds_interval_words, seconds_words) if figure.unit == "s" else (rate_interval_words, rate_words)
    )
    p50, p95 = ("-" if each is None else words(each) for each in (figure.measured, figure.measured_p95))
    ratio = f"{figure.ratio:.2f}" if figure.ratio is not None else "-"
    inside = {True: "inside", False: "OUTSIDE", None: figure.remark}[figure.is_inside]
    return f"   {figure.name:<21}{interval_words(figure.predicted):<26}{p50:>13}{p95:>12}{ratio:>8}  {inside}"


def _requests_words(figures: Figures) -> str:
    parts = [f"{figures.num_answered} answered", f"{figures.num_failed} failed"]
    if figures.num_unfinished:
        parts.append(f"{figures.num_unfinished} broken off")
    kinds = "; ".join(f"{count} {kind}: {figures.examples[kind]}" for kind, count in sorted(figures.errors.items()))
    return (
        f"{', '.join(parts)} in {figures.elapsed_s:.1f} s; {figures.output_tokens_per_s:.1f} output tokens/s "
        f"end to end{f'; {kinds}' if kinds else ''}"
    )


def _verdict_line(verdict: MeasuredVerdict, count: int) -> str:
    letters = [chr(ord("A") + index) for index in range(count)]

    def best(index: int | None) -> str:
        return "equal" if index is None else letters[index]

    predicted = f"predicted best: {best(verdict.predicted_best)}"
    if verdict.agrees is None:
        return f"{verdict.objective:<12}{predicted}; {verdict.reason}"
    measured = f"measured best: {best(verdict.measured_best)} ({verdict.reason})"
    return f"{verdict.objective:<12}{predicted}; {measured}, {'as' if verdict.agrees else 'NOT as'} predicted"


def _standing_line(before: Standing, after: Standing) -> str:
    if before == after:
        if not before:
            return "nothing serves, as before"
        serves = ", ".join(f"{name} generation {generation}" for name, (generation, _) in sorted(before.items()))
        return f"what served before serves untouched: {serves}"
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return "changed meanwhile: " + ", ".join(
        f"{name} {_one_words(before.get(name))} -> {_one_words(after.get(name))}" for name in names
    )


def _one_words(standing: tuple[int, str] | None) -> str:
    return "absent" if standing is None else f"generation {standing[0]} (plan {standing[1][:12]})"
