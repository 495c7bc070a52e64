"""One host's journal as the watch keeps it: the newest events that tell of trouble, and the clock's distance."""

from __future__ import annotations

from contextlib import aclosing

import msgspec

from agent.errors import FleetError
from agent.wire.agent import Event
from odctl.fleet.connection import Fleet
from odctl.timeline.journal import ClockDistance, HostJournal
from odctl.timeline.kinds import KINDS, slim

KEPT_EVENTS = 500
"""Of each host; older ones are let go."""
PAST_EVENTS = 500
"""Asked for when a host is met."""
PAGE_EVENTS = 1000
MAX_PAGES = 10
"""Pages read at once; what is left waits for the next time."""

CLOCK_STEP_S = 0.05
"""A smaller change of a clock's distance is the network's, and not worth drawing everything anew."""


class JournalTail:
    """Follows one journal by asking for what is new. `view` is a frozen value that changes by replacement."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._clock = ClockDistance()
        self._after: int | None = None
        """Id of the newest event that was read, of whatever kind; None: the past is yet to be read."""
        self.view = HostJournal()

    def take_time(self, *, sent_s: float, received_s: float) -> None:
        """A message of that host that carries its time."""
        self._clock = self._clock.with_message(sent_s=sent_s, received_s=received_s)
        ahead_s = self._clock.ahead_s
        if self.view.ahead_s is None or ahead_s is None or abs(ahead_s - self.view.ahead_s) > CLOCK_STEP_S:
            self.view = msgspec.structs.replace(self.view, ahead_s=ahead_s)

    def forget_place(self) -> None:
        """The connection was lost: the journal behind it may be another one when it is back."""
        self._after = None

    async def read(self, fleet: Fleet, *, now_s: float) -> None:
        """Read what is new. What goes wrong is told by the view's `error`; raises nothing."""
        try:
            if self._after is None:
                await self._read_past(fleet)
            await self._read_new(fleet)
        except FleetError as error:
            self.view = msgspec.structs.replace(self.view, error=error.message)
        else:
            self.view = msgspec.structs.replace(self.view, error="", read_at_s=now_s)

    async def _read_past(self, fleet: Fleet) -> None:
        newest = await read_events(fleet, self._host, "limit=1")
        past = await read_events(fleet, self._host, f"limit={PAST_EVENTS}&kinds={','.join(KINDS)}")
        if newest:
            # Between both questions more may have come: those are read again, and told apart by their id.
            self._after = newest[-1].event_id
            past = [event for event in past if event.event_id <= newest[-1].event_id]
        else:
            self._after, past = 0, []
        self.view = msgspec.structs.replace(self.view, events=(), num_dropped=0)
        self._keep(past)

    async def _read_new(self, fleet: Fleet) -> None:
        assert self._after is not None
        for _ in range(MAX_PAGES):
            events = await read_events(fleet, self._host, f"after={self._after}&limit={PAGE_EVENTS}")
            if events:
                self._after = events[-1].event_id
                self._keep(events)
            if len(events) < PAGE_EVENTS:
                return

    def _keep(self, events: list[Event]) -> None:
        fresh = tuple(slim(event) for event in events if event.kind in KINDS)
        if not fresh:
            return
        kept = (*self.view.events, *fresh)
        dropped = max(0, len(kept) - KEPT_EVENTS)
        self.view = msgspec.structs.replace(
            self.view, events=kept[dropped:], num_dropped=self.view.num_dropped + dropped
        )


async def read_events(fleet: Fleet, host: str, query: str) -> list[Event]:
    """Events of one journal, oldest first. An agent that does not know `kinds` answers with all of them.

    Raises FleetError.
    """
    found: list[Event] = []
    async with aclosing(fleet.stream(host, "GET", f"/v1/events?{query}", None, Event)) as events:
        async for event in events:
            found.append(event)
    return found
