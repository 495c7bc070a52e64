"""The timeline of troubles as a table: a lane each, drawn over a stretch of time; and one story in full."""

from __future__ import annotations

from collections.abc import Sequence

from odctl.fleet.snapshot import FleetSnapshot
from odctl.timeline import Lane, Silence, Step, Story, Timeline, fold
from odctl.timeline.fold import ReadBefore
from odctl.timeline.story import Condition, Phase
from odctl.timeline.strip import conditions
from odctl.timeline.text import GLYPHS, WORDS, offset_text, requests_text, state_text, when_text
from odctl.tui.model.table import Banner, Column, Value
from odctl.tui.model.text import BLANK, Line, Span, Tone, line, line_width, wrap
from odctl.tui.model.time_axis import Axis, span_text
from odctl.tui.model.units import age_text, plural, seconds_text

TONES: dict[Condition, Tone] = {
    "healthy": "dim",
    "warning": "warn",
    "fault": "fault",
    "diagnosing": "kv",
    "acting": "activation",
    "healing": "heal",
    "healed": "ok",
    "unknown": "dim",
}
PHASE_TONES: dict[Phase, Tone] = {
    "detected": "fault",
    "diagnosed": "kv",
    "decided": "activation",
    "acted": "heal",
    "verified": "heal",
    "closed": "ok",
}
CLOCK_OFF_S = 1.0
"""A clock that is further off is told of."""
MAX_EARLIER = 5
STRIP = "strip"
"""The column with the time above it."""
_LANE_CELLS = (10, 22)


class TimelineOf:
    """The timeline of a snapshot, folded anew only when what it is made of has changed."""

    def __init__(self) -> None:
        self._made_of: object = None
        self._read_before: ReadBefore = {}
        self._timeline = Timeline()

    def read(self, snapshot: FleetSnapshot) -> Timeline:
        made_of = (
            snapshot.faults,
            tuple((host.name, host.journal, host.state, host.reason, host.way_out) for host in snapshot.hosts),
        )
        if made_of != self._made_of:
            self._made_of = made_of
            self._timeline = fold(
                {host.name: host.journal for host in snapshot.hosts},
                faults=snapshot.faults,
                silent=silent_hosts(snapshot),
                read_before=self._read_before,
            )
        return self._timeline


def silent_hosts(snapshot: FleetSnapshot) -> dict[str, Silence]:
    """Hosts that do not answer us, since when and why."""
    return {
        host.name: Silence(
            since_s=snapshot.taken_at_s - host.sample_age_s if host.sample is not None else None,
            why=host.reason,
            way_out=host.way_out,
        )
        for host in snapshot.hosts
        if host.state in ("lost", "unreachable")
    }


class LaneRows:
    """A row a lane, the newest trouble first."""

    def __init__(self, timeline: Timeline, axis: Axis, *, now_s: float) -> None:
        self._lanes = timeline.lanes
        self._axis = axis
        self._now_s = now_s
        self.keys: Sequence[str] = tuple(lane.key.text for lane in timeline.lanes)
        self.columns = _columns(timeline.lanes)

    def values(self, column: str) -> Sequence[Value]:
        return [self._value(lane, column) for lane in self._lanes]

    def text(self, row: int) -> str:
        lane = self._lanes[row]
        told = " ".join(f"{story.kind} {story.message} {story.deployment} {story.host}" for story in lane.stories)
        evidence = " ".join(f"{name} {value}" for name, value in lane.newest.evidence.items())
        return f"{lane.key.label} {told} {evidence} {state_word(lane.newest)}"

    def labels(self, row: int) -> dict[str, str]:
        story = self._lanes[row].newest
        return {
            "host": story.host,
            "kind": story.kind,
            "deployment": story.deployment,
            "state": state_word(story),
            "scope": story.lane.scope,
        }

    def banner(self, row: int) -> Banner | None:  # noqa: ARG002 - every row has its cells
        return None

    def cell(self, row: int, column: str, width: int) -> Line:
        lane = self._lanes[row]
        match column:
            case "lane":
                return line(Span(lane.key.label, "bold"))
            case "age":
                began_s = lane.newest.began_s
                return line("?" if began_s is None else age_text(max(0.0, self._now_s - began_s)))
            case "strip":
                return strip_line(lane, self._axis, now_s=self._now_s, width=width)
            case "state":
                return line(state_span(lane.newest))
            case _:
                return line(str(self._value(lane, column)))

    def _value(self, lane: Lane, column: str) -> Value:
        story = lane.newest
        match column:
            case "lane":
                return lane.key.label
            case "age":
                return None if story.began_s is None else self._now_s - story.began_s
            case "strip":
                return story.began_s
            case "kind":
                return story.kind
            case _:
                return state_word(story)


def strip_line(lane: Lane, axis: Axis, *, now_s: float, width: int) -> Line:
    """A cell for each stretch of time, with the worst that stood in it."""
    found = conditions(lane, start_s=axis.start(now_s), span_s=axis.span_s, num_cells=max(1, width), now_s=now_s)
    spans: list[Span] = []
    for condition in found:
        glyph = " " if condition is None else GLYPHS[condition]
        tone: Tone = "plain" if condition is None else TONES[condition]
        if spans and spans[-1].tone == tone:
            spans[-1] = Span(spans[-1].text + glyph, spans[-1].tone)
        else:
            spans.append(Span(glyph, tone))
    return tuple(spans)


def state_word(story: Story) -> str:
    """One word: `open` for a fault of which nothing is being done."""
    return "open" if story.condition == "fault" else WORDS[story.condition]


def state_span(story: Story) -> Span:
    """`█ healed 1.50 s`, `✗ open`."""
    condition = story.condition
    took = ""
    if story.took_s is not None:
        took = f" {seconds_text(story.took_s)}"
    return Span(f"{GLYPHS[condition]} {state_word(story)}{took}", TONES[condition])


def legend_line(width: int) -> Line:
    """Every glyph with its word; closer together where the terminal is narrow."""
    gap = Span("  " if width >= 90 else " ")
    spans: list[Span] = []
    for condition, glyph in GLYPHS.items():
        spans += [gap, Span(f"{glyph} {WORDS[condition]}", TONES[condition])]
    return tuple(spans)


def timeline_summary(timeline: Timeline, axis: Axis, *, now_s: float) -> tuple[Line, ...]:
    """How much stands open, which stretch is drawn, and what could not be read."""
    faults = [story for story in timeline.stories if story.is_fault]
    still = [story for story in faults if story.is_open]
    healed = [story for story in faults if not story.is_open]
    took = sorted(story.took_s for story in healed if story.took_s is not None)
    spans = [
        Span(f" {len(still)} open", "fault" if still else "ok"),
        Span(f"   {len(healed)} healed"),
        *([Span(f" in {seconds_text(took[len(took) // 2])} (median)")] if took else []),
        Span(f"   {plural(len(timeline.lanes), 'lane')}"),
        Span(f"   {span_text(axis, now_s=now_s)}", "dim" if axis.end_s is None else "warn"),
    ]
    lines = [tuple(spans)]
    if timeline.unread:
        names = sorted(timeline.unread)
        why = timeline.unread[names[0]]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        lines.append(line(Span(f" ▲ not read: the journal of {names[0]}{more}: {why}", "warn")))
    off = {host: ahead for host, ahead in timeline.clocks.items() if abs(ahead) > CLOCK_OFF_S}
    if off:
        told = ", ".join(f"{host} {ahead:+.1f} s" for host, ahead in sorted(off.items())[:4])
        more = f" and {len(off) - 4} more" if len(off) > 4 else ""
        lines.append(line(Span(f" ▲ clocks are off, and put right here: {told}{more}", "warn")))
    if timeline.num_not_understood:
        events = plural(timeline.num_not_understood, "event")
        lines.append(line(Span(f" ▲ {events} could not be understood: agents of another release?", "warn")))
    return tuple(lines)


def story_page(lane: Lane, story: Story, *, width: int, now_s: float) -> tuple[Line, ...]:
    """One story: its steps, the evidence as it was reported, what it cost, and the way out."""
    about = " ".join(part for part in (story.deployment, story.rank_id) if part)
    generation = f", generation {story.generation}" if story.generation else ""
    place = lane.stories.index(story) + 1 if story in lane.stories else 0
    which = f"   {place} of {len(lane.stories)} here (< >)" if len(lane.stories) > 1 else ""
    lines = [
        line(
            " ",
            state_span(story),
            "  ",
            Span(story.kind, "bold"),
            f"  {story.host} {about}".rstrip() + generation,
            Span(which, "dim"),
        ),
        *(line(f"   {text}") for text in wrap(story.message, width - 4)),
        line(Span(f"   {_told_by(story)}", "dim")),
    ]
    lines += [each for step in story.steps for each in _step_lines(story, step, width=width)]
    lines += [line(Span(f"   {text}", "dim")) for text in wrap(requests_text(story), width - 4)]
    if story.evidence:
        lines.append(line(Span(" evidence, as reported", "title")))
    for name, value in sorted(story.evidence.items()):
        texts = wrap(str(value), max(10, width - len(name) - 5))
        lines += [
            line(Span(f"   {name if not at else ' ' * len(name)} ", "dim"), text) for at, text in enumerate(texts)
        ]
    if story.way_out and story.is_open:
        lines += [line(Span(f"   → {text}", "heal")) for text in wrap(story.way_out, width - 6)]
    lines += _earlier(lane, story, now_s=now_s)
    return tuple(lines)


def open_lines(timeline: Timeline, *, width: int, now_s: float) -> tuple[Line, ...]:
    """What stands open, the newest first: age, thing, kind and state."""
    still = [story for story in timeline.stories if story.is_open]
    lines = [line(Span(f" {len(still)} open and healing", "title"))]
    for story in still:
        age = "  ?" if story.began_s is None else f"{age_text(max(0.0, now_s - story.began_s)):>3}"
        head = line(f" {age}  ", Span(story.lane.label, "bold"), f" {story.kind}")
        gap = max(1, width - line_width(head) - line_width(line(state_span(story))) - 1)
        lines.append((*head, Span(" " * gap), state_span(story)))
        if story.way_out:
            lines += [line(Span(f"      {text}", "dim")) for text in wrap(story.way_out, max(10, width - 8))]
    if not still:
        lines.append(line(Span(" ● nothing is", "ok")))
    return tuple(lines)


def _told_by(story: Story) -> str:
    parts = [f"began {when_text(story.began_s)}"]
    parts.append(f"told by {story.observed_by}" if story.observed_by else "seen from here")
    if story.decided_by:
        parts.append(f"decided by {story.decided_by}")
    parts.append(state_text(story))
    return ", ".join(parts)


def _step_lines(story: Story, step: Step, *, width: int) -> list[Line]:
    offset = offset_text(story, step.at_s, is_exact=step.is_exact)
    head = line(f" {offset:>9} ", Span(f"{step.phase:<10}", PHASE_TONES[step.phase]))
    indent = " " * line_width(head)
    texts = wrap(step.what, max(10, width - len(indent) - 1))
    return [(*head, Span(texts[0])), *(line(indent + text) for text in texts[1:])]


def _earlier(lane: Lane, story: Story, *, now_s: float) -> list[Line]:
    before = [
        each for each in lane.stories if each is not story and (each.began_s or 0.0) < (story.began_s or now_s)
    ]
    if not before:
        return []
    told = [
        f"{each.kind} {age_text(max(0.0, now_s - each.began_s)) if each.began_s is not None else '?'} ago, "
        f"{state_text(each)}"
        for each in before[: -MAX_EARLIER - 1 : -1]
    ]
    more = [f"and {len(before) - MAX_EARLIER} older ones"] if len(before) > MAX_EARLIER else []
    return [BLANK, line(Span(" before that, here", "title")), *(line(f"   {text}") for text in (*told, *more))]


def _columns(lanes: Sequence[Lane]) -> tuple[Column, ...]:
    longest = max((len(lane.key.label) for lane in lanes), default=0)
    return (
        Column(id="lane", title="LANE", width=min(_LANE_CELLS[1], max(_LANE_CELLS[0], longest))),
        Column(id="age", title="AGE", width=4, priority=3, is_right=True),
        Column(id=STRIP, title="", width=32, grow_to=1000),
        Column(id="kind", title="KIND", width=13, priority=2),
        Column(id="state", title="STATE", width=16),
    )
