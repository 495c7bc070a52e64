"""Predicted against measured, and the regret as it went, drawn for one kind of workload or for all."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise

from agent.planner.learning.course import Measurement, median_error
from odctl.learning import LearningReport
from odctl.tui.model.canvas import Canvas, beside
from odctl.tui.model.learning_rows import FASTER, SLOWER, ratio_span
from odctl.tui.model.text import BLANK, Line, Span, Tone, fit, line, line_width, wrap
from odctl.tui.model.units import age_text, plural, seconds_text

CHART_LINES = 10
MIN_SIDE_BY_SIDE = 70
"""Cells; on less, one chart stands below the other."""
_GAP = 3
_LOG_FROM = 10.0
"""Largest by smallest value from which on both axes are logarithmic."""
_AXIS_CELLS = 8
"""For the labels left of a chart."""


def buckets_of(report: LearningReport) -> tuple[str, ...]:
    """Kinds of workload that were measured, the most measured first."""
    counted = Counter(each.bucket for each in report.measurements)
    return tuple(sorted(counted, key=lambda bucket: (-counted[bucket], bucket)))


def charts_page(
    report: LearningReport, *, bucket: str, width: int, now_s: float, height: int = CHART_LINES
) -> tuple[Line, ...]:
    """Both charts with what they say in words, each strategy's figures below, and every alarm. `bucket` "": all."""
    chosen = [each for each in report.measurements if bucket in ("", each.bucket)]
    heading = bucket or "all kinds of workload"
    if not chosen:
        why = "nothing was measured of it yet" if bucket else "nothing was measured yet"
        return (line(Span(f" {heading}", "bold"), Span(f"   {why}", "dim")), *_drift_lines(report, now_s=now_s))
    error = median_error(chosen)
    off = "no time per token was measured" if error is None else f"predictions off by {error:.1%} (median)"
    lines = [line(Span(f" {heading}", "bold")), line(Span(f" {plural(len(chosen), 'measurement')}   {off}", "dim"))]
    if width >= MIN_SIDE_BY_SIDE:
        half = (width - _GAP - 1) // 2
        blocks = (scatter(chosen, width=half, height=height), regret_chart(report, width=half, height=height))
        lines += [line(" ", *each) for each in beside(blocks, (half, half), gap=_GAP)]
    else:
        lines += [line(" ", *each) for each in scatter(chosen, width=width - 1, height=height)]
        lines += [line(" ", *each) for each in regret_chart(report, width=width - 1, height=height)]
    lines += [BLANK, *_arm_lines(chosen, width=width), *_drift_lines(report, now_s=now_s)]
    return tuple(lines)


def scatter(measurements: Sequence[Measurement], *, width: int, height: int) -> list[Line]:
    """A dot a measurement: predicted time per token across, measured up, on the same scale. On the diagonal the
    prediction was right; above it the plan was slower than promised.
    """
    points = [
        (promised, found, each.ratio or 1.0)
        for each in measurements
        if (promised := each.predicted.time_per_token_s) and (found := each.measured.time_per_token_s)
    ]
    title = line(Span("measured ↑ by predicted →, per token", "title"))
    if not points:
        return [title, line(Span("no time per token was measured", "dim"))]
    values = [value for promised, found, _ in points for value in (promised, found)]
    low, high = _range(values)
    is_log = max(values) / min(values) >= _LOG_FROM
    canvas = Canvas(max(4, width - _AXIS_CELLS - 1), height)

    def place(value: float) -> float:
        if is_log:
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)

    right, bottom = canvas.dots_across - 1, canvas.dots_down - 1
    for x in range(0, canvas.dots_across, 3):
        canvas.dot(x, bottom - round(x / right * bottom), "dim")
    for promised, found, ratio in points:
        canvas.blob(round(place(promised) * right), bottom - round(place(found) * bottom), _tone(ratio))
    lines = _framed(canvas, top=seconds_text(high), bottom=seconds_text(low))
    ends = f"{seconds_text(low)} ─ {'log' if is_log else 'linear'} ─ {seconds_text(high)}"
    return [title, *lines, line(Span(" " * _AXIS_CELLS + "└ " + ends, "dim")), _legend(points)]


def regret_chart(report: LearningReport, *, width: int, height: int) -> list[Line]:
    """The regret so far after each measurement, by time; drift alarms are marked below. Of all workloads: regret
    weighs each by its requests.
    """
    points = [(each.at_s, each.regret) for each in report.measurements if each.regret is not None]
    title = line(Span("regret so far, by time (▲ drift)", "title"))
    if len(points) < 2:
        return [title, line(Span("two measurements are needed for a line", "dim"))]
    moments = [at_s for at_s, _ in points] + [alarm.at_s for alarm in report.alarms]
    first_s, last_s = min(moments), max(moments)
    span_s = max(1.0, last_s - first_s)
    top = max(regret for _, regret in points) or 0.01
    canvas = Canvas(max(4, width - _AXIS_CELLS - 1), height)
    right, bottom = canvas.dots_across - 1, canvas.dots_down - 1
    dots = [
        (round((at_s - first_s) / span_s * right), bottom - round(regret / top * bottom)) for at_s, regret in points
    ]
    for start, end in pairwise(dots):
        canvas.stroke(start, end, "bar")
    marks = [" "] * (canvas.dots_across // 2)
    for alarm in report.alarms:
        marks[min(len(marks) - 1, round((alarm.at_s - first_s) / span_s * right) // 2)] = "▲"
    drift = line(Span(" " * _AXIS_CELLS + "└", "dim"), Span("".join(marks), "warn"))
    ends = f"{_when(first_s)} … {_when(last_s)}"
    return [
        title,
        *_framed(canvas, top=f"{top:.1%}", bottom="0%"),
        drift,
        line(Span(" " * _AXIS_CELLS + " " + ends, "dim")),
    ]


def _framed(canvas: Canvas, *, top: str, bottom: str) -> list[Line]:
    """The canvas with its vertical axis and the labels of both ends."""
    drawn = canvas.lines()
    out = []
    for row, spans in enumerate(drawn):
        label = top if row == 0 else bottom if row == len(drawn) - 1 else ""
        out.append((Span(fit(label, _AXIS_CELLS, is_right=True) + "│", "dim"), *spans))
    return out


def _legend(points: Sequence[tuple[float, float, float]]) -> Line:
    slower = sum(ratio > SLOWER for _, _, ratio in points)
    faster = sum(ratio < FASTER for _, _, ratio in points)
    as_said = len(points) - slower - faster
    return line(
        Span(f" ● {as_said} right", "ok"),
        Span(f"  ▲ {slower} slower", "warn"),
        Span(f"  ▾ {faster} faster", "heal"),
    )


def _arm_lines(measurements: Sequence[Measurement], *, width: int) -> list[Line]:
    """Each strategy: how often it was measured, and the last ratios, oldest to newest."""
    by_arm: dict[str, list[Measurement]] = {}
    for each in measurements:
        by_arm.setdefault(each.arm, []).append(each)
    lines = [line(Span(" strategy        measured  off (median)  ratios, oldest to newest", "title"))]
    for arm, of_it in sorted(by_arm.items()):
        error = median_error(of_it)
        off = "—" if error is None else f"{error:.1%}"
        head = line(Span(f" {arm:<16.16}", "bold"), f"{len(of_it):>7}{off:>14}  ")
        room = max(1, width - line_width(head) - 1)
        ratios = [each.ratio for each in of_it if each.ratio is not None][-room:]
        lines.append((*head, *(Span(ratio_span(ratio).text[0], ratio_span(ratio).tone) for ratio in ratios)))
    return lines


def _drift_lines(report: LearningReport, *, now_s: float) -> list[Line]:
    """Every alarm and change, the newest first; the summary above the table has the last ones alone."""
    told: list[tuple[float, str]] = [
        (
            alarm.at_s,
            f"{alarm.arm} of {alarm.deployment} took {alarm.ratio:.2f} times what was predicted: what was learnt "
            "before it fades",
        )
        for alarm in report.alarms
    ]
    told += [
        (change.since_s, f"plan {change.plan_hash[:12]}: a link or device of it is not what it was")
        for change in report.changes
    ]
    if not told:
        return [BLANK, line(Span(" ● no drift was seen", "ok"))]
    lines = [BLANK, line(Span(" drift, the newest first", "title"))]
    for at_s, text in sorted(told, reverse=True):
        lines += [
            line(Span(f" ▲ {age_text(max(0.0, now_s - at_s)):>4} ago  " if not row else " " * 12, "warn"), part)
            for row, part in enumerate(wrap(text, 66))
        ]
    return lines


def _range(values: Sequence[float]) -> tuple[float, float]:
    """A little beyond the least and the greatest; never empty."""
    low, high = min(values), max(values)
    margin = (high - low) * 0.05 or high * 0.1
    return max(low * 0.9, low - margin), high + margin


def _tone(ratio: float) -> Tone:
    return ratio_span(ratio).tone


def _when(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%m-%d %H:%MZ")
