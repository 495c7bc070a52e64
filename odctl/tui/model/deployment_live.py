"""One deployment in full, live: figures beside predictions, fifteen minutes of history, stages and links. Pure."""

from __future__ import annotations

from collections.abc import Callable

from agent.planner.plan import Plan
from agent.planner.words import rate_interval_words, seconds_interval_words
from agent.wire.agent import DeploymentStatus
from agent.wire.gateway import BackendStatus
from odctl.fleet.history import HISTORY_S, DeploymentRow
from odctl.fleet.snapshot import DeploymentView, FleetSnapshot
from odctl.tui.model.bars import bar, time_strip
from odctl.tui.model.deployment_flow import link_lines, stage_lines
from odctl.tui.model.deployment_rows import fault_line, rank_lines, reason_lines
from odctl.tui.model.plans import deployed_plan
from odctl.tui.model.readings import NONE
from odctl.tui.model.text import BLANK, Line, Span, fit, line
from odctl.tui.model.units import age_text, count_text, percent_text, plural, seconds_text, tokens_per_s_text

SHOWN_FAULTS = 8
_LABEL, _FIGURE, _PREDICTED = 15, 9, 24


def live_page(snapshot: FleetSnapshot, name: str, *, width: int) -> tuple[Line, ...]:
    """Everything of one deployment but its requests. Says so when it is not deployed any more."""
    view = snapshot.deployment(name)
    if view is None:
        return (
            line(Span(f" ○ {name} is not deployed any more: no host of the inventory knows it", "warn")),
            line(Span("   → esc leads back to those that are", "dim")),
        )
    lines = reason_lines(view, width)
    status = view.status
    if status is None:
        return (*lines, line(Span(f" asking its controller {view.record.controller} …", "dim")))
    plan = deployed_plan(status)
    lines += [*_identity(status, plan, now_s=snapshot.taken_at_s), BLANK]
    lines += _figures(status, plan, width)
    lines += _history(view, width=width, now_s=snapshot.taken_at_s)
    lines += [BLANK, *stage_lines(view, plan, width=width)]
    lines += link_lines(view, plan, width=width)
    lines += [BLANK, *rank_lines(status, plan)]
    faults = [fault for fault in snapshot.faults if fault.deployment == name]
    if faults:
        lines += [BLANK, line(Span(" FAULTS", "title"))]
        lines += [fault_line(fault, now_s=snapshot.taken_at_s) for fault in faults[:SHOWN_FAULTS]]
        if len(faults) > SHOWN_FAULTS:
            lines.append(line(Span(f" and {len(faults) - SHOWN_FAULTS} older ones: the faults screen", "dim")))
    return tuple(lines)


def _identity(status: DeploymentStatus, plan: Plan | None, *, now_s: float) -> list[Line]:
    model = f"{plan.model.name} {plan.serving.precision}" if plan else "a plan of another release"
    served = age_text(max(0.0, now_s - status.applied_at_s))
    return [
        line(
            f" generation {status.generation}  controller {status.controller}  plan {status.plan_hash[:12]}  ",
            f"applied {served} ago",
        ),
        line(f" {model}  http://{status.listen} on {status.gateway_host}"),
    ]


def _figures(status: DeploymentStatus, plan: Plan | None, width: int) -> list[Line]:
    backend = status.backend
    if backend is None:
        return [line(Span(" ✗ its gateway has no backend attached: no figures", "warn"))]
    predicted = status.predicted
    has_any = backend.finished > 0
    checked = status.checked
    head = " " + fit("", _LABEL) + "".join(fit(each, _FIGURE, is_right=True) for each in ("p50", "p95"))
    lines = [line(Span(f"{head}  {fit('predicted', _PREDICTED)} {'at apply':>9}", "title"))]
    lines.append(
        _row(
            "first token",
            _time(backend.ttft_s_p50, has_any),
            _time(backend.ttft_s_p95, has_any),
            seconds_interval_words(predicted.ttft),
            seconds_text(checked.ttft_s) if checked else NONE,
        )
    )
    has_tpot = backend.time_per_token_s_p50 > 0
    lines.append(
        _row(
            "per token",
            _time(backend.time_per_token_s_p50, has_tpot),
            _time(backend.time_per_token_s_p95, has_tpot),
            seconds_interval_words(predicted.time_per_token),
            seconds_text(checked.time_per_token_s) if checked else NONE,
        )
    )
    lines.append(
        _row(
            "tokens/s now",
            tokens_per_s_text(backend.tokens_per_s),
            "",
            rate_interval_words(predicted.throughput),
            NONE,
        )
    )
    batch = f" at the full batch of {plan.serving.batch}" if plan else " at the full batch"
    lines.append(line(Span(f" predicted: {predicted.prompt_tokens} prompt tokens, alone; tokens/s{batch}", "dim")))
    if not has_any:
        lines.append(line(Span(" no request has ended since this generation serves: no percentiles yet", "dim")))
    lines += [BLANK, *_occupancy(backend, plan, width), *_counts(backend, width)]
    if backend.error is not None:
        lines.append(line(Span(f" ✗ {backend.error.message}", "fault")))
    return lines


def _row(label: str, p50: str, p95: str, predicted: str, checked: str) -> Line:
    figures = fit(p50, _FIGURE, is_right=True) + fit(p95, _FIGURE, is_right=True)
    return line(" ", Span(fit(label, _LABEL), "bold"), figures, f"  {fit(predicted, _PREDICTED)} {checked:>9}")


def _time(seconds: float, is_known: bool) -> str:
    return seconds_text(seconds) if is_known else NONE


def _occupancy(backend: BackendStatus, plan: Plan | None, width: int) -> list[Line]:
    """Slots, queue and KV cache; where a gateway does not count blocks, that is said instead of 0."""
    cells = 8 if width < 100 else 20
    batch = backend.running / backend.slots if backend.slots else 0.0
    parts: list[Span | str] = [
        " ",
        Span("batch ", "bold"),
        Span(bar(batch, cells), "bar"),
        f" {backend.running}/{backend.slots}  ",
        Span("queue ", "bold"),
        f"{backend.queued}" + (f"/{plan.serving.queue}" if plan else ""),
        "  ",
        Span("KV ", "bold"),
    ]
    if backend.kv_blocks:
        share = backend.blocks_held / backend.kv_blocks
        parts += [
            Span(bar(share, cells), "kv"),
            f" {percent_text(share).strip()} ({backend.blocks_held:,}/{backend.kv_blocks:,} blocks)",
        ]
    else:
        parts.append(Span(f"{NONE} its gateway is of a release that does not count them", "dim"))
    return [line(*parts)]


def _counts(backend: BackendStatus, width: int) -> list[Line]:
    parts = [
        f"finished {backend.finished:,}",
        f"failed {backend.failed:,}",
        f"cancelled {backend.cancelled:,}",
        f"{count_text(backend.prompt_tokens)} prompt and {count_text(backend.generated_tokens)} answer tokens",
    ]
    if backend.prefix_hit_tokens:
        parts.append(f"{count_text(backend.prefix_hit_tokens)} prompt tokens found computed")
    if backend.preemptions:
        parts.append(plural(backend.preemptions, "preemption"))
    if backend.drafts_proposed:
        share = backend.drafts_accepted / backend.drafts_proposed
        parts.append(f"{percent_text(share).strip()} of {count_text(backend.drafts_proposed)} guesses right")
    if backend.broken_replicas:
        parts.append(f"broken replicas {', '.join(map(str, backend.broken_replicas))}")
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 2 + len(part) <= width - 2:
            lines[-1] += f"  {part}"
        else:
            lines.append(part)
    return [line(f" {text}") for text in lines]


_Get = Callable[[DeploymentRow], float | None]
_STRIPS: tuple[tuple[str, _Get, Callable[[float], str], float | None], ...] = (
    ("tok/s", lambda row: row.tokens_per_s, tokens_per_s_text, None),
    ("first token", lambda row: row.ttft_s, seconds_text, None),
    ("per token", lambda row: row.time_per_token_s, seconds_text, None),
    ("running", lambda row: float(row.running), lambda value: f"{value:.0f}", None),
    ("queue", lambda row: float(row.queued), lambda value: f"{value:.0f}", None),
    ("KV in use", lambda row: row.kv, lambda value: percent_text(value).strip(), 1.0),
    ("ranks busy", lambda row: row.busy, lambda value: percent_text(value).strip(), 1.0),
    ("bubble", lambda row: row.bubble, lambda value: percent_text(value).strip(), 1.0),
)
"""Title, value, its words, and the full height where that is fixed."""


def _history(view: DeploymentView, *, width: int, now_s: float) -> list[Line]:
    rows = view.history.rows()
    if not rows:
        return []
    span_s = min(HISTORY_S, max(60.0, now_s - rows[0].at_s))
    title = f" LAST {age_text(span_s)}"
    lines = [
        BLANK,
        line(Span(fit(title, 14), "title"), Span("the highest of each cell; ≤ the highest of all", "dim")),
    ]
    for name, value_of, words, top in _STRIPS:
        points = [(row.at_s, value_of(row)) for row in rows]
        known = [value for _, value in points if value is not None]
        if not known:
            lines.append(line(" ", Span(fit(name, 13), "bold"), Span(f"{NONE} not known yet", "dim")))
            continue
        drawn = time_strip(points, max(1, width - 26), end_s=now_s, span_s=span_s, top=top)
        lines.append(
            line(" ", Span(fit(name, 13), "bold"), Span(drawn, "bar"), Span(f" ≤{words(max(known)):>8}", "dim"))
        )
    return lines
