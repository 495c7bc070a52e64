"""What every screen has around its body: title, tabs, and the fleet in one line."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from agent.facts.sample import DeviceSample
from odctl.fleet.snapshot import FleetSnapshot, HostView
from odctl.tui.model.bars import bar
from odctl.tui.model.marks import HOST_MARKS
from odctl.tui.model.readings import reading_value
from odctl.tui.model.text import Line, Span, line, line_width, spread
from odctl.tui.model.units import bytes_text, percent_text, plural, rate_text, tokens_per_s_text

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
    end = 0
    for mode, span in _tabs(current, width):
        end += len(span.text)
        if x < end:
            return mode
    return ""


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


def fleet_lines(snapshot: FleetSnapshot, *, width: int) -> tuple[Line, ...]:
    """Hosts by state, load and memory of those that are live, and what the deployments serve."""
    live = [host for host in snapshot.hosts if host.state == "live" and host.sample is not None]
    parts = [_hosts_part(snapshot)]
    if live:
        parts += [_cpu_part(live, width), _ram_part(live, width), *_gpu_parts(live, width)]
    parts += [_net_part(live)] if live else []
    parts += _serving_parts(snapshot)
    return _packed(parts, width)


def _packed(parts: Sequence[Line], width: int) -> tuple[Line, ...]:
    """Parts in as few lines as they need, two spaces between them."""
    lines: list[Line] = []
    current: Line = line(" ")
    for part in parts:
        gap = 2 if line_width(current) > 1 else 0
        if line_width(current) + gap + line_width(part) > width and gap:
            lines.append(current)
            current, gap = line(" "), 0
        current += (Span(" " * gap), *part)
    lines.append(current)
    return tuple(lines)


def _minutes_left(seconds: float) -> str:
    return f" {math.ceil(seconds / 60)}m" if seconds > 0 else ""


def _trouble(snapshot: FleetSnapshot | None) -> list[Span]:
    if snapshot is None:
        return []
    states = Counter(host.state for host in snapshot.hosts)
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


def _hosts_part(snapshot: FleetSnapshot) -> Line:
    states = Counter(host.state for host in snapshot.hosts)
    spans = [Span(plural(len(snapshot.hosts), "host"), "bold")]
    for state, mark in HOST_MARKS.items():
        if states[state]:
            spans += [Span(" "), Span(f"{mark.glyph}{states[state]} {mark.word}", mark.tone)]
    return tuple(spans)


def _meter(title: str, fraction: float, width: int, text: str) -> Line:
    cells = 8 if width < 100 else 16
    return line(f"{title} ", Span(bar(fraction, cells), "bar"), f" {text}")


def _cpu_part(live: Sequence[HostView], width: int) -> Line:
    """Busy share over all cores, so that a big host weighs as much as it is."""
    cores = sum(host.facts.cpu_cores for host in live if host.facts)
    busy = sum(host.sample.cpu * host.facts.cpu_cores for host in live if host.facts and host.sample)
    fraction = busy / cores if cores else 0.0
    return _meter("CPU", fraction, width, percent_text(fraction).strip())


def _ram_part(live: Sequence[HostView], width: int) -> Line:
    used = sum(host.sample.memory_used_bytes for host in live if host.sample)
    total = sum(host.sample.memory_total_bytes for host in live if host.sample)
    return _meter("RAM", used / total if total else 0.0, width, f"{bytes_text(used)}/{bytes_text(total)}")


def _gpu_parts(live: Sequence[HostView], width: int) -> list[Line]:
    gpus = [device for host in live if host.sample for device in host.sample.devices if device.kind != "cpu"]
    if not gpus:
        return []
    known = [value for gpu in gpus if (value := reading_value(gpu.utilisation)) is not None]
    used, total = _sum(gpus, "memory_used_bytes"), _sum(gpus, "memory_total_bytes")
    mean = sum(known) / len(known) if known else 0.0
    name = plural(len(gpus), "GPU")
    return [
        _meter(name, mean, width, percent_text(mean).strip() if known else "—"),
        _meter("VRAM", used / total if total else 0.0, width, f"{bytes_text(used)}/{bytes_text(total)}"),
    ]


def _sum(gpus: Sequence[DeviceSample], field: str) -> float:
    return sum(reading_value(getattr(gpu, field)) or 0.0 for gpu in gpus)


def _net_part(live: Sequence[HostView]) -> Line:
    sent = sum(host.history.last.sent_bytes_per_s for host in live if host.history.last)
    return line(f"net ↑ {rate_text(sent)}")


def _serving_parts(snapshot: FleetSnapshot) -> list[Line]:
    if not snapshot.deployments:
        return []
    backends = [
        view.status.backend for view in snapshot.deployments if view.error is None and view.status is not None
    ]
    rate = sum(backend.tokens_per_s for backend in backends if backend is not None)
    return [
        line(f"{plural(len(snapshot.deployments), 'deployment')} ", Span(tokens_per_s_text(rate), "bold"), " tok/s")
    ]
