"""What is known of one agent's journal, as a frozen value, and how far its clock is from ours. No I/O."""

from __future__ import annotations

import msgspec

from agent.wire.agent import Event


class HostJournal(msgspec.Struct, frozen=True, kw_only=True):
    """The newest events that the timeline reads, oldest first; of what came before them nothing is known."""

    events: tuple[Event, ...] = ()
    read_at_s: float | None = None
    """When it was read last, by our clock; None: never."""
    error: str = ""
    """Why it could not be read last time; empty: it could."""
    ahead_s: float | None = None
    """Seconds by which the agent's clock is ahead of ours; None: not known yet, and taken to be 0."""
    num_dropped: int = 0
    """Older events that were read, and let go to stay within the limit."""

    def ours_s(self, theirs_s: float) -> float:
        """A time of this agent's clock, by ours."""
        return theirs_s - (self.ahead_s or 0.0)

    @property
    def known_from_s(self) -> float | None:
        """Our time of the oldest event that is known; None before the first."""
        return self.ours_s(self.events[0].at_s) if self.events else None


CLOCK_SAMPLES = 60
"""Messages that the clock's distance is taken from: the quickest of them says the most."""


class ClockDistance(msgspec.Struct, frozen=True, kw_only=True):
    """How far a host's clock is ahead, from messages that carry their time.

    received - sent is the transit less the clock's lead, and no transit is negative: the smallest of the last ones
    is off by the quickest transit alone (Cristian, 1989).
    """

    lags_s: tuple[float, ...] = ()

    def with_message(self, *, sent_s: float, received_s: float) -> ClockDistance:
        """`sent_s` by the host's clock, `received_s` by ours."""
        return ClockDistance(lags_s=(*self.lags_s[-CLOCK_SAMPLES + 1 :], received_s - sent_s))

    @property
    def ahead_s(self) -> float | None:
        return -min(self.lags_s) if self.lags_s else None
