"""How a lane stood in each stretch of time: what its strip of cells is drawn from. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from odctl.timeline.story import SEVERITY, Condition, Lane, Story


def conditions(
    lane: Lane, *, start_s: float, span_s: float, num_cells: int, now_s: float
) -> tuple[Condition | None, ...]:
    """The worst condition within each of `num_cells` equal stretches from `start_s` on; None: it is yet to come.

    Before the lane's first word, and since its last teller fell silent, it is unknown.
    """
    cell_s = span_s / num_cells
    marks = [_marks(story) for story in lane.stories]
    out: list[Condition | None] = []
    for cell in range(num_cells):
        begin_s = start_s + cell * cell_s
        end_s = begin_s + cell_s
        if begin_s > now_s:
            out.append(None)
        elif _is_known(lane, begin_s, end_s):
            out.append(_worst(marks, begin_s, end_s))
        else:
            out.append("unknown")
    return tuple(out)


def _is_known(lane: Lane, begin_s: float, end_s: float) -> bool:
    if lane.known_from_s is None or end_s <= lane.known_from_s:
        return False
    return lane.unknown_since_s is None or begin_s < lane.unknown_since_s


def _worst(marks: list[list[tuple[float, Condition]]], begin_s: float, end_s: float) -> Condition:
    found: Condition = "healthy"
    for of_story in marks:
        for condition in _within(of_story, begin_s, end_s):
            if SEVERITY[condition] > SEVERITY[found]:
                found = condition
    return found


def _within(marks: list[tuple[float, Condition]], begin_s: float, end_s: float) -> Iterator[Condition]:
    """Conditions of one story in [begin, end): the one that it came in with, and each that began there."""
    held: Condition | None = None
    for at_s, condition in marks:
        if at_s >= end_s:
            break
        if at_s >= begin_s:
            yield condition
        else:
            held = condition
    if held is not None:
        yield held


def _marks(story: Story) -> list[tuple[float, Condition]]:
    """When the story's condition changed, and to what."""
    if story.is_open and story.unknown_since_s is not None:
        return [*((step.at_s, step.condition) for step in story.steps), (story.unknown_since_s, "unknown")]
    return [(step.at_s, step.condition) for step in story.steps]
