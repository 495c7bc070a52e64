"""The fleet in a line or two, and its tokens a second over the last fifteen minutes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

from odctl.fleet.history import HISTORY_S, DeploymentRow
from odctl.fleet.snapshot import FleetSnapshot
from odctl.tui.model.bars import bar, strip
from odctl.tui.model.fleet_columns import FleetColumns, fleet_columns
from odctl.tui.model.marks import HOST_MARKS
from odctl.tui.model.text import Line, Span, line, line_width
from odctl.tui.model.units import bytes_text, percent_text, plural, rate_text, tokens_per_s_text


def fleet_lines(snapshot: FleetSnapshot, *, width: int) -> tuple[Line, ...]:
    """Hosts by state, load and memory of those that are live, and what the deployments serve."""
    fleet = fleet_columns(snapshot)
    parts = [_hosts_part(fleet)]
    if fleet.totals.num_hosts:
        parts += [_cpu_part(fleet, width), _ram_part(fleet, width), *_gpu_parts(fleet, width), _net_part(fleet)]
    parts += _serving_parts(snapshot)
    return _packed(parts, width)


def tokens_line(snapshot: FleetSnapshot, *, width: int) -> Line | None:
    """` tok/s 15m ▁▂▅▇ up to 61.0`: what all deployments made together; None where nothing is deployed.

    A cell is the sum of the deployments' means over its time: the rate of now is not in it, and stands above.
    Cells in which none was asked stay blank.
    """
    if not snapshot.deployments:
        return None
    minutes = round(HISTORY_S / 60)
    head, cells = f" tok/s {minutes}m ", max(8, width - 36)
    rates = token_rates(
        [view.history.rows() for view in snapshot.deployments], cells, end_s=snapshot.taken_at_s, span_s=HISTORY_S
    )
    known = [rate for rate in rates if rate is not None]
    if not known:
        return line(Span(head, "title"), Span("no deployment has told its rate yet", "dim"))
    drawn = strip(rates, cells, top=max(known) or 1.0)
    now = Span("" if rates[-1] is not None else " no word now", "warn")
    return line(
        Span(head, "title"), Span(drawn, "bar"), Span(f" up to {tokens_per_s_text(max(known))}", "dim"), now
    )


def token_rates(
    histories: Sequence[Sequence[DeploymentRow]], cells: int, *, end_s: float, span_s: float
) -> list[float | None]:
    """Tokens a second of all together, a value a cell, oldest first; None where no history has a row.

    Histories are asked at different moments, so means over a cell's time are summed, not single rows.
    """
    out: list[float | None] = [None] * cells
    edges = [end_s - span_s * (cells - cell) / cells for cell in range(cells)]
    for rows in histories:
        moments, rates = [row.at_s for row in rows], [row.tokens_per_s for row in rows]
        firsts = (bisect_left(moments, edge) for edge in edges)
        for cell, (first, end) in enumerate(pairwise((*firsts, len(rows)))):
            if first < end:
                out[cell] = (out[cell] or 0.0) + sum(rates[first:end]) / (end - first)
    return out


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


def _hosts_part(fleet: FleetColumns) -> Line:
    states = fleet.state_counts
    spans = [Span(plural(len(fleet.hosts), "host"), "bold")]
    for state, mark in HOST_MARKS.items():
        if states[state]:
            spans += [Span(" "), Span(f"{mark.glyph}{states[state]:,} {mark.word}", mark.tone)]
    return tuple(spans)


def _meter(title: str, fraction: float, width: int, text: str) -> Line:
    cells = 8 if width < 100 else 16
    return line(f"{title} ", Span(bar(fraction, cells), "bar"), f" {text}")


def _cpu_part(fleet: FleetColumns, width: int) -> Line:
    """Busy share over all cores, so that a big host weighs as much as it is."""
    totals = fleet.totals
    fraction = totals.busy_cores / totals.cores if totals.cores else 0.0
    return _meter("CPU", fraction, width, percent_text(fraction).strip())


def _ram_part(fleet: FleetColumns, width: int) -> Line:
    used, total = fleet.totals.memory_used_bytes, fleet.totals.memory_total_bytes
    return _meter("RAM", used / total if total else 0.0, width, f"{bytes_text(used)}/{bytes_text(total)}")


def _gpu_parts(fleet: FleetColumns, width: int) -> list[Line]:
    """Utilisation is the mean of the GPUs that tell it; memory is that of the GPUs that tell used and total."""
    totals = fleet.totals
    if not totals.num_gpus:
        return []
    mean = totals.busy_gpus / totals.num_telling if totals.num_telling else 0.0
    used, total = totals.gpu_used_bytes, totals.gpu_total_bytes
    vram = f"{bytes_text(used)}/{bytes_text(total)}" if total else "—"
    share = percent_text(mean).strip() if totals.num_telling else "—"
    return [
        _meter(plural(totals.num_gpus, "GPU"), mean, width, share),
        _meter("VRAM", used / total if total else 0.0, width, vram),
    ]


def _net_part(fleet: FleetColumns) -> Line:
    return line(f"net ↑ {rate_text(fleet.totals.sent_bytes_per_s)}")


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
