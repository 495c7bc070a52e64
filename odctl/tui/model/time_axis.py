"""A stretch of time that a lane is drawn over: zoomed, scrubbed, or following the present. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

SPANS_S = (10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 6 * 3600.0, 24 * 3600.0, 7 * 24 * 3600.0)
"""What zooming goes through, from the closest on."""
DEFAULT_SPAN_S = 3600.0
SCRUB_SHARE = 0.125
"""Of the stretch, that one key press moves it."""
MARGIN_SHARE = 0.15
"""Room beside a story that the axis is fitted to."""
_TICKS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800)
_TICK_CELLS = 12
"""Between two labels there are at least so many cells."""
TICK = "▏"


class Axis(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds since the epoch. `end_s` None: the end is now, and moves on."""

    span_s: float = DEFAULT_SPAN_S
    end_s: float | None = None

    def end(self, now_s: float) -> float:
        return now_s if self.end_s is None else self.end_s

    def start(self, now_s: float) -> float:
        return self.end(now_s) - self.span_s

    def zoomed(self, step: int, *, now_s: float) -> Axis:
        """Closer for a positive step. The middle stays where it is; the present stays at the end."""
        if step > 0:
            closer = [span for span in SPANS_S if span < self.span_s * 0.999]
            span_s = closer[-1] if closer else self.span_s
        else:
            span_s = next((span for span in SPANS_S if span > self.span_s * 1.001), self.span_s)
        if self.end_s is None:
            return Axis(span_s=span_s)
        middle_s = self.end_s - self.span_s / 2
        return Axis(span_s=span_s, end_s=middle_s + span_s / 2).clipped(now_s=now_s)

    def scrubbed(self, step: int, *, now_s: float) -> Axis:
        """Moved to the past (negative) or towards the present, at which it follows again."""
        moved_s = self.end(now_s) + step * self.span_s * SCRUB_SHARE
        return Axis(span_s=self.span_s, end_s=moved_s).clipped(now_s=now_s)

    def clipped(self, *, now_s: float) -> Axis:
        return Axis(span_s=self.span_s) if self.end_s is not None and self.end_s >= now_s else self

    def around(self, begin_s: float, end_s: float, *, now_s: float) -> Axis:
        """As close as shows all of it, with a margin."""
        length_s = max(SPANS_S[0], (end_s - begin_s) * (1 + 2 * MARGIN_SHARE))
        middle_s = (begin_s + end_s) / 2
        return Axis(span_s=length_s, end_s=middle_s + length_s / 2).clipped(now_s=now_s)


def ticks_text(axis: Axis, width: int, *, now_s: float) -> str:
    """`width` cells with times in UTC at their places: `   ▏14:00Z      ▏14:10Z   `."""
    cell_s = axis.span_s / max(1, width)
    step_s = next((step for step in _TICKS_S if step >= cell_s * _TICK_CELLS), _TICKS_S[-1])
    start_s = axis.start(now_s)
    cells = [" "] * width
    tick_s = -(-start_s // step_s) * step_s
    while tick_s < start_s + axis.span_s:
        cell = int((tick_s - start_s) / cell_s)
        label = TICK + _label(tick_s, step_s)
        if cell + len(label) <= width:
            cells[cell : cell + len(label)] = label
        tick_s += step_s
    return "".join(cells)


def span_text(axis: Axis, *, now_s: float) -> str:
    """`last 15m`, or `15m until 2026-03-01 14:02:31Z` where it does not follow the present."""
    span = length_text(axis.span_s)
    if axis.end_s is None:
        return f"last {span}"
    end = datetime.fromtimestamp(axis.end(now_s), UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    return f"{span} until {end}"


def length_text(seconds: float) -> str:
    """`10s`, `15m`, `6h`, `7d`; `27s` of a fitted axis."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds / size:.3g}{unit}"
    return f"{seconds:.3g}s"


def _label(at_s: float, step_s: float) -> str:
    moment = datetime.fromtimestamp(at_s, UTC)
    if step_s >= 86_400:
        return moment.strftime("%b %d")
    return moment.strftime("%H:%M:%SZ" if step_s < 60 else "%H:%MZ")
