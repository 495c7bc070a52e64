"""The page of one apply: phases with bars, every host with what it does, and how it ended. Pure."""

from __future__ import annotations

from agent.planner.words import seconds_words
from agent.wire.agent import ApplyPhase
from odctl.fleet.snapshot import FleetSnapshot, HostView
from odctl.tui.model.apply_progress import PHASES, ApplyProgress, HostProgress, PhaseState
from odctl.tui.model.bars import bar
from odctl.tui.model.columns import stacked
from odctl.tui.model.marks import HOST_MARKS, Mark
from odctl.tui.model.text import Line, Span, fit, fit_line, line, line_width, wrap
from odctl.tui.model.units import age_text

SHOWN_LOG = 12
STRIP_ABOVE = 8
"""Hosts that are told in lines alone; more of them are shown in a strip first."""
MOST_HOSTS = 200
"""Told in lines, those that are least far; all of them have a cell."""
_MARKS: dict[PhaseState, Mark] = {
    "waiting": Mark("·", "waiting", "dim"),
    "started": Mark("▒", "under way", "heal"),
    "finished": Mark("█", "done", "ok"),
    "failed": Mark("✗", "failed", "fault"),
}
_STRIP: tuple[Mark, ...] = (
    Mark("·", "waits", "dim"),
    Mark("░", "locked", "heal"),
    Mark("▒", "has shards", "heal"),
    Mark("▓", "loads", "heal"),
    Mark("█", "ready", "ok"),
)
_LOST = Mark("✗", "lost", "fault")
WAITS, LOCKED, FETCHED, LOADS, READY = range(5)
HOST_TROUBLE = ("lost", "unreachable")


def apply_page(
    progress: ApplyProgress, snapshot: FleetSnapshot | None, *, width: int, now_s: float
) -> tuple[Line, ...]:
    """The outcome once there is one, phases, hosts (lost ones and stragglers first), and the end of the log."""
    views = {view.name: view for view in snapshot.hosts} if snapshot is not None else {}
    lost = {
        name: views[name] for name in progress.plan.hosts if name in views and views[name].state in HOST_TROUBLE
    }
    log = tuple(
        line(Span(f" {text}", "dim"))
        for entry in progress.log[-SHOWN_LOG:]
        for text in wrap(entry, max(20, width - 2))
    )
    return stacked(
        [
            (_head(progress, now_s), *_outcome(progress, width), *_lost_lines(progress, lost, width)),
            _phase_lines(progress, width, now_s),
            _host_strip(progress, lost, width),
            _host_lines(progress, lost, width),
            log,
        ]
    )


def _head(progress: ApplyProgress, now_s: float) -> Line:
    plan = progress.plan
    start_s = min(progress.began_s.values(), default=now_s)
    end_s = progress.last_at_s if progress.is_over else now_s
    took = f"  {age_text(max(0.0, end_s - start_s))}" if progress.began_s else ""
    if progress.is_done:
        state = Span("● serving", "ok")
    elif progress.is_out_of_sight:
        state = Span("○ out of sight", "warn")
    elif progress.is_over:
        state = Span("✗ failed, rolled back" if progress.is_rolled_back else "✗ failed", "fault")
    elif progress.is_aborting:
        state = Span("↻ rolling back", "warn")
    else:
        state = Span("↻ applying", "heal")
    hosts = f"{len(plan.hosts)} hosts" if len(plan.hosts) != 1 else "1 host"
    return line(
        " ",
        Span(plan.name, "bold"),
        f"  {plan.model.name} → {hosts}  generation {progress.generation or '?'}  ",
        state,
        took,
    )


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
        elif progress.is_out_of_sight:
            said = (
                f"its controller {progress.plan.controllers[0]} goes on or rolls back by itself; 3 shows what "
                "runs, and applying the same plan again joins it"
            )
            lines += [line(Span(f"   {text}", "warn")) for text in wrap(said, width - 4)]
    elif progress.is_done:
        lines.append(line(Span(f" ● {progress.plan.name} serves on {progress.plan.serving.listen}", "ok")))
    return lines


def _lost_lines(progress: ApplyProgress, lost: dict[str, HostView], width: int) -> list[Line]:
    """Hosts of the plan that are lost while it is applied, and what that means."""
    if progress.is_over:
        return []
    lines: list[Line] = []
    for view in list(lost.values())[:3]:
        text = f"✗ {view.name} is {HOST_MARKS[view.state].word}: {view.reason or 'no reason is known'}"
        lines += [line(Span(f" {part}", "fault")) for part in wrap(text, width - 2)]
    if len(lost) > 3:
        lines.append(line(Span(f" ✗ and {len(lost) - 3} more hosts of the plan", "fault")))
    if progress.plan.controllers[0] in lost:
        text = "it is the controller: what it does now is not known here until it is back"
        lines += [line(Span(f"   {part}", "warn")) for part in wrap(text, width - 4)]
    elif lost:
        text = "the controller rolls back when it needs that host and cannot reach it; A aborts now"
        lines += [line(Span(f"   {part}", "warn")) for part in wrap(text, width - 4)]
    return lines


def _phase_lines(progress: ApplyProgress, width: int, now_s: float) -> list[Line]:
    cells = 14 if width < 100 else 40
    lines = []
    shown = [*PHASES]
    if "roll_back" in progress.phases:
        shown.append(("roll_back", "the old one is as it was"))
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
    took_s = max(0.0, end_s - progress.began_s[phase])
    return seconds_words(took_s) if phase in progress.ended_s else age_text(took_s)


def host_step(progress: ApplyProgress, host: str) -> int:
    """How far a host is (`WAITS` to `READY`), by its own word and by the phases that are over for all."""
    said, phases = progress.hosts.get(host), progress.phases
    if phases.get("start") == "finished":
        return READY
    if said is not None and said.phase == "start":
        return READY if said.total and said.done >= said.total else LOADS
    if phases.get("fetch") == "finished" or (said is not None and said.phase == "fetch"):
        return FETCHED
    return LOCKED if phases.get("prepare") == "finished" else WAITS


def _host_strip(progress: ApplyProgress, lost: dict[str, HostView], width: int) -> list[Line]:
    """A cell a host, in the order of their names; where there are few, the lines below say it all."""
    hosts = progress.plan.hosts
    if len(hosts) <= STRIP_ABOVE:
        return []
    marks = [_LOST if host in lost else _STRIP[host_step(progress, host)] for host in hosts]
    room = max(8, width - 2)
    lines = [
        line(" ", *(Span(mark.glyph, mark.tone) for mark in marks[first : first + room]))
        for first in range(0, len(marks), room)
    ]
    legend = [Span(f" {mark.glyph} {mark.word} ", mark.tone) for mark in (*_STRIP, _LOST)]
    return [*lines, (*legend, Span("  a cell a host", "dim"))]


def _host_lines(progress: ApplyProgress, lost: dict[str, HostView], width: int) -> list[Line]:
    hosts = sorted(progress.plan.hosts, key=lambda host: (host not in lost, host_step(progress, host), host))
    cells = 10 if width < 100 else 20
    lines = [line(Span(f" {'HOST':<16} {'STEP':<12} {'':<{cells}} LAST WORD", "title"))]
    for host in hosts[:MOST_HOSTS]:
        # What a host said in full stands in the log below.
        lines.append(cut(_host_line(progress, host, lost.get(host), cells), width))
    if len(hosts) > MOST_HOSTS:
        lines.append(line(Span(f"   and {len(hosts) - MOST_HOSTS:,} more, which are further", "dim")))
    return lines


def cut(spans: Line, width: int) -> Line:
    """With an ellipsis where it is longer."""
    return fit_line(spans, width) if line_width(spans) > width else spans


def _host_line(progress: ApplyProgress, host: str, view: HostView | None, cells: int) -> Line:
    said: HostProgress | None = progress.hosts.get(host)
    if view is not None:
        mark = HOST_MARKS[view.state]
        word = f"  {view.reason}" if view.reason else ""
        return line(
            f" {fit(host, 16)} ", Span(fit(f"{mark.glyph} {mark.word}", 12), mark.tone), f"{' ' * cells} {word}"
        )
    step = _STRIP[host_step(progress, host)]
    head = line(f" {fit(host, 16)} ", Span(fit(f"{step.glyph} {step.word}", 12), step.tone), " ")
    if said is None:
        return line(*head, Span(f"{' ' * cells} nothing heard yet", "dim"))
    fraction = said.done / said.total if said.total else 0.0
    meter = Span(bar(fraction, cells), "bar") if said.total else Span(" " * cells)
    return line(*head, meter, f" {said.message}")
