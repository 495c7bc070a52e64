"""Generations of a deployment: when, by which plan, who and why, and predicted against measured. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from agent.planner.compare import shape_words
from agent.planner.measured import HeldFigure
from agent.planner.words import (
    moment_words,
    rate_interval_words,
    rate_words,
    seconds_interval_words,
    seconds_words,
)
from agent.wire.history import MeasuredFigures
from odctl.fleet.snapshot import FleetSnapshot
from odctl.history import OF_ANY_LOAD, Entry, held_figures
from odctl.tui.model.columns import stacked
from odctl.tui.model.marks import MARKED, Mark
from odctl.tui.model.plan_figures import Figure, figure_lines
from odctl.tui.model.plan_map import folds, layer_map
from odctl.tui.model.plans import PlanChoice
from odctl.tui.model.table import Banner, Column, Value
from odctl.tui.model.text import Line, Span, line, wrap
from odctl.tui.model.units import age_text

COLUMNS = (
    Column(id="mark", title=" ", width=1),
    Column(id="generation", title="GEN", width=4, is_right=True, sorts_down=True),
    Column(id="state", title="STATE", width=11),
    Column(id="age", title="AGE", width=5, is_right=True),
    Column(id="why", title="WHY", width=8, priority=2),
    Column(id="plan", title="PLAN", width=12, priority=4),
    Column(id="ttft", title="FIRST TOKEN", width=14, priority=3, is_right=True),
    Column(id="time_per_token", title="/TOKEN", width=14, priority=1, is_right=True),
    Column(id="throughput", title="THROUGHPUT", width=18, priority=2, is_right=True),
    Column(id="who", title="WHO", width=14, priority=6, grow_to=24),
    Column(id="layout", title="LAYOUT", width=18, priority=5, grow_to=56),
)
STATES: dict[str, Mark] = {
    "current": Mark("●", "current", "ok"),
    "replaced": Mark("○", "replaced", "dim"),
    "destroyed": Mark("✗", "destroyed", "fault"),
}
FIGURES = ("ttft", "time_per_token", "throughput")
MOST_MEASURED = 8
"""Stretches of requests that a generation's page lists, the newest."""


class HistoryRows:
    """Entries of one deployment, newest first. Figures are measured ones, with their share of the predicted."""

    columns = COLUMNS

    def __init__(self, entries: Sequence[Entry], marked: Collection[str], *, now_s: float) -> None:
        self._entries = tuple(reversed(entries))
        self._held = [held_figures(entry) if entry.plan is not None else {} for entry in self._entries]
        self._marked = frozenset(marked)
        self._now_s = now_s
        self.keys: Sequence[str] = tuple(entry_key(entry) for entry in self._entries)

    def values(self, column: str) -> Sequence[Value]:
        return [self._value(row, column) for row in range(len(self._entries))]

    def text(self, row: int) -> str:
        served = self._entries[row].served
        return (
            f"{served.generation} {served.plan_hash} {served.cause} {served.by} {served.reason} {self._layout(row)}"
        )

    def labels(self, row: int) -> dict[str, str]:  # noqa: ARG002 - generations have none
        return {}

    def banner(self, row: int) -> Banner | None:  # noqa: ARG002 - every row has its cells
        return None

    def cell(self, row: int, column: str, width: int) -> Line:  # noqa: ARG002 - nothing here depends on it
        entry = self._entries[row]
        match column:
            case "mark":
                return line(Span(MARKED if self.keys[row] in self._marked else " ", "key"))
            case "generation":
                return line(Span(str(entry.served.generation), "bold"))
            case "state":
                return line(STATES[entry.state].span)
            case "age":
                return line(age_text(max(0.0, self._now_s - entry.served.served_at_s)))
            case "ttft" | "time_per_token" | "throughput":
                return held_cell(self._held[row].get(column))
            case _:
                return line(Span(str(self._value(row, column) or ""), "dim"))

    def _value(self, row: int, column: str) -> Value:
        served = self._entries[row].served
        match column:
            case "generation":
                return float(served.generation)
            case "state":
                return self._entries[row].state
            case "age":
                return max(0.0, self._now_s - served.served_at_s)
            case "why":
                return served.cause
            case "who":
                return served.by or "not recorded"
            case "plan":
                return served.plan_hash[:12]
            case "layout":
                return self._layout(row)
            case "mark":
                return None
            case _:
                held = self._held[row].get(column)
                return held.measured if held is not None else None

    def _layout(self, row: int) -> str:
        plan = self._entries[row].plan
        return shape_words(plan) if plan is not None else "its plan is lost"


def entry_key(entry: Entry) -> str:
    """Generations of a name that was destroyed begin at 1 again: the time tells them apart."""
    return f"{entry.served.generation}@{entry.served.served_at_s:.3f}"


def held_cell(held: HeldFigure | None) -> Line:
    """`34 ms ×1.10`: measured, and over the predicted; a dash where nothing was measured."""
    if held is None or held.measured is None:
        return line(Span("—", "dim"))
    words = rate_words if held.unit == "tokens/s" else seconds_words
    ratio = Span(f" ×{held.ratio:.2f}", "dim") if held.ratio is not None else Span("")
    return line(words(held.measured), ratio)


def entry_choice(entry: Entry) -> PlanChoice | None:
    """A generation's plan as one to preview, compare or apply; None where no journal has it any more."""
    if entry.plan is None:
        return None
    origin = f"generation {entry.served.generation}"
    return PlanChoice(origin=origin, plan=entry.plan, plan_hash=entry.served.plan_hash)


def entry_page(entry: Entry, snapshot: FleetSnapshot | None, *, width: int) -> tuple[Line, ...]:
    """One generation: how it came to be, predicted against measured, and who held what."""
    if entry.plan is None:
        lost = "its plan is in no journal any more: it cannot be compared, nor be gone back to"
        return (*_head(entry, width), *(line(Span(f" ▲ {text}", "warn")) for text in wrap(lost, width - 4)))
    return stacked(
        [
            _head(entry, width),
            _figures(entry, width),
            _measured(entry),
            layer_map(entry.plan, snapshot, width=width, is_folded=folds(entry.plan)),
        ]
    )


def _head(entry: Entry, width: int) -> tuple[Line, ...]:
    served = entry.served
    mark = STATES[entry.state]
    said = [
        f"served from {moment_words(served.served_at_s)}",
        f"{served.cause} by {served.by or 'somebody who is not recorded'}",
        *([served.reason] if served.reason else []),
        *([f"switched {served.apply_s:.1f} s after its apply began"] if served.apply_s is not None else []),
        *([f"destroyed by {entry.ended_by or '?'}"] if entry.state == "destroyed" else []),
        f"plan {served.plan_hash[:12]}",
        *([shape_words(entry.plan)] if entry.plan is not None else []),
    ]
    title = line(Span(f" {served.deployment} generation {served.generation}  ", "bold"), mark.span)
    return (title, *(line(Span(f"   {text}", "plain")) for text in wrap("; ".join(said), width - 4)))


def _figures(entry: Entry, width: int) -> tuple[Line, ...]:
    """Intervals with what was measured on the same axis, and why a figure was not, or is not judged."""
    held = held_figures(entry)
    figures = []
    for name in FIGURES:
        each = held[name]
        words = rate_words if each.unit == "tokens/s" else seconds_words
        figures.append(
            Figure(
                name=each.name,
                predicted=each.predicted,
                words=rate_interval_words if each.unit == "tokens/s" else seconds_interval_words,
                measured=each.measured,
                measured_words=words(each.measured) if each.measured is not None else "not yet",
            )
        )
    lines = list(figure_lines(figures, width))
    said = [f"{held[name].name} ×{held[name].ratio:.2f}" for name in FIGURES if held[name].ratio is not None]
    remark = (
        f"measured over predicted: {', '.join(said)}; {OF_ANY_LOAD}" if said else "nothing was measured of it yet"
    )
    return (*lines, *(line(Span(f"   {text}", "dim")) for text in wrap(remark, width - 4)))


def _measured(entry: Entry) -> tuple[Line, ...]:
    """The stretches of requests that the figures are of."""
    found = entry.served.measured[: -MOST_MEASURED - 1 : -1]
    if not found:
        return ()
    titles = f" {'MEASURED (UTC)':<16} {'BY':<7} {'STREAMS':>7} {'PROMPT':>6} {'REQUESTS':>8}"
    titles += f" {'FIRST':>8} {'/TOKEN':>8} {'RATE':>10}"
    return (line(Span(titles, "title")), *(_measured_line(each) for each in found))


def _measured_line(each: MeasuredFigures) -> Line:
    def cell(value: float | None, cells: int, *, is_rate: bool = False) -> str:
        words = "—" if value is None else rate_words(value) if is_rate else seconds_words(value)
        return f" {words:>{cells}}"

    requests = "—" if each.requests is None else str(each.requests)
    return line(
        f" {moment_words(each.at_s).removesuffix(' UTC'):<16} {each.source:<7} {each.streams:>7.1f}"
        f" {each.prompt_tokens:>6.0f}"
        f" {requests:>8}{cell(each.ttft_s, 8)}{cell(each.time_per_token_s, 8)}"
        f"{cell(each.tokens_per_s, 10, is_rate=True)}"
    )
