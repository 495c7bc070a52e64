"""What every screen has around its body: title, tabs, and the fleet in one line."""

from __future__ import annotations

import math
from collections.abc import Sequence

from odctl.fleet.snapshot import FleetSnapshot
from odctl.tui.model.fleet_columns import fleet_columns
from odctl.tui.model.fleet_summary import fleet_lines as fleet_lines  # noqa: PLC0414 - screens ask the frame for it
from odctl.tui.model.text import Line, Span, line, part_at, spread

MODES: tuple[tuple[str, str], ...] = (
    ("fleet", "Fleet"),
    ("plans", "Plans"),
    ("deployments", "Deploy"),
    ("faults", "Faults"),
    ("learning", "Learn"),
    ("logs", "Logs"),
    ("chat", "Chat"),
    ("models", "Models"),
    ("probes", "Probes"),
)
"""Mode names in the order of their keys, with their titles."""
FRESH_S = 3.0
"""A snapshot older than this is said to be old: the watch itself is behind."""


def title_line(
    snapshot: FleetSnapshot | None,
    trail: Sequence[str],
    *,
    width: int,
    is_read_only: bool,
    now_s: float,
    unlocked_for_s: float = 0.0,
    moment: Line = (),
    recording: Line = (),
) -> Line:
    """` odctl ▸ lab ▸ Fleet … ▲1 ✗2 ● live RO`: where we are, what is wrong, how fresh that is, and whether changes
    are allowed (`RW 9m`: for how long).

    `moment` takes the place of the freshness where another moment is shown than the present; `recording` says that
    one is being written.
    """
    cluster = snapshot.cluster if snapshot else "…"
    steps = " ▸ ".join(["odctl", cluster, *trail])
    lock = Span("  RO ", "bold") if is_read_only else Span(f"  RW{_minutes_left(unlocked_for_s)} ", "warn")
    right = [*_trouble(snapshot), *recording, *(moment or _freshness(snapshot, now_s)), lock]
    return spread(line(Span(f" {steps}", "title")), tuple(right), width)


def tabs_line(current: str, *, width: int) -> Line:
    """` [1 Fleet]  2 Plans …`; closer together where the terminal is narrow."""
    return tuple(span for _, span in _tabs(current, width))


def tab_at(current: str, x: int, *, width: int) -> str:
    """The mode whose tab stands at cell `x` of that line; empty between them."""
    return part_at(((mode, (span,)) for mode, span in _tabs(current, width)), x) or ""


def tab_place(current: str, mode: str, *, width: int) -> int:
    """The cell where the number of a mode's tab stands."""
    start = 0
    for found, span in _tabs(current, width):
        if found == mode:
            return start + 1
        start += len(span.text)
    raise AssertionError(f"no tab for {mode}")


def _tabs(current: str, width: int) -> list[tuple[str, Span]]:
    """Spans of the line with the mode that each belongs to; empty for a gap."""
    gap = "  " if width >= 110 else " " if width >= 95 else ""
    after = " " if width >= 95 else ""
    spans: list[tuple[str, Span]] = [("", Span(" " if gap else ""))]
    for number, (mode, title) in enumerate(MODES, start=1):
        if mode == current:
            spans.append((mode, Span(f"[{number} {title}]", "key")))
        else:
            spans.append((mode, Span(f" {number} {title}{after}", "dim")))
        spans.append(("", Span(gap if number < len(MODES) else "")))
    return spans


def _minutes_left(seconds: float) -> str:
    return f" {math.ceil(seconds / 60)}m" if seconds > 0 else ""


def _trouble(snapshot: FleetSnapshot | None) -> list[Span]:
    if snapshot is None:
        return []
    states = fleet_columns(snapshot).state_counts
    open_faults = [fault for fault in snapshot.faults if fault.healed_at_s is None]
    warnings = states["stale"] + sum(fault.severity == "warning" for fault in open_faults)
    faults = states["lost"] + states["unreachable"] + sum(fault.severity == "fault" for fault in open_faults)
    healing = sum(
        view.status is not None and view.status.state == "healing" and view.error is None
        for view in snapshot.deployments
    )
    counted: list[tuple[int, Span]] = [
        (warnings, Span(f"▲{warnings} ", "warn")),
        (faults, Span(f"✗{faults} ", "fault")),
        (states["connecting"], Span(f"○{states['connecting']} ", "dim")),
        (healing, Span(f"↻{healing} ", "heal")),
    ]
    return [span for count, span in counted if count]


def _freshness(snapshot: FleetSnapshot | None, now_s: float) -> list[Span]:
    if snapshot is None:
        return [Span(" ○ connecting", "dim")]
    age_s = now_s - snapshot.taken_at_s
    if age_s > FRESH_S:
        return [Span(f" ▲ {age_s:.0f} s old", "warn")]
    return [Span(" ● live", "ok")]
