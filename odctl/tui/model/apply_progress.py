"""The progress of one apply: events in, state out; and its page. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec

from agent.errors import ErrorDetail
from agent.planner.plan import Plan
from agent.planner.words import seconds_words
from agent.wire.agent import ApplyEvent, ApplyPhase
from agent.wire.gateway import CheckReport
from odctl.tui.model.bars import bar
from odctl.tui.model.marks import Mark
from odctl.tui.model.text import BLANK, Line, Span, fit, line, wrap
from odctl.tui.model.units import age_text

PHASES: tuple[tuple[ApplyPhase, str], ...] = (
    ("prepare", "take the lock on every host"),
    ("fetch", "bring the shards to their hosts"),
    ("start", "start ranks and load weights"),
    ("link", "connect the ranks"),
    ("warm", "attach the gateway"),
    ("check", "decode a canary on every replica"),
    ("switch", "send new requests to the new generation"),
    ("commit", "have every host remember it"),
    ("retire", "drain and stop the old generation"),
)
LOG_LINES = 200

PhaseState = Literal["waiting", "started", "finished", "failed"]
_MARKS: dict[PhaseState, Mark] = {
    "waiting": Mark("·", "waiting", "dim"),
    "started": Mark("▒", "under way", "heal"),
    "finished": Mark("█", "done", "ok"),
    "failed": Mark("✗", "failed", "fault"),
}


class HostProgress(msgspec.Struct, frozen=True, kw_only=True):
    """The last that was heard of a host, and how far its phase is."""

    phase: ApplyPhase
    message: str
    done: int
    total: int
    at_s: float


class ApplyProgress(msgspec.Struct, frozen=True, kw_only=True):
    plan: Plan
    phases: dict[str, PhaseState] = {}
    began_s: dict[str, float] = {}
    ended_s: dict[str, float] = {}
    hosts: dict[str, HostProgress] = {}
    log: tuple[str, ...] = ()
    generation: int = 0
    checked: CheckReport | None = None
    error: ErrorDetail | None = None
    is_over: bool = False
    is_rolled_back: bool = False
    last_at_s: float = 0.0

    @property
    def is_done(self) -> bool:
        """Over, and serving."""
        return self.is_over and self.error is None


def take_event(progress: ApplyProgress, event: ApplyEvent) -> ApplyProgress:
    """The progress after one more event."""
    phases, began_s, ended_s = dict(progress.phases), dict(progress.began_s), dict(progress.ended_s)
    # The operator's own steps come before the controller's first word and carry no time of its clock.
    times: dict[str, float] = {event.phase: event.at_s} if event.at_s else {}
    began_s = times | began_s
    match event.state:
        case "started" | "progress":
            if phases.get(event.phase) not in {"finished", "failed"}:
                phases[event.phase] = "started"
        case "finished" | "failed":
            phases[event.phase] = event.state
            ended_s |= times
    hosts = dict(progress.hosts)
    if event.host:
        hosts[event.host] = HostProgress(
            phase=event.phase, message=event.message, done=event.done, total=event.total, at_s=event.at_s
        )
    return msgspec.structs.replace(
        progress,
        phases=phases,
        began_s=began_s,
        ended_s=ended_s,
        hosts=hosts,
        log=(*progress.log[-LOG_LINES + 1 :], _log_line(event)),
        generation=event.generation or progress.generation,
        checked=event.checked or progress.checked,
        error=event.error or progress.error,
        is_over=progress.is_over or event.phase == "done" or event.error is not None,
        is_rolled_back=progress.is_rolled_back or (event.phase == "roll_back" and event.state == "finished"),
        last_at_s=max(progress.last_at_s, event.at_s),
    )


def fail(progress: ApplyProgress, error: ErrorDetail) -> ApplyProgress:
    """The progress when the stream itself broke, or nothing could be asked for."""
    return msgspec.structs.replace(progress, error=error, is_over=True)


def apply_page(progress: ApplyProgress, *, width: int, now_s: float) -> tuple[Line, ...]:
    """The outcome once there is one, phases with bars, hosts with what they do, and the end of the log."""
    lines = [_head(progress, now_s), *_outcome(progress, width), BLANK, *_phase_lines(progress, width, now_s)]
    if progress.hosts:
        lines += [BLANK, *_host_lines(progress)]
    lines += [BLANK, *(line(Span(f" {text}", "dim")) for text in progress.log[-12:])]
    return tuple(lines)


def _log_line(event: ApplyEvent) -> str:
    where = f"{event.host} " if event.host else ""
    message = f" {event.message}" if event.message else ""
    return f"{where}{event.phase} {event.state}{message}"


def _head(progress: ApplyProgress, now_s: float) -> Line:
    plan = progress.plan
    start_s = min(progress.began_s.values(), default=now_s)
    end_s = progress.last_at_s if progress.is_over else now_s
    took = f"  {age_text(max(0.0, end_s - start_s))}" if progress.began_s else ""
    if progress.is_done:
        state = Span("● serving", "ok")
    elif progress.is_over:
        state = Span("✗ failed, rolled back" if progress.is_rolled_back else "✗ failed", "fault")
    else:
        state = Span("↻ applying", "heal")
    hosts = f"{len(plan.hosts)} hosts" if len(plan.hosts) != 1 else "1 host"
    return line(
        " ",
        Span(plan.name, "bold"),
        f"  {plan.model.name} → {hosts}  generation {progress.generation}  ",
        state,
        took,
    )


def _phase_lines(progress: ApplyProgress, width: int, now_s: float) -> list[Line]:
    cells = 16 if width < 100 else 40
    lines = []
    shown = [*PHASES]
    if "roll_back" in progress.phases:
        shown.append(("roll_back", "undo: the old generation is as it was"))
    for phase, what in shown:
        state = progress.phases.get(phase, "waiting")
        mark = _MARKS[state]
        fraction = 1.0 if state == "finished" else _fraction(progress, phase) if state == "started" else 0.0
        lines.append(
            line(
                f" {fit(phase, 9)} ",
                Span(bar(fraction, cells), mark.tone),
                Span(f" {fit(f'{mark.glyph} {mark.word}', 11)}", mark.tone),
                f" {fit(_took(progress, phase, now_s), 8)} ",
                Span(what, "dim"),
            )
        )
    return lines


def _fraction(progress: ApplyProgress, phase: ApplyPhase) -> float:
    """Mean over the plan's hosts; a host that has said nothing of this phase counts as zero."""
    total = 0.0
    for host in progress.plan.hosts:
        said = progress.hosts.get(host)
        if said is not None and said.phase == phase and said.total:
            total += said.done / said.total
    return total / len(progress.plan.hosts)


def _took(progress: ApplyProgress, phase: ApplyPhase, now_s: float) -> str:
    if phase not in progress.began_s:
        return ""
    end_s = progress.ended_s.get(phase, progress.last_at_s if progress.is_over else now_s)
    return (
        seconds_words(max(0.0, end_s - progress.began_s[phase]))
        if phase in progress.ended_s
        else age_text(max(0.0, end_s - progress.began_s[phase]))
    )


def _host_lines(progress: ApplyProgress) -> list[Line]:
    lines = [line(Span(f" {'HOST':<16} {'PHASE':<9} {'':<14} DETAIL", "title"))]
    for host in progress.plan.hosts:
        said = progress.hosts.get(host)
        if said is None:
            lines.append(line(f" {fit(host, 16)} ", Span("· nothing heard yet", "dim")))
            continue
        fraction = said.done / said.total if said.total else 0.0
        meter = Span(bar(fraction, 14), "bar") if said.total else Span(" " * 14)
        lines.append(line(f" {fit(host, 16)} {fit(said.phase, 9)} ", meter, f" {said.message}"))
    return lines


def _outcome(progress: ApplyProgress, width: int) -> list[Line]:
    lines: list[Line] = []
    if progress.checked is not None:
        predicted, checked = progress.plan.predicted, progress.checked
        said = (
            f"{seconds_words(checked.time_per_token_s)} per token (predicted "
            f"{seconds_words(predicted.time_per_token_s)}), first token after {seconds_words(checked.ttft_s)} at a "
            f"prompt of {checked.prompt_tokens} (predicted {seconds_words(predicted.ttft_s)} at "
            f"{predicted.prompt_tokens})"
        )
        lines += [
            line(Span(" canary  " if index == 0 else "         ", "title"), text)
            for index, text in enumerate(wrap(said, width - 10))
        ]
    if progress.error is not None:
        where = f"{progress.error.host}: " if progress.error.host else ""
        lines += [line(Span(f" ✗ {text}", "fault")) for text in wrap(f"{where}{progress.error.message}", width - 4)]
        lines += [line(Span(f"   → {text}", "dim")) for text in wrap(progress.error.hint, width - 6) if text]
        if progress.is_rolled_back:
            lines.append(line(Span("   undone: everything is as it was before", "ok")))
    elif progress.is_done:
        lines.append(line(Span(f" ● {progress.plan.name} serves on {progress.plan.serving.listen}", "ok")))
    return lines
