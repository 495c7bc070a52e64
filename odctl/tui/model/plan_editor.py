"""A plan under edit on the screen: its states, what a key does to them, and the page. Pure but for no clock.

A state holds every earlier one: going back computes nothing.
"""

from __future__ import annotations

from typing import assert_never

import msgspec

from agent.errors import FleetError
from agent.facts.cluster import DeviceFacts
from agent.planner.check import PlanProblem
from agent.planner.edit import (
    Basis,
    Edit,
    Edited,
    MoveBoundary,
    Replan,
    SetTensor,
    ShareHeads,
    apply_edit,
    begin_edit,
    edit_words,
    possible_sizes,
    spare_places,
)
from agent.planner.file import plan_hash
from agent.planner.layout import Place
from agent.planner.plan import Plan, RankPlace, rank_places
from agent.planner.words import (
    bytes_interval_words,
    bytes_words,
    joules_interval_words,
    list_words,
    rate_interval_words,
    seconds_interval_words,
)
from odctl.fleet.snapshot import FleetSnapshot
from odctl.tui.model.plan_map import (
    LEGEND,
    layer_spans,
    map_width,
    memory_spans,
    ruler,
    slowest_stage,
    stage_time,
)
from odctl.tui.model.plan_page import change_lines
from odctl.tui.model.plans import PlanChoice
from odctl.tui.model.text import BLANK, Line, Span, Tone, fit, line, spread, wrap
from odctl.tui.model.units import plural

MAX_SPARE_ROWS = 6
SAME = 5e-4
"""A change below this share of a figure is none."""
LEGEND_WIDTH = 100
"""A narrower terminal keeps its lines for the plan."""
HINTS: tuple[Line, ...] = (
    (Span(" ↑↓ choose a row: t, x, p act on it.  < > shift a KV head within a group.  d removes a stage.", "dim"),),
    (Span(" On a spare device: enter puts the boundary's left stage there, n makes a new one behind it.", "dim"),),
)


# --- what a key asks for ------------------------------------------------------------------------------


class ToggleExcluded(msgspec.Struct, frozen=True, kw_only=True):
    """Keep a host out: planned anew where it has a part; again: it may be used."""

    host: str


class TogglePinned(msgspec.Struct, frozen=True, kw_only=True):
    """Keep a host in: planned anew where it has no part; again: it need not be used."""

    host: str


class CycleTensor(msgspec.Struct, frozen=True, kw_only=True):
    """The next tensor-parallel size that a stage can have, the smallest after the largest."""

    replica: int
    stage: int


class ShiftShare(msgspec.Struct, frozen=True, kw_only=True):
    """A rank of a group takes a KV head from the next one (the one before, for the last), or gives it one."""

    replica: int
    stage: int
    tensor_index: int
    kv_heads: int


class Undo(msgspec.Struct, frozen=True, kw_only=True):
    pass


class Redo(msgspec.Struct, frozen=True, kw_only=True):
    pass


Action = Edit | ToggleExcluded | TogglePinned | CycleTensor | ShiftShare | Undo | Redo


class EditorState(msgspec.Struct, frozen=True, kw_only=True):
    """Where an editor stands. `past` and `future` are what undo and redo go through, the nearest last."""

    origin: str
    opened: Edited
    edited: Edited
    written: Plan
    """As it was opened or last written: what differs from it would be lost."""
    spares: tuple[Place, ...]
    past: tuple[Edited, ...] = ()
    future: tuple[Edited, ...] = ()
    said: str = ""
    """About the last key: what was done, or why not."""
    is_refused: bool = False

    @property
    def plan(self) -> Plan:
        return self.edited.plan

    @property
    def problems(self) -> tuple[PlanProblem, ...]:
        return self.edited.problems

    @property
    def is_unsaved(self) -> bool:
        return self.plan != self.written


class Cursor(msgspec.Struct, frozen=True, kw_only=True):
    """The row that keys act on (ranks first, then spare devices), and the boundary behind a stage."""

    row: int = 0
    replica: int = 0
    stage: int = 0


def open_editor(origin: str, plan: Plan, basis: Basis) -> EditorState:
    """Raises FleetError for a plan that does not cover its model."""
    opened = begin_edit(plan, basis)
    is_anew = opened.plan.predicted != plan.predicted
    return EditorState(
        origin=origin,
        opened=opened,
        edited=opened,
        written=opened.plan,
        spares=spare_places(opened, basis),
        said="predicted anew: the file's figures are of other measurements" if is_anew else "",
    )


def perform(state: EditorState, action: Action, basis: Basis) -> EditorState:
    """The state after a key. What cannot be done leaves the plan as it is and says why."""
    match action:
        case Undo():
            return _undone(state, basis)
        case Redo():
            return _redone(state, basis)
        case ToggleExcluded() | TogglePinned():
            return _marked(state, action, basis)
    edited = state.edited
    try:
        edit = _edit_of(edited, action, basis)
        after = apply_edit(edited, edit, basis)
    except FleetError as error:
        return msgspec.structs.replace(state, said=str(error), is_refused=True)
    if after == edited:
        return msgspec.structs.replace(state, said=f"{edit_words(edit)}: nothing changes", is_refused=False)
    return _taken(state, after, edit_words(edit), basis)


def _edit_of(edited: Edited, action: Edit | CycleTensor | ShiftShare, basis: Basis) -> Edit:
    match action:
        case CycleTensor(replica=r, stage=s):
            sizes = possible_sizes(edited, basis, replica=r, stage=s)
            size = len(edited.plan.replicas[r].stages[s].shards)
            if sizes == (size,):
                raise FleetError(
                    "E602",
                    f"stage {r}.{s} can only have {plural(size, 'device')}",
                    hint="no device of its kind is spare: remove a stage first",
                )
            return SetTensor(replica=r, stage=s, size=next((more for more in sizes if more > size), sizes[0]))
        case ShiftShare(replica=r, stage=s, tensor_index=t, kv_heads=number):
            stages = edited.plan.replicas[r].stages
            shards = stages[s].shards if s < len(stages) else ()
            if len(shards) < 2 or t >= len(shards):  # a key that waited may be late: the plan has changed since
                raise FleetError("E106", f"stage {r}.{s} shares no KV heads", hint="t splits a stage over devices")
            units = [shard.kv_heads[1] - shard.kv_heads[0] for shard in shards]
            other = t + 1 if t + 1 < len(shards) else t - 1
            units[t] += number
            units[other] -= number
            return ShareHeads(replica=r, stage=s, kv_heads=tuple(units))
        case _:
            return action


def _marked(state: EditorState, action: ToggleExcluded | TogglePinned, basis: Basis) -> EditorState:
    """Planned anew where the host's part has to change; else it is only remembered, for later plans."""
    edited, host = state.edited, action.host
    has_part = any(place.shard.host == host for place in rank_places(edited.plan))
    excluded, pinned = set(edited.excluded), set(edited.pinned)
    match action:
        case ToggleExcluded():
            is_set = host not in excluded
            excluded ^= {host}
            pinned -= excluded
            needs_plan = is_set and has_part
            words = f"{host} excluded" if is_set else f"{host} may be used again"
        case TogglePinned():
            is_set = host not in pinned
            pinned ^= {host}
            excluded -= pinned
            needs_plan = is_set and not has_part
            words = f"{host} pinned" if is_set else f"{host} need not be used"
        case _:
            assert_never(action)
    marks = tuple(sorted(excluded)), tuple(sorted(pinned))
    if not needs_plan:
        after = msgspec.structs.replace(edited, excluded=marks[0], pinned=marks[1])
        return _taken(state, after, words, basis)
    try:
        after = apply_edit(edited, Replan(excluded=marks[0], pinned=marks[1]), basis)
    except FleetError as error:
        return msgspec.structs.replace(state, said=f"{words}? {error}", is_refused=True)
    return _taken(state, after, f"{words}: planned anew", basis)


def _taken(state: EditorState, after: Edited, words: str, basis: Basis) -> EditorState:
    return msgspec.structs.replace(
        state,
        edited=after,
        past=(*state.past, state.edited),
        future=(),
        spares=spare_places(after, basis),
        said=words,
        is_refused=False,
    )


def _undone(state: EditorState, basis: Basis) -> EditorState:
    if not state.past:
        return msgspec.structs.replace(state, said="nothing to undo", is_refused=True)
    *past, before = state.past
    return msgspec.structs.replace(
        state,
        edited=before,
        past=tuple(past),
        future=(*state.future, state.edited),
        spares=spare_places(before, basis),
        said="undone",
        is_refused=False,
    )


def _redone(state: EditorState, basis: Basis) -> EditorState:
    if not state.future:
        return msgspec.structs.replace(state, said="nothing to redo", is_refused=True)
    *future, after = state.future
    return msgspec.structs.replace(
        state,
        edited=after,
        past=(*state.past, state.edited),
        future=tuple(future),
        spares=spare_places(after, basis),
        said="done again",
        is_refused=False,
    )


# --- the cursor ---------------------------------------------------------------------------------------


def shown_spares(state: EditorState) -> tuple[Place, ...]:
    return state.spares[:MAX_SPARE_ROWS]


def row_host(state: EditorState, cursor: Cursor) -> str:
    """The host under the cursor."""
    places = rank_places(state.plan)
    if cursor.row < len(places):
        return places[cursor.row].shard.host
    return shown_spares(state)[cursor.row - len(places)].host


def row_place(state: EditorState, cursor: Cursor) -> RankPlace | None:
    """The rank under the cursor; None on a spare device."""
    places = rank_places(state.plan)
    return places[cursor.row] if cursor.row < len(places) else None


def row_spare(state: EditorState, cursor: Cursor) -> Place | None:
    """The spare device under the cursor; None on a rank."""
    index = cursor.row - len(rank_places(state.plan))
    return shown_spares(state)[index] if index >= 0 else None


def move_row(state: EditorState, cursor: Cursor, step: int) -> Cursor:
    """Up or down, as far as there are rows. On a rank, the boundary is the one behind its stage."""
    return place_cursor(state, msgspec.structs.replace(cursor, row=cursor.row + step), follows_row=True)


def move_choice(state: EditorState, cursor: Cursor, step: int) -> Cursor:
    """The next boundary, or the one before, over all replicas; the row goes to the stage before it."""
    boundaries = _boundaries(state.plan)
    if not boundaries:
        return cursor
    here = (cursor.replica, cursor.stage)
    index = boundaries.index(here) if here in boundaries else 0
    replica, stage = boundaries[min(max(0, index + step), len(boundaries) - 1)]
    places = rank_places(state.plan)
    row = next(i for i, place in enumerate(places) if (place.replica, place.stage) == (replica, stage))
    return Cursor(row=row, replica=replica, stage=stage)


def place_cursor(state: EditorState, cursor: Cursor, *, follows_row: bool = False) -> Cursor:
    """The cursor on something that is there: plans change under it."""
    places, boundaries = rank_places(state.plan), _boundaries(state.plan)
    row = min(max(0, cursor.row), len(places) + len(shown_spares(state)) - 1)
    chosen = (cursor.replica, cursor.stage)
    if follows_row and row < len(places):
        chosen = (places[row].replica, places[row].stage)
    if boundaries and chosen not in boundaries:
        same = [each for each in boundaries if each[0] == chosen[0]]
        chosen = same[-1] if same else boundaries[-1]
    return Cursor(row=row, replica=chosen[0], stage=chosen[1])


def boundary_move(state: EditorState, cursor: Cursor, layers: int) -> MoveBoundary:
    """The chosen boundary moved so far, or as far as it can be."""
    stages = state.plan.replicas[cursor.replica].stages
    if cursor.stage + 1 < len(stages):
        left, right = stages[cursor.stage], stages[cursor.stage + 1]
        least, most = 1 - (left.layers[1] - left.layers[0]), right.layers[1] - right.layers[0] - 1
        layers = min(max(layers, least), most) or layers
    return MoveBoundary(replica=cursor.replica, stage=cursor.stage, layers=layers)


def _boundaries(plan: Plan) -> list[tuple[int, int]]:
    return [(r, s) for r, replica in enumerate(plan.replicas) for s in range(len(replica.stages) - 1)]


# --- the page -----------------------------------------------------------------------------------------


def editor_page(
    state: EditorState,
    cursor: Cursor,
    basis: Basis,
    snapshot: FleetSnapshot | None,
    *,
    width: int,
    is_busy: bool,
) -> tuple[tuple[Line, ...], int]:
    """The page, and the line on it that has the cursor."""
    head = _head(state, width, is_busy=is_busy)
    rows, cursor_line = _rows(state, cursor, basis, width)
    choice = PlanChoice(origin=state.origin, plan=state.plan, plan_hash=plan_hash(state.plan))
    lines = [*head, *rows, *([LEGEND] if width >= LEGEND_WIDTH else []), BLANK, *_predictions(state, width)]
    lines += [*_problem_lines(state, width), *change_lines(choice, snapshot, width)]
    if width >= LEGEND_WIDTH:
        lines += [BLANK, *HINTS]
    return tuple(lines), len(head) + cursor_line


def _head(state: EditorState, width: int, *, is_busy: bool) -> tuple[Line, ...]:
    count = len(state.problems)
    verdict = (
        Span(" ↻ computing … ", "heal")
        if is_busy
        else Span(f" ✗ {plural(count, 'problem')}: not to be written ", "fault")
        if count
        else Span(" ● sound ", "ok")
    )
    edits = plural(len(state.past), "edit") + (", not written" if state.is_unsaved else "")
    serving = state.plan.serving
    left = line(
        " ",
        Span(state.plan.name, "bold"),
        f"  {state.origin if width >= 100 else state.origin.rpartition('/')[2]}  ",
        Span(edits, "warn" if state.is_unsaved else "dim"),
        f"  context {serving.context}, batch {serving.batch}, {serving.precision}",
    )
    lines = [spread(left, line(verdict), width)]
    if state.said:
        tone: Tone = "warn" if state.is_refused else "dim"
        glyph = "▲ not done: " if state.is_refused else "· "
        lines += [line(Span(f" {text}", tone)) for text in wrap(glyph + state.said, width - 2)[:2]]
    return tuple(lines)


def _rows(state: EditorState, cursor: Cursor, basis: Basis, width: int) -> tuple[list[Line], int]:
    plan, places = state.plan, rank_places(state.plan)
    num_layers = basis.spec.num_layers
    bar_cells = 12 if width < 100 else 24
    names = [f"{place.shard.host}/{place.shard.device}" for place in places]
    names += [place.name for place in shown_spares(state)]
    name_cells = min(14 if width < 100 else 28, max(11, *(len(name) for name in names)))
    cells = map_width(num_layers, room=max(8, width - name_cells - bar_cells - 40))
    slowest = slowest_stage(plan)
    devices = {(host.name, device.id): device for host in basis.facts.hosts for device in host.devices}
    header = f"   {'RANK':<7} {fit('HOST/DEVICE', name_cells)} {ruler(num_layers, cells)} "
    lines = [line(Span(f"{header}{fit('MEMORY', bar_cells)} {'NEEDS / USABLE':>17} {'ms':>6}", "title"))]
    cursor_line = 0
    for index, place in enumerate(places):
        is_here = index == cursor.row
        cursor_line = len(lines) if is_here else cursor_line
        lines.append(
            line(
                *_row_head(state.edited, place.rank_id, names[index], cells=name_cells, is_here=is_here),
                *layer_spans(place, num_layers, cells),
                " ",
                *memory_spans(place, devices.get((place.shard.host, place.shard.device)), bar_cells),
                *stage_time(plan, place, is_slowest=place.replica == 0 and place.stage == slowest),
            )
        )
        is_last_of_stage = index + 1 == len(places) or (places[index + 1].stage, places[index + 1].replica) != (
            place.stage,
            place.replica,
        )
        if is_last_of_stage and (place.replica, place.stage) == (cursor.replica, cursor.stage):
            lines += _boundary_line(plan, place, num_layers, cells, indent=name_cells + 12)
    for index, spare in enumerate(shown_spares(state), start=len(places)):
        is_here = index == cursor.row
        cursor_line = len(lines) if is_here else cursor_line
        state_words = "out" if spare.host in state.edited.excluded else "spare"
        lines.append(
            line(
                *_row_head(state.edited, state_words, spare.name, cells=name_cells, is_here=is_here),
                Span("·" * cells, "dim"),
                " ",
                Span("·" * bar_cells, "dim"),
                Span(f" {_free_words(spare.device):>17}", "dim"),
            )
        )
    hidden = len(state.spares) - len(shown_spares(state))
    if hidden > 0:
        lines.append(line(Span(f"   and {plural(hidden, 'more spare device')}", "dim")))
    return lines, cursor_line


def _row_head(edited: Edited, first: str, name: str, *, cells: int, is_here: bool) -> tuple[Span, ...]:
    """The cursor, whether its host is pinned or kept out, the rank and its device."""
    host = name.partition("/")[0]
    mark = "⊙" if host in edited.pinned else "✗" if host in edited.excluded else " "
    return (
        Span("▶" if is_here else " ", "key"),
        Span(mark, "warn"),
        Span(f" {fit(first, 8)}", "key" if is_here else "plain"),
        Span(fit(name, cells), "key" if is_here else "bold"),
        Span(" "),
    )


def _boundary_line(plan: Plan, place: RankPlace, num_layers: int, cells: int, *, indent: int) -> list[Line]:
    """`◀┃▶ 4 | 5`: where the chosen boundary stands under the map of layers."""
    stages = plan.replicas[place.replica].stages
    if place.stage + 1 >= len(stages):
        return []
    cut = stages[place.stage].layers[1]
    at = min(cells, max(1, round(cut * cells / num_layers)))
    words = f"◀┃▶ {cut - 1} │ {cut}"
    text = " " * max(0, at - 2 + indent) + words
    return [line(Span(text, "key"))]


def _free_words(device: DeviceFacts) -> str:
    return f"{bytes_words(device.usable_bytes)} free"


def _predictions(state: EditorState, width: int) -> tuple[Line, ...]:
    """What is expected now, and by how much that is better or worse than before the first edit."""
    now, before = state.plan.predicted, state.opened.plan.predicted
    rows = [
        ("time to first token", now.ttft, before.ttft, seconds_interval_words, -1),
        ("time per token", now.time_per_token, before.time_per_token, seconds_interval_words, -1),
        (f"decode at batch {state.plan.serving.batch}", now.throughput, before.throughput, rate_interval_words, 1),
    ]
    if now.energy is not None and before.energy is not None:
        rows.append(("energy per token", now.energy, before.energy, joules_interval_words, -1))
    if now.memory_peak is not None and before.memory_peak is not None:
        rows.append(("fullest device", now.memory_peak, before.memory_peak, bytes_interval_words, -1))
    values = [words(value) for _, value, _, words, _ in rows]
    cells, name_cells = max(12, *map(len, values)), max(len(row[0]) for row in rows)
    lines = [line(Span(f" {'':<{name_cells}} {'PREDICTED':>{cells}}   AGAINST THE UNEDITED PLAN", "title"))]
    for (name, value, old, words, direction), said in zip(rows, values, strict=True):
        change = value.expected / old.expected - 1 if old.expected else 0.0
        lines.append(
            line(
                f" {name:<{name_cells}} {said:>{cells}}   ",
                *_delta(change, direction, words(old).partition(" (")[0]),
            )
        )
    bottleneck = f"bottleneck: {now.bottleneck}"
    if now.bottleneck.partition(": ")[0] != before.bottleneck.partition(": ")[0]:
        bottleneck += f"; before, {before.bottleneck.partition(': ')[0]}"
    if now.prompt_tokens != before.prompt_tokens:
        bottleneck += f"; for prompts of {now.prompt_tokens} tokens, before of {before.prompt_tokens}"
    lines += [line(Span(f" {text}", "dim")) for text in wrap(bottleneck, width - 2)]
    return tuple(lines)


def _delta(change: float, direction: int, old: str) -> tuple[Span, ...]:
    if abs(change) < SAME:
        return (Span("= as it was", "dim"),)
    is_better = change * direction > 0
    glyph, verdict = "▼" if change < 0 else "▲", "better" if is_better else "worse"
    return (
        Span(f"{glyph} {change:+.1%} {verdict}", "ok" if is_better else "warn"),
        Span(f"  ({old})", "dim"),
    )


def _problem_lines(state: EditorState, width: int) -> tuple[Line, ...]:
    lines: list[Line] = []
    for problem in state.problems:
        text = f"✗ {_where(problem.path)}{problem.message}"
        lines += [line(Span(f" {part}", "fault")) for part in wrap(text, width - 2)]
    ways = tuple(dict.fromkeys(problem.way_out for problem in state.problems))
    if ways:
        lines += [line(Span(f"   {part}", "dim")) for part in wrap(list_words(ways, most=3), width - 4)]
    if state.edited.excluded or state.edited.pinned:
        said = []
        if state.edited.excluded:
            said.append(f"✗ kept out: {', '.join(state.edited.excluded)}")
        if state.edited.pinned:
            said.append(f"⊙ pinned: {', '.join(state.edited.pinned)}")
        lines += [line(Span(f" {part}", "warn")) for part in wrap("   ".join(said), width - 2)]
    return tuple(lines)


def _where(path: str) -> str:
    """`r0s1: ` for a path into a stage; the path itself for anything else."""
    steps = path.replace("]", "").replace("[", ".").split(".")
    if steps[:1] == ["replica"] and steps[2:3] == ["stage"]:
        return f"stage {steps[1]}.{steps[3]}: "
    return f"{path}: "
