"""A plan's predicted figures with their uncertainty, and beside them what was measured. Pure.

What is not known is said with its reason: a figure that a plan's file lacks is not none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from agent.planner.interval import Interval
from agent.planner.plan import Plan
from agent.planner.words import (
    bytes_interval_words,
    joules_interval_words,
    rate_interval_words,
    rate_words,
    seconds_interval_words,
    seconds_words,
)
from agent.wire.agent import DeploymentStatus
from odctl.tui.model.bars import FREE
from odctl.tui.model.text import Line, Span, fit, line

NOT_IN_FILE = "not in its file, of an earlier release"
NAME_CELLS = 19
MEASURED_CELLS = 13
LEAST_BAR = 10
LEAST_MARKED = len("● predicted ▾ measured")


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """`predicted` None: unknown, and `reason` why. `measured` is in the unit of the predicted one."""

    name: str
    predicted: Interval | None
    words: Callable[[Interval], str]
    measured: float | None = None
    measured_words: str = ""
    reason: str = ""


def plan_figures(plan: Plan, status: DeploymentStatus | None) -> tuple[Figure, ...]:
    """What the planner expects; of a plan that runs, what its canary and its gateway measured too."""
    predicted = plan.predicted
    checked = status.checked if status else None
    backend = status.backend if status else None
    # A rate is of what is asked of it now: only a full batch can be held against the prediction.
    is_full = backend is not None and backend.running >= backend.slots > 0
    return (
        Figure(
            name="time to first token",
            predicted=predicted.ttft,
            words=seconds_interval_words,
            measured_words=seconds_words(checked.ttft_s) if checked else "",
        ),
        Figure(
            name="time per token",
            predicted=predicted.time_per_token,
            words=seconds_interval_words,
            measured=checked.time_per_token_s if checked else None,
            measured_words=seconds_words(checked.time_per_token_s) if checked else "",
        ),
        Figure(
            name=f"decode at batch {plan.serving.batch}",
            predicted=predicted.throughput,
            words=rate_interval_words,
            measured=backend.tokens_per_s if backend is not None and is_full else None,
            measured_words=f"now {rate_words(backend.tokens_per_s)}" if backend else "",
        ),
        Figure(
            name="energy per token",
            predicted=predicted.energy,
            words=joules_interval_words,
            reason=NOT_IN_FILE,
        ),
        Figure(
            name="fullest device",
            predicted=predicted.memory_peak,
            words=bytes_interval_words,
            reason=NOT_IN_FILE,
        ),
    )


def figure_lines(figures: Sequence[Figure], width: int) -> tuple[Line, ...]:
    """A line a figure: `name  31 ms (28..35)  measured  ··├─●─┤··`, the bar where there is room for one."""
    said = [figure.words(figure.predicted) if figure.predicted is not None else "—" for figure in figures]
    cells = max(12, *(len(words) for words in said))
    has_measured = any(figure.measured_words for figure in figures)
    measured_cells = MEASURED_CELLS + 1 if has_measured else 0
    bar_cells = min(32, width - NAME_CELLS - cells - measured_cells - 4)
    titles = f" {'':<{NAME_CELLS}} {'PREDICTED':>{cells}}" + (
        f" {'MEASURED':>{MEASURED_CELLS}}" if has_measured else ""
    )
    has_marks = bar_cells >= LEAST_MARKED and any(figure.measured is not None for figure in figures)
    lines = [line(Span(titles, "title"), Span("  ● predicted ▾ measured" if has_marks else "", "dim"))]
    for figure, words in zip(figures, said, strict=True):
        parts: list[Span | str] = [f" {fit(figure.name, NAME_CELLS)} "]
        if figure.predicted is None:
            lines.append(line(*parts, Span(f"{'—':>{cells}} {figure.reason}", "dim")))
            continue
        parts.append(f"{words:>{cells}}")
        if has_measured:
            parts.append(Span(f" {figure.measured_words:>{MEASURED_CELLS}}", "bold"))
        has_width = figure.predicted.low < figure.predicted.high
        if bar_cells >= LEAST_BAR and (has_width or figure.measured is not None):
            parts += ["  ", Span(interval_bar(figure.predicted, mark=figure.measured, width=bar_cells), "bar")]
        lines.append(line(*parts))
    return tuple(lines)


def interval_bar(interval: Interval, *, mark: float | None, width: int) -> str:
    """`····├──●───┤··▾`: an interval on an axis from 0, and a measured value; `◉` where that is the expected one.

    The axis ends a little behind the greater of both. An interval of no width is a dot.
    """
    top = max(interval.high, mark or 0.0) * 1.1
    if top <= 0:
        return FREE * width

    def cell(at: float) -> int:
        return min(width - 1, max(0, round(at / top * (width - 1))))

    cells = [FREE] * width
    low, high = cell(interval.low), cell(interval.high)
    if high > low:
        cells[low : high + 1] = "─" * (high + 1 - low)
        cells[low], cells[high] = "├", "┤"
    cells[cell(interval.expected)] = "●"
    if mark is not None:
        cells[cell(mark)] = "◉" if cell(mark) == cell(interval.expected) else "▾"
    return "".join(cells)


def condition_words(plan: Plan, status: DeploymentStatus | None) -> str:
    """What the figures are of: without it they are held against the wrong load."""
    predicted = plan.predicted
    answers = f", answers of {predicted.answer_tokens}" if predicted.answer_tokens else ""
    runs = (
        f"from {predicted.num_measured_runs} figures measured here"
        if predicted.num_measured_runs
        else "from published constants"
    )
    has_bounds = predicted.ttft.low < predicted.ttft.high
    bounds = "4 in 5 runs lie in the brackets" if has_bounds else "without bounds: an earlier release made it"
    words = f"prompts of {predicted.prompt_tokens} tokens{answers}, one request at a time; {runs}; {bounds}"
    if status is not None and status.checked is not None:
        words += f"; measured by the canary when it was applied, prompt of {status.checked.prompt_tokens}"
    return words
