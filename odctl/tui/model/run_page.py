"""One run: what was chosen, what it promised, every measurement of it, what its controller remembers."""

from __future__ import annotations

from agent.planner.compare import shape_words
from agent.planner.learning.course import Measurement
from agent.planner.learning.state import Selection
from agent.planner.learning.workload import bucket_of
from odctl.history import Entry, held_figures
from odctl.learning import LearningReport
from odctl.tui.model.learning_rows import ratio_of, ratio_span
from odctl.tui.model.text import BLANK, Line, Span, line, wrap
from odctl.tui.model.units import age_text, plural, seconds_text, tokens_per_s_text

MAX_MEASUREMENTS = 200
STATE_WORDS = {"current": "● serves now", "replaced": "○ was replaced", "destroyed": "✗ was destroyed"}


def measurements_of(report: LearningReport, chosen: Selection) -> tuple[Measurement, ...]:
    """Those that were made while this choice served: until the same plan of the deployment was chosen again."""
    later = [
        each.at_s
        for each in report.history
        if (each.deployment, each.plan_hash) == (chosen.deployment, chosen.plan_hash) and each.at_s > chosen.at_s
    ]
    end_s = min(later, default=float("inf"))
    return tuple(
        each
        for each in report.measurements
        if (each.deployment, each.plan_hash) == (chosen.deployment, chosen.plan_hash)
        and chosen.at_s <= each.at_s < end_s
    )


def entry_of(entries: tuple[Entry, ...], chosen: Selection) -> Entry | None:
    """The generation that a choice became, in the controllers' journals; None where they have lost it."""
    same = [
        entry
        for entry in entries
        if (entry.served.deployment, entry.served.plan_hash) == (chosen.deployment, chosen.plan_hash)
    ]
    exact = [entry for entry in same if entry.served.generation == chosen.generation]
    found = exact or same
    return found[-1] if found else None


def run_page(
    report: LearningReport, chosen: Selection, entry: Entry | None, *, why_no_entry: str, width: int, now_s: float
) -> tuple[Line, ...]:
    """`why_no_entry`: why nothing is known of the generation, where `entry` is None."""
    what, promised = chosen.chosen, chosen.chosen.predicted
    texts = [
        f"{what.arm} for {what.objective}, asked for {what.asked}; this choice had a likelihood of "
        f"{what.propensity:.0%}",
        f"promised: {_seconds(promised.time_per_token_s)} per token, first token {_seconds(promised.ttft_s)}, "
        f"{_rate(promised.tokens_per_s)} with a full batch",
    ]
    if chosen.context is not None:
        texts.append(
            f"asked of it: {chosen.context.prompt_tokens:.0f} prompt and {chosen.context.output_tokens:.0f} answer "
            f"tokens, {chosen.context.batch:.1f} at once ({bucket_of(chosen.context)})"
        )
    ratio = ratio_of(chosen)
    lines = [
        line(
            Span(f" {chosen.deployment} generation {chosen.generation}", "bold"),
            f"  {what.model}  plan {chosen.plan_hash[:12]}  {age_text(max(0.0, now_s - chosen.at_s))} ago   ",
            Span("○ not measured yet", "dim") if ratio is None else ratio_span(ratio),
        ),
        *(line(f"   {part}") for text in texts for part in wrap(text, width - 4)),
        *_measured_lines(measurements_of(report, chosen), now_s=now_s),
        *_entry_lines(entry, why_no_entry, width=width),
    ]
    return tuple(lines)


def _measured_lines(found: tuple[Measurement, ...], *, now_s: float) -> list[Line]:
    if not found:
        return [BLANK, line(Span(" nothing was measured of it: ask the deployment something", "dim"))]
    lines = [
        BLANK,
        line(Span("   AGO   REQS FAILED  PREDICTED   MEASURED    FIRST   TOK/S  REGRET  RATIO", "title")),
    ]
    for each in found[: -MAX_MEASUREMENTS - 1 : -1]:
        regret = "—" if each.regret is None else f"{each.regret:.1%}"
        promised, figures = each.predicted, each.measured
        cells = (
            f" {age_text(max(0.0, now_s - each.at_s)):>5}",
            f"{each.requests:>6}",
            f"{each.failed:>6}",
            f"{_seconds(promised.time_per_token_s):>10}",
            f"{_seconds(figures.time_per_token_s):>10}",
            f"{_seconds(figures.ttft_s):>8}",
            f"{_rate(figures.tokens_per_s, unit=''):>7}",
            f"{regret:>7}  ",
        )
        ratio = Span("—", "dim") if each.ratio is None else ratio_span(each.ratio)
        lines.append(line(" ".join(cells), ratio))
    if len(found) > MAX_MEASUREMENTS:
        older = plural(len(found) - MAX_MEASUREMENTS, "older one")
        lines.append(line(Span(f" and {older}: odctl strategies --json has them", "dim")))
    return lines


def _entry_lines(entry: Entry | None, why: str, *, width: int) -> list[Line]:
    """What the controller's journal remembers, as `odctl history` tells it."""
    if entry is None:
        return [BLANK, *(line(Span(f" {part}", "dim")) for part in wrap(why, width - 2))]
    served = entry.served
    by = f" by {served.by}" if served.by else ""
    texts = [f"{STATE_WORDS[entry.state]}; generation {served.generation} came by {served.cause}{by}"]
    if served.reason:
        texts.append(f"because: {served.reason}")
    if entry.plan is None:
        texts.append("its plan is lost: the journal does not go back that far")
    else:
        texts.append(f"layout: {shape_words(entry.plan)}   (p shows the plan)")
    lines = [BLANK, line(Span(" the generation, as its controller remembers it", "title"))]
    lines += [line(f"   {part}") for text in texts for part in wrap(text, width - 4)]
    for name, held in (held_figures(entry) if entry.plan is not None else {}).items():
        words = _rate if name == "throughput" else _seconds
        measured = "not measured" if held.measured is None else f"{words(held.measured)} ({held.ratio:.2f}x)"
        title = name.replace("_", " ")
        lines.append(
            line(
                f"   {title:<15}",
                Span("predicted ", "dim"),
                f"{words(held.predicted.expected)}  ",
                Span("measured ", "dim"),
                measured,
            )
        )
    return lines


def _seconds(seconds: float | None) -> str:
    return "—" if seconds is None else seconds_text(seconds)


def _rate(tokens_per_s: float | None, *, unit: str = " tok/s") -> str:
    return "—" if tokens_per_s is None else f"{tokens_per_s_text(tokens_per_s)}{unit}"
