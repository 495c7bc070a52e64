"""The plans that a screen knows: the previewed one, what runs, and files of the working directory. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from agent.planner.compare import MOST_PLANS, shape_words
from agent.planner.words import rate_words, seconds_words
from odctl.fleet.snapshot import FleetSnapshot
from odctl.tui.model.marks import DEPLOYMENT_MARKS, MARKED, UNKNOWN, Mark
from odctl.tui.model.plans import PlanChoice, plan_choices
from odctl.tui.model.table import Banner, Column, Value
from odctl.tui.model.text import Line, Span, line

PREVIEW_KEY = "preview"
COLUMNS = (
    Column(id="mark", title=" ", width=1),
    Column(id="name", title="PLAN", width=14, grow_to=24),
    Column(id="state", title="STATE", width=18),
    Column(id="origin", title="FROM", width=16, priority=1, grow_to=40),
    Column(id="per_token", title="/TOKEN", width=8, priority=3, is_right=True),
    Column(id="rate", title="PREDICTED", width=11, priority=2, is_right=True, sorts_down=True),
    Column(id="hash", title="HASH", width=12, priority=5),
    Column(id="layout", title="LAYOUT", width=18, priority=4, grow_to=60),
)
_PREVIEW = Mark("◇", "preview", "heal")
_FILE = Mark("○", "file", "dim")
_RUNS = Mark("●", "file, it runs", "ok")
_BROKEN = Mark("✗", "no sound plan", "fault")


class PlanFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is a plan, or means to be one: then `error` says what is wrong, as its parser laid it out."""

    path: str
    choice: PlanChoice | None
    error: str = ""


class PlanEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the list. Its key stays the same from snapshot to snapshot."""

    key: str
    mark: Mark
    choice: PlanChoice | None
    origin: str
    error: str = ""

    @property
    def name(self) -> str:
        return self.choice.plan.name if self.choice is not None else self.origin


def plan_entries(
    snapshot: FleetSnapshot | None, preview: PlanChoice | None, files: Sequence[PlanFile] = ()
) -> tuple[PlanEntry, ...]:
    """The previewed plan first, then what runs, by name, then files, by path. A previewed file is told once."""
    entries: list[PlanEntry] = []
    running = plan_choices(snapshot, None)
    hashes = {choice.plan_hash for choice in running if choice.error is None}
    if preview is not None:
        entries.append(PlanEntry(key=PREVIEW_KEY, mark=_PREVIEW, choice=preview, origin=preview.origin))
    for choice in running:
        assert choice.status is not None, "what runs has a status"
        mark = UNKNOWN if choice.error is not None else DEPLOYMENT_MARKS[choice.status.state]
        mark = mark._replace(word=f"{mark.word}, gen {choice.status.generation}")
        entries.append(PlanEntry(key=f"run:{choice.plan.name}", mark=mark, choice=choice, origin="running"))
    for file in files:
        if preview is not None and file.path == preview.origin:
            continue
        runs = file.choice is not None and file.choice.plan_hash in hashes
        mark = _BROKEN if file.choice is None else _RUNS if runs else _FILE
        key = f"file:{file.path}"
        entries.append(PlanEntry(key=key, mark=mark, choice=file.choice, origin=file.path, error=file.error))
    return tuple(entries)


class PlanRows:
    """Entries as they stand, marked ones with a dot."""

    columns = COLUMNS

    def __init__(self, entries: Sequence[PlanEntry], marked: Collection[str]) -> None:
        self._entries = entries
        self._marked = frozenset(marked)
        self.keys: Sequence[str] = tuple(entry.key for entry in entries)

    def values(self, column: str) -> Sequence[Value]:
        return [_value(entry, column) for entry in self._entries]

    def text(self, row: int) -> str:
        entry = self._entries[row]
        layout = shape_words(entry.choice.plan) if entry.choice is not None else entry.error
        return f"{entry.name} {entry.mark.word} {entry.origin} {layout}"

    def labels(self, row: int) -> dict[str, str]:  # noqa: ARG002 - plans have none
        return {}

    def banner(self, row: int) -> Banner | None:
        entry = self._entries[row]
        if entry.choice is not None:
            return None
        first = next((text.strip() for text in entry.error.splitlines() if text.strip()), "it cannot be read")
        return "origin", line(Span(first, "fault"))

    def cell(self, row: int, column: str, width: int) -> Line:  # noqa: ARG002 - nothing here depends on it
        entry = self._entries[row]
        match column:
            case "mark":
                return line(Span(MARKED if entry.key in self._marked else " ", "key"))
            case "name":
                return line(Span(entry.name, "bold"))
            case "state":
                return line(entry.mark.span)
            case "per_token" if entry.choice is not None:
                return line(seconds_words(entry.choice.plan.predicted.time_per_token_s))
            case "rate" if entry.choice is not None:
                return line(rate_words(entry.choice.plan.predicted.tokens_per_s))
            case _:
                return line(Span(str(_value(entry, column) or ""), "dim"))


def toggled(marked: Sequence[str], key: str) -> tuple[str, ...]:
    """The marks with this one put or taken away. Of more than can be compared the oldest goes."""
    if key in marked:
        return tuple(each for each in marked if each != key)
    return (*marked, key)[-MOST_PLANS:]


def to_compare(entries: Sequence[PlanEntry], marked: Sequence[str], cursor: str | None) -> tuple[PlanChoice, ...]:
    """What `c` compares: the marked plans in the order of their marks; with a single mark, it and the cursor's.

    Without marks, what runs under the name of the cursor's plan, and that plan. Fewer than two: nothing to compare.
    """
    by_key = {entry.key: entry.choice for entry in entries if entry.choice is not None}
    chosen = [key for key in marked if key in by_key]
    if len(chosen) == 1 and cursor in by_key and cursor is not None and cursor not in chosen:
        chosen.append(cursor)
    here = by_key.get(cursor) if cursor is not None else None
    if not chosen and here is not None and cursor is not None:
        counterpart = f"run:{here.plan.name}"
        chosen = [counterpart, cursor] if counterpart in by_key and counterpart != cursor else [cursor]
    return tuple(choice for key in chosen if (choice := by_key[key]) is not None)


def _value(entry: PlanEntry, column: str) -> Value:
    choice = entry.choice
    match column:
        case "mark":
            return None
        case "name":
            return entry.name
        case "state":
            return entry.mark.word
        case "origin":
            return entry.origin
    if choice is None:
        return None
    match column:
        case "per_token":
            return choice.plan.predicted.time_per_token_s * 1e3
        case "rate":
            return choice.plan.predicted.tokens_per_s
        case "hash":
            return choice.plan_hash[:12]
        case _:
            return shape_words(choice.plan)
