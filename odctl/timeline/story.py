"""Trouble as a story: whom it befell, its steps in order, how it stood at each moment. Values only."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Phase = Literal["detected", "diagnosed", "decided", "acted", "verified", "closed"]
Condition = Literal["healthy", "warning", "fault", "diagnosing", "acting", "healing", "healed", "unknown"]
"""How a thing stands. diagnosing: seen, and nothing decided yet. acting: decided, and being done. healing: done,
and not proved yet. unknown: nobody told us."""
Scope = Literal["host", "device", "rank", "deployment"]
SEVERITY: dict[Condition, int] = {
    "fault": 7,
    "acting": 6,
    "diagnosing": 5,
    "healing": 4,
    "warning": 3,
    "unknown": 2,
    "healed": 1,
    "healthy": 0,
}
"""The higher hides the lower where both fall into one moment."""


class LaneKey(msgspec.Struct, frozen=True, order=True):
    """The faulty thing. `part` is the device's or rank's id; a rank's belongs to a deployment."""

    scope: Scope
    host: str
    part: str = ""
    deployment: str = ""

    @property
    def label(self) -> str:
        """`h3`, `h3 cuda:1`, `h3 r1s1t0`, `chat`."""
        if self.scope == "deployment":
            return self.deployment
        return f"{self.host} {self.part}".rstrip()

    @property
    def text(self) -> str:
        return "|".join((self.scope, self.host, self.part, self.deployment))


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One step, by our clock. `condition` is how the thing stands from here on."""

    phase: Phase
    at_s: float
    host: str
    """Whose journal says so; empty: our own watch does."""
    what: str
    condition: Condition
    is_exact: bool = True
    """False: read off another host's clock than the story's, so its place among the steps is an estimate."""


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """One trouble from its first sign on.

    `story_id` is the fault's id, where it is a fault; else it names the event that it began with.
    """

    story_id: str
    lane: LaneKey
    is_fault: bool = True
    kind: str
    severity: Literal["warning", "fault"]
    message: str
    evidence: dict[str, Any] = {}
    """What the agent reported, as it said it."""
    way_out: str = ""
    observed_by: str
    host: str
    """Where to look: the faulty host, or the one whose journal tells."""
    deployment: str = ""
    generation: int = 0
    rank_id: str = ""
    began_s: float | None
    """None: longer ago than we know."""
    ended_s: float | None = None
    """None: not over, as far as is known."""
    decided_by: str = ""
    """The host that decided; empty: nobody did, or it is not in a journal."""
    requests_failed: int | None = None
    """Streams that ended with an error, by the gateways' reports; None: no gateway reported."""
    requests_replayed: int | None = None
    """Requests that went on elsewhere; None: not reported."""
    steps: tuple[Step, ...]
    """In order of time; empty where nothing but the trouble itself is known."""
    unknown_since_s: float | None = None
    """Who observed it does not answer since then; None: it does."""

    @property
    def is_open(self) -> bool:
        return self.ended_s is None

    @property
    def took_s(self) -> float | None:
        """Seconds from its begin to its end; None while it is open, and where a clock was set back meanwhile."""
        if self.began_s is None or self.ended_s is None or self.ended_s < self.began_s:
            return None
        return self.ended_s - self.began_s

    @property
    def condition(self) -> Condition:
        """How it stands now."""
        if self.unknown_since_s is not None and self.is_open:
            return "unknown"
        return self.steps[-1].condition if self.steps else "unknown"


class Lane(msgspec.Struct, frozen=True, kw_only=True):
    """One faulty thing and its stories, oldest first."""

    key: LaneKey
    stories: tuple[Story, ...]
    known_from_s: float | None
    """Before this nothing is known of it; None: nothing at all is."""
    unknown_since_s: float | None = None
    """Since then nobody tells of it; None: somebody does."""

    @property
    def newest(self) -> Story:
        return self.stories[-1]


class Silence(msgspec.Struct, frozen=True, kw_only=True):
    """A host that does not answer us."""

    since_s: float | None
    """Our time of its last word; None: it never had one."""
    why: str
    way_out: str = ""


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """All lanes, the newest trouble first, and what is missing from them."""

    lanes: tuple[Lane, ...] = ()
    unread: dict[str, str] = {}
    """Hosts whose journal could not be read, and why."""
    clocks: dict[str, float] = {}
    """By how many seconds each host's clock is ahead of ours, as far as it is known."""
    num_not_understood: int = 0
    """Events of a known kind whose body this release cannot read."""

    @property
    def stories(self) -> tuple[Story, ...]:
        """All, the newest first."""
        found = [story for lane in self.lanes for story in lane.stories]
        return tuple(sorted(found, key=began_order, reverse=True))


def began_order(story: Story) -> tuple[float, str]:
    """Sorts by the begin, oldest first; what began before we knew anything is the oldest."""
    return story.began_s or 0.0, story.story_id
