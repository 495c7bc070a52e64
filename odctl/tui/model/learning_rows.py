"""What measured runs taught, as tables: a row for each strategy and kind of workload, and one for each choice."""

from __future__ import annotations

from collections.abc import Sequence

from agent.planner.learning.state import Selection
from agent.planner.learning.summary import StrategyRow
from agent.planner.learning.workload import bucket_of
from odctl.learning import LearningReport
from odctl.tui.model.bars import error_bar
from odctl.tui.model.table import Banner, Column, Value
from odctl.tui.model.text import BLANK, Line, Span, line, wrap
from odctl.tui.model.units import age_text, count_text, percent_text, plural, seconds_text

NOTHING_YET = "nothing was measured yet: apply a plan, and ask the deployment something"
SWITCHED_OFF = "learning is switched off: `enabled = true` in the inventory's [learning] records what plans do"
SLOWER, FASTER = 1.25, 0.8
"""Measured by predicted: outside of these, an outcome is marked."""
MAX_OUTCOMES = 40

STRATEGY_COLUMNS = (
    Column(id="strategy", title="STRATEGY", width=12, grow_to=16),
    Column(id="bucket", title="WORKLOAD", width=20, grow_to=44),
    Column(id="requests", title="REQS", width=5, is_right=True, sorts_down=True),
    Column(id="ok", title="OK", width=4, priority=3, is_right=True),
    Column(id="token", title="PER TOKEN", width=9, is_right=True),
    Column(id="deviation", title="±", width=8, priority=4, is_right=True),
    Column(id="predicted", title="PREDICTED", width=9, priority=5, is_right=True),
    Column(id="off", title="OFF", width=6, priority=1, is_right=True, sorts_down=True),
    Column(id="first", title="FIRST", width=8, priority=6, is_right=True),
    Column(id="rate", title="TOK/S", width=6, priority=2, is_right=True, sorts_down=True),
    Column(id="busy", title="BUSY", width=4, priority=7, is_right=True, sorts_down=True),
    Column(id="weight", title="WEIGHT", width=6, priority=8, is_right=True, sorts_down=True),
    Column(id="regret", title="REGRET", width=6, priority=1, is_right=True, sorts_down=True),
)
SELECTION_COLUMNS = (
    Column(id="age", title="AGO", width=5, is_right=True),
    Column(id="deployment", title="DEPLOYMENT", width=10, grow_to=20, priority=2),
    Column(id="generation", title="GEN", width=4, priority=6, is_right=True, sorts_down=True),
    Column(id="chosen", title="CHOSEN", width=12, grow_to=16),
    Column(id="objective", title="FOR", width=10, priority=5),
    Column(id="likelihood", title="LIKELY", width=6, priority=3, is_right=True),
    Column(id="predicted", title="PREDICTED", width=9, is_right=True),
    Column(id="outcome", title="MEASURED", width=9, is_right=True),
    Column(id="ratio", title="RATIO", width=8, is_right=True, sorts_down=True),
    Column(id="requests", title="REQS", width=5, priority=4, is_right=True, sorts_down=True),
    Column(id="failed", title="FAILED", width=6, priority=7, is_right=True, sorts_down=True),
    Column(id="bucket", title="WORKLOAD", width=20, priority=8, grow_to=50),
)


class StrategyRows:
    """One row a strategy and kind of workload, by workload."""

    columns = STRATEGY_COLUMNS

    def __init__(self, report: LearningReport) -> None:
        self._rows = report.strategies
        self.keys: Sequence[str] = tuple(strategy_key(row) for row in report.strategies)

    def values(self, column: str) -> Sequence[Value]:
        return [_strategy_value(row, column) for row in self._rows]

    def text(self, row: int) -> str:
        return f"{self._rows[row].arm} {self._rows[row].bucket}"

    def labels(self, row: int) -> dict[str, str]:  # noqa: ARG002 - strategies have none
        return {}

    def banner(self, row: int) -> Banner | None:  # noqa: ARG002 - every row has its cells
        return None

    def cell(self, row: int, column: str, width: int) -> Line:  # noqa: ARG002 - no cell draws a bar
        found = self._rows[row]
        match column:
            case "strategy":
                return line(Span(found.arm, "bold"))
            case "bucket":
                return line(found.bucket)
            case "requests":
                return line(count_text(found.executions))
            case "off":
                return line(off_span(found.error))
            case "rate":
                return line("—" if found.tokens_per_s is None else f"{found.tokens_per_s:.1f}")
            case "token" | "deviation" | "predicted" | "first":
                return line(_seconds(_strategy_value(found, column)))
            case "regret":
                is_best = found.regret is not None and found.regret < 0.005
                return line(Span("best", "ok") if is_best else _share(_strategy_value(found, column)))
            case _:
                return line(_share(_strategy_value(found, column)))


class SelectionRows:
    """One row a choice of a plan, the newest first."""

    columns = SELECTION_COLUMNS

    def __init__(self, report: LearningReport, *, now_s: float) -> None:
        self._selections = report.history[::-1]
        self._now_s = now_s
        self.keys: Sequence[str] = tuple(selection_key(each) for each in self._selections)

    def values(self, column: str) -> Sequence[Value]:
        return [self._value(each, column) for each in self._selections]

    def text(self, row: int) -> str:
        each = self._selections[row]
        return f"{each.deployment} {each.chosen.arm} {each.chosen.objective} {each.plan_hash} {_bucket(each)}"

    def labels(self, row: int) -> dict[str, str]:  # noqa: ARG002 - choices have none
        return {}

    def banner(self, row: int) -> Banner | None:  # noqa: ARG002 - every row has its cells
        return None

    def cell(self, row: int, column: str, width: int) -> Line:  # noqa: ARG002 - no cell draws a bar
        each = self._selections[row]
        value = self._value(each, column)
        match column:
            case "age":
                return line(age_text(max(0.0, self._now_s - each.at_s)))
            case "chosen":
                return line(Span(each.chosen.arm, "bold"))
            case "predicted" | "outcome":
                return line(_seconds(value))
            case "likelihood":
                return line(_share(value))
            case "ratio":
                return line(ratio_span(value) if isinstance(value, float) else Span("○ none", "dim"))
            case _:
                return line("" if value is None else str(value))

    def _value(self, each: Selection, column: str) -> Value:
        match column:
            case "age":
                return self._now_s - each.at_s
            case "deployment":
                return each.deployment
            case "generation":
                return each.generation
            case "chosen":
                return each.chosen.arm
            case "objective":
                return each.chosen.objective
            case "likelihood":
                return each.chosen.propensity * 100
            case "predicted":
                return each.chosen.predicted.time_per_token_s
            case "outcome":
                return each.outcome.time_per_token_s if each.outcome else None
            case "ratio":
                return ratio_of(each)
            case "requests":
                return each.requests
            case "failed":
                return each.failed
            case _:
                return _bucket(each)


def strategy_key(row: StrategyRow) -> str:
    return f"{row.bucket}|{row.arm}"


def selection_key(each: Selection) -> str:
    return f"{each.deployment}|{each.generation}|{each.plan_hash}|{each.at_s:.3f}"


def ratio_of(each: Selection) -> float | None:
    """Measured by predicted time per token."""
    predicted = each.chosen.predicted.time_per_token_s
    measured = each.outcome.time_per_token_s if each.outcome else None
    return measured / predicted if measured and predicted else None


def learning_summary(report: LearningReport, *, now_s: float) -> tuple[Line, ...]:
    """What is on, what it is based on, how much was lost, and what changed under it."""
    settings = report.settings
    protected = f"   protected: {', '.join(settings.protected)}" if settings.protected else ""
    lines = [
        line(
            " learning ",
            Span("● on", "ok") if settings.enabled else Span("○ off", "warn"),
            "   exploring ",
            Span("● on", "ok") if settings.explore else Span("○ off", "dim"),
            Span(protected, "dim"),
            Span(f"   cost model fitted to {plural(report.num_runs, 'run')}", "dim"),
        )
    ]
    weights = ", ".join(
        f"{name} {percent_text(getattr(report.weights, name)).strip()}" for name in report.weights.__struct_fields__
    )
    lost = "" if report.regret is None else f"   regret so far {report.regret:.1%}"
    lines.append(line(" weights ", Span(weights, "dim"), Span(lost, "bold")))
    for alarm in report.alarms[-2:]:
        ago = age_text(max(0.0, now_s - alarm.at_s))
        text = (
            f" ▲ drift {ago} ago: {alarm.arm} of {alarm.deployment} took {alarm.ratio:.2f} times what was predicted"
        )
        lines.append(line(Span(text, "warn")))
    for change in sorted(report.changes, key=lambda each: each.since_s)[-2:]:
        ago = age_text(max(0.0, now_s - change.since_s))
        text = f" ▲ plan {change.plan_hash[:12]} changed {ago} ago: a link or device of it is not what it was"
        lines.append(line(Span(text, "warn")))
    if report.missing:
        names = ", ".join(sorted(report.missing)[:6])
        lines.append(line(Span(f" ✗ no answer from {names}: what they measured is left out", "fault")))
    return tuple(lines)


def strategy_page(report: LearningReport, key: str, *, width: int) -> tuple[Line, ...]:
    """Predicted against measured, for every strategy of the workload under the cursor, on one axis."""
    found = next((row for row in report.strategies if strategy_key(row) == key), None)
    if found is None:
        return ()
    rows = [row for row in report.strategies if row.bucket == found.bucket and row.time_per_token_s is not None]
    highs = [(row.time_per_token_s or 0.0) + (row.deviation_s or 0.0) for row in rows]
    top = max([*highs, *(row.predicted_s or 0.0 for row in rows)], default=0.0)
    if top <= 0:
        return (line(Span(f" {found.bucket}: no time per token was measured yet", "dim")),)
    cells = max(10, width - 46)
    lines = [
        line(Span(f" {found.bucket}", "bold"), Span("  ●measured ─± ▾predicted", "dim")),
        *(
            line(
                Span(f" {row.arm:<14.14}", "bold" if row.arm == found.arm else "plain"),
                Span(
                    error_bar(
                        row.time_per_token_s or 0.0,
                        deviation=row.deviation_s or 0.0,
                        mark=row.predicted_s,
                        top=top,
                        width=cells,
                    ),
                    "bar",
                ),
                f" {seconds_text(row.time_per_token_s or 0.0):>8} ±{seconds_text(row.deviation_s or 0.0):<8} ",
                off_span(row.error),
            )
            for row in rows
        ),
    ]
    return tuple(lines)


def selection_page(report: LearningReport, key: str, *, width: int) -> tuple[Line, ...]:
    """One choice in words, and the ratios of all choices, oldest to newest."""
    found = next((each for each in report.history if selection_key(each) == key), None)
    if found is None:
        return ()
    chosen, context = found.chosen, found.context
    texts = [
        f"{found.deployment} generation {found.generation}, plan {found.plan_hash[:12]}: {chosen.arm} for "
        f"{chosen.objective}, asked for {chosen.asked}; this choice had a likelihood of {chosen.propensity:.0%}"
    ]
    if context is None:
        texts.append("not measured yet: ask the deployment something")
    else:
        texts.append(
            f"{found.requests} requests, {found.failed} failed; {context.prompt_tokens:.0f} prompt and "
            f"{context.output_tokens:.0f} answer tokens, {context.batch:.1f} at once ({_bucket(found)})"
        )
    lines = [line(f" {part}") for text in texts for part in wrap(text, width - 2)]
    ratios = [(each, ratio) for each in report.history if (ratio := ratio_of(each)) is not None][-MAX_OUTCOMES:]
    if ratios:
        lines += [BLANK, line(Span(" measured by predicted, oldest to newest  ", "dim"), *_ratio_strip(ratios))]
    return tuple(lines)


def off_span(error: float | None) -> Span:
    """`+12%`, marked where the prediction was far off."""
    if error is None:
        return Span("—", "dim")
    text = f"{error:+.0%}"
    return Span(f"▲{text}", "warn") if not FASTER <= 1 + error <= SLOWER else Span(text)


def ratio_span(ratio: float) -> Span:
    if ratio > SLOWER:
        return Span(f"▲ {ratio:.2f}", "warn")
    return Span(f"▾ {ratio:.2f}", "heal") if ratio < FASTER else Span(f"● {ratio:.2f}", "ok")


def _ratio_strip(ratios: Sequence[tuple[Selection, float]]) -> list[Span]:
    spans: list[Span] = []
    for _, ratio in ratios:
        glyph, tone = ratio_span(ratio).text[0], ratio_span(ratio).tone
        spans.append(Span(glyph, tone))
    return spans


def _bucket(each: Selection) -> str:
    return bucket_of(each.context) if each.context is not None else ""


def _strategy_value(row: StrategyRow, column: str) -> Value:
    """Shares in percent and times in seconds, as filters compare them."""
    match column:
        case "strategy":
            return row.arm
        case "bucket":
            return row.bucket
        case "requests":
            return row.executions
        case "token":
            return row.time_per_token_s
        case "deviation":
            return row.deviation_s
        case "predicted":
            return row.predicted_s
        case "first":
            return row.ttft_s
        case "rate":
            return row.tokens_per_s
        case _:
            share = {
                "ok": row.success,
                "off": row.error,
                "busy": row.utilisation,
                "weight": row.weight,
                "regret": row.regret,
            }[column]
            return None if share is None else share * 100


def _seconds(value: Value) -> str:
    return seconds_text(value) if isinstance(value, int | float) else "—"


def _share(value: Value) -> str:
    return "—" if not isinstance(value, int | float) else f"{value:.0f}%"
