"""Deployments as a table, and one of them in full."""

from __future__ import annotations

from collections.abc import Sequence

from agent.facts.fault import Fault
from agent.planner.plan import Plan, rank_places
from agent.planner.words import bytes_words, layers_words
from agent.wire.agent import DeploymentStatus, RankView
from agent.wire.gateway import BackendStatus
from odctl.fleet.history import HISTORY_S
from odctl.fleet.snapshot import DeploymentView, FleetSnapshot
from odctl.tui.model.bars import time_strip
from odctl.tui.model.marks import deployment_mark, fault_mark, rank_mark
from odctl.tui.model.plans import deployed_plan
from odctl.tui.model.readings import NONE
from odctl.tui.model.table import Banner, Column, Value
from odctl.tui.model.text import BLANK, Line, Span, fit, line, wrap
from odctl.tui.model.units import age_text, count_text, percent_text, seconds_text, tokens_per_s_text

COLUMNS = (
    Column(id="name", title="NAME", width=14, grow_to=28),
    Column(id="state", title="STATE", width=11),
    Column(id="gen", title="GEN", width=4, priority=5, is_right=True, sorts_down=True),
    Column(id="tokens", title="TOK/S", width=6, priority=1, is_right=True, sorts_down=True),
    Column(id="ttft", title="TTFT p50", width=9, priority=2, is_right=True, sorts_down=True),
    Column(id="tpot", title="TPOT p50", width=9, priority=7, is_right=True, sorts_down=True),
    Column(id="running", title="RUN", width=4, priority=3, is_right=True, sorts_down=True),
    Column(id="queue", title="QUEUE", width=5, priority=3, is_right=True, sorts_down=True),
    Column(id="kv", title="KV", width=4, priority=8, is_right=True, sorts_down=True),
    Column(id="busy", title="BUSY", width=4, priority=9, is_right=True, sorts_down=True),
    Column(id="bubble", title="BUBBLE", width=6, priority=10, is_right=True, sorts_down=True),
    Column(id="ranks", title="RANKS", width=6, priority=4, is_right=True),
    Column(id="gateway", title="GATEWAY", width=14, priority=6, grow_to=40),
)


class DeploymentRows:
    """Every deployment of a snapshot, by name. Percentages sort and filter as 0 to 100."""

    columns = COLUMNS

    def __init__(self, snapshot: FleetSnapshot) -> None:
        self._views = snapshot.deployments
        self.keys: Sequence[str] = tuple(view.name for view in snapshot.deployments)

    def values(self, column: str) -> Sequence[Value]:
        return [_value(view, column) for view in self._views]

    def text(self, row: int) -> str:
        view = self._views[row]
        return f"{view.name} {deployment_mark(view).word} {view.record.controller}"

    def labels(self, row: int) -> dict[str, str]:  # noqa: ARG002 - deployments have none
        return {}

    def banner(self, row: int) -> Banner | None:  # noqa: ARG002 - every row has its cells
        return None

    def cell(self, row: int, column: str, width: int) -> Line:  # noqa: ARG002 - no cell draws a bar
        view = self._views[row]
        match column:
            case "name":
                return line(Span(view.name, "bold"))
            case "state":
                return line(deployment_mark(view).span)
            case "gateway":
                return _gateway_cell(view)
            case "ranks":
                return line(_ranks_text(view.status))
        value = _value(view, column)
        if value is None or isinstance(value, str):
            return line(Span(NONE, "dim"))
        match column:
            case "tokens":
                return line(tokens_per_s_text(value))
            case "ttft" | "tpot":
                return line(seconds_text(value))
            case "kv" | "busy" | "bubble":
                return line(percent_text(value / 100).strip())
            case _:
                return line(f"{value:.0f}")


def deployment_page(snapshot: FleetSnapshot, name: str, *, width: int) -> tuple[Line, ...]:
    """Why it is as it is, its figures, its ranks and its faults."""
    view = snapshot.deployment(name)
    if view is None:
        return ()
    lines = [*reason_lines(view, width)]
    if view.status is not None:
        plan = deployed_plan(view.status)
        lines += _figures(view.status, width)
        lines += _strip(view, width=width, now_s=snapshot.taken_at_s)
        lines += [BLANK, *rank_lines(view.status, plan)]
    faults = [fault for fault in snapshot.faults if fault.deployment == name]
    if faults:
        lines += [BLANK, line(Span(" FAULTS", "title"))]
        lines += [fault_line(fault, now_s=snapshot.taken_at_s) for fault in faults[:8]]
    return tuple(lines)


def _value(view: DeploymentView, column: str) -> Value:
    backend = view.status.backend if view.status else None
    match column:
        case "name":
            return view.name
        case "state":
            return deployment_mark(view).word
        case "gen":
            return float(view.record.generation)
        case "gateway":
            return view.record.controller
        case "ranks":
            return float(len(view.status.ranks)) if view.status else None
        case "tokens":
            return backend.tokens_per_s if backend else None
        case "ttft":
            return backend.ttft_s_p50 if backend and backend.finished else None
        case "tpot":
            return backend.time_per_token_s_p50 or None if backend else None
        case "kv":
            return backend.blocks_held / backend.kv_blocks * 100 if backend and backend.kv_blocks else None
        case "busy":
            ranks = view.flow.ranks if view.flow is not None else ()
            return max((rank.busy_share * 100 for rank in ranks), default=None)
        case "bubble":
            bubble = view.flow.bubble if view.flow is not None else None
            return None if bubble is None else bubble * 100
        case "running":
            return float(backend.running) if backend else None
        case _:
            return float(backend.queued) if backend else None


def _gateway_cell(view: DeploymentView) -> Line:
    if view.error is not None:
        return line(Span(f"no word from {view.record.controller}: {view.error.message}", "warn"))
    if view.status is None:
        return line(Span(f"asking {view.record.controller} …", "dim"))
    return line(f"{view.status.gateway_host} {view.status.listen}")


def _ranks_text(status: DeploymentStatus | None) -> str:
    if status is None:
        return NONE
    linked = sum(rank.status is not None and rank.status.state == "linked" for rank in status.ranks)
    return f"{linked}/{len(status.ranks)}"


def reason_lines(view: DeploymentView, width: int) -> list[Line]:
    """Name and state, and what is wrong with its way out."""
    mark = deployment_mark(view)
    lines = [line(" ", Span(view.name, "bold"), " ", mark.span)]
    if view.error is not None:
        lines += [line(Span(f" ▲ {text}", "warn")) for text in wrap(view.error.message, width - 4)]
        lines += [line(Span(f"   → {text}", "dim")) for text in wrap(view.error.hint, width - 6) if text]
    status = view.status
    if status is None:
        return lines
    if status.reason:
        lines += [line(Span(f" ▲ {text}", mark.tone)) for text in wrap(status.reason, width - 4)]
    lines += [line(Span(f"   → {text}", "dim")) for text in wrap(status.way_out, width - 6) if text]
    if status.apply_phase is not None:
        lines.append(line(Span(f" ↻ an apply is under way: {status.apply_phase}", "heal")))
    return lines


def _figures(status: DeploymentStatus, width: int) -> list[Line]:
    backend = status.backend
    if backend is None:
        return [line(Span(" its gateway has no backend attached", "warn"))]
    has_finished = backend.finished > 0
    predicted_rate = tokens_per_s_text(status.predicted.tokens_per_s)
    parts = [
        f"{tokens_per_s_text(backend.tokens_per_s)} tok/s (predicted {predicted_rate} at full batch)",
        f"TTFT p50 {_time(backend.ttft_s_p50, has_finished)} p95 {_time(backend.ttft_s_p95, has_finished)}",
        f"per token p50 {_time(backend.time_per_token_s_p50, has_finished)} "
        f"p95 {_time(backend.time_per_token_s_p95, has_finished)} "
        f"(predicted {seconds_text(status.predicted.time_per_token_s)})",
        f"running {backend.running}/{backend.slots}, queued {backend.queued}",
        f"finished {backend.finished}, failed {backend.failed}, cancelled {backend.cancelled}",
        f"{count_text(backend.prompt_tokens)} prompt and {count_text(backend.generated_tokens)} generated tokens",
    ]
    return [line(f" {text}") for text in _flowed(parts, width - 2)] + _backend_error(backend)


def _backend_error(backend: BackendStatus) -> list[Line]:
    return [line(Span(f" ✗ {backend.error.message}", "fault"))] if backend.error is not None else []


def _time(seconds: float, is_known: bool) -> str:
    return seconds_text(seconds) if is_known else NONE


def _flowed(parts: Sequence[str], width: int) -> list[str]:
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 3 + len(part) <= width:
            lines[-1] += f"   {part}"
        else:
            lines.append(part)
    return lines


def _strip(view: DeploymentView, *, width: int, now_s: float) -> list[Line]:
    rows = view.history.rows()
    if not rows:
        return []
    drawn = time_strip(
        [(row.at_s, row.tokens_per_s) for row in rows], max(1, width - 18), end_s=now_s, span_s=HISTORY_S
    )
    peak = max(row.tokens_per_s for row in rows)
    return [line(Span(" tok/s  ", "title"), Span(drawn, "bar"), Span(f" ≤{tokens_per_s_text(peak):>6}", "dim"))]


def rank_lines(status: DeploymentStatus, plan: Plan | None) -> list[Line]:
    """A line for each rank: where it is, what it holds, and its trouble."""
    layers = {place.rank_id: layers_words(place.layers) for place in rank_places(plan)} if plan else {}
    lines = [line(Span(" RANK    HOST       DEVICE  LAYERS       STATE        WEIGHTS       KV   ↻", "title"))]
    return lines + [_rank_line(rank, layers.get(rank.rank_id, NONE)) for rank in status.ranks]


def _rank_line(rank: RankView, layers: str) -> Line:
    mark, status = rank_mark(rank), rank.status
    held = f"{NONE:>8} {NONE:>8}"
    if status is not None:
        held = f"{bytes_words(status.weight_bytes):>8} {bytes_words(status.kv_cache_bytes):>8}"
    trouble = rank.trouble or (status.error.message if status is not None and status.error is not None else "")
    return line(
        f" {fit(rank.rank_id, 7)} {fit(rank.host, 10)} {fit(rank.device, 7)} {fit(layers, 12)} ",
        Span(fit(f"{mark.glyph} {mark.word}", 12), mark.tone),
        f"{held} {rank.restarts:>3}",
        Span(f"  {trouble}" if trouble else "", "warn"),
    )


def fault_line(fault: Fault, *, now_s: float) -> Line:
    """One fault in one line."""
    mark = fault_mark(fault)
    return line(
        " ",
        Span(fit(f"{mark.glyph} {mark.word}", 10), mark.tone),
        f"{age_text(max(0.0, now_s - fault.observed_at_s)):>4} ago  {fault.host} {fault.rank_id} ",
        fault.message,
    )
