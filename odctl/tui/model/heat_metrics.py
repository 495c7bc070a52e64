"""What the heat map may show of a host: a figure, the steps of its shades, and how it is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from odctl.tui.model.fleet_columns import CONDITION_MARKS, FAULT, HEALING, NO_DATA, WARNING
from odctl.tui.model.text import Line, Span, Tone, line
from odctl.tui.model.units import bytes_text, rate_text, tokens_per_s_text

SHADES = "·░▒▓█"
"""From nearly nothing to nearly everything; the steps between them are the metric's."""
SHADE_TONES: tuple[Tone, ...] = ("dim", "bar", "bar", "bar", "kv")
_QUARTERS = (0.05, 0.25, 0.50, 0.75)


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """`figure` is a column of FleetColumns. `steps` None: shares of the highest value of the fleet."""

    id: str
    title: str
    figure: str
    text: Callable[[float], str]
    steps: tuple[float, ...] | None = None
    step_text: Callable[[float], str] | None = None
    """How a step is written in the legend, where that is shorter than `text`."""

    def bounds(self, values: Sequence[float | None]) -> tuple[float, ...]:
        """The four values at which the next shade begins."""
        if self.steps is not None:
            return self.steps
        highest = max((value for value in values if value is not None), default=0.0)
        return tuple(share * highest for share in _QUARTERS) if highest > 0 else (1.0,) * len(_QUARTERS)


def _percent(value: float) -> str:
    return f"{value:.0f}%"


METRICS: tuple[Metric, ...] = (
    Metric(
        id="util",
        title="utilisation of GPUs, else CPU",
        figure="util",
        text=_percent,
        steps=(5.0, 25.0, 50.0, 75.0),
    ),
    Metric(
        id="memory",
        title="memory of GPUs, else the host",
        figure="memory",
        text=_percent,
        steps=(5.0, 25.0, 50.0, 75.0),
    ),
    Metric(
        id="temp",
        title="hottest device",
        figure="temp",
        text=lambda value: f"{value:.0f}°",
        steps=(40.0, 55.0, 70.0, 80.0),
    ),
    Metric(id="net", title="network, both ways, a second", figure="net", text=rate_text, step_text=bytes_text),
    Metric(
        id="tokens",
        title="tokens/s of a host's deployments",
        figure="tokens",
        text=lambda value: f"{tokens_per_s_text(value)}/s",
        step_text=tokens_per_s_text,
    ),
)


def next_metric(metric: Metric, step: int = 1) -> Metric:
    return METRICS[(METRICS.index(metric) + step) % len(METRICS)]


def shade_tone(index: int, *, is_shaded: bool) -> Tone:
    """The tone of one of SHADES; the same for all where load is told by glyph alone."""
    return SHADE_TONES[index] if is_shaded else "bar"


def legend_line(metric: Metric, bounds: Sequence[float], *, is_shaded: bool = True) -> Line:
    """` · <5% ░ <25% ▒ <50% ▓ <75% █ more   ▲ warn ✗ fault ○ no data ↻ healing`."""
    spans: list[Span] = []
    text = metric.step_text or metric.text
    for index, bound in enumerate(bounds):
        spans += [
            Span(f" {SHADES[index]}", shade_tone(index, is_shaded=is_shaded)),
            Span(f" <{text(bound)}", "dim"),
        ]
    spans += [Span(f" {SHADES[-1]}", shade_tone(len(bounds), is_shaded=is_shaded)), Span(" more  ", "dim")]
    for condition in (WARNING, FAULT, NO_DATA, HEALING):
        mark = CONDITION_MARKS[condition]
        spans += [Span(f" {mark.glyph}", mark.tone), Span(f" {mark.word}", "dim")]
    return line(*spans)
