"""What the fleet's controllers journalled of applied plans, brought together."""

from __future__ import annotations

from agent.errors import FleetError
from agent.planner.learning.records import Lesson, Lessons, in_order
from odctl.fleet import Fleet


async def read_lessons(fleet: Fleet) -> tuple[tuple[Lesson, ...], dict[str, FleetError]]:
    """Lessons of all hosts that answer, oldest first, and why the others do not."""
    answers = await fleet.get_all("/v1/learning", Lessons)
    missing = {host: answer for host, answer in answers.items() if isinstance(answer, FleetError)}
    known = [answer for answer in answers.values() if not isinstance(answer, FleetError)]
    return in_order([lesson for each in known for lesson in each.lessons]), missing
