"""A recording in the place of the fleet. It shows everything, and can do nothing."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import UTC, datetime
from typing import TypeVar

from agent.errors import FleetError
from odctl.fleet import Fleet, FleetSnapshot
from odctl.inventory import Learning
from odctl.recording import Recording
from odctl.recording.format import NO_FLEET
from odctl.tui.time_travel import TimeTravel

T = TypeVar("T")


class ReplayFeed:
    """A `Feed` without a fleet: whatever would ask one raises FleetError E123.

    It sends no snapshots by itself: the app reads the moment that playback has come to.
    """

    def __init__(self, recording: Recording) -> None:
        self.cluster = recording.header.cluster
        self.learning = Learning()
        self._recording = recording

    def start(
        self,
        on_snapshot: Callable[[FleetSnapshot], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """Nothing comes."""

    async def call(self, work: Callable[[Fleet], Awaitable[T]]) -> T:  # noqa: ARG002 - the Protocol's
        raise self._no_fleet()

    async def stream(
        self,
        work: Callable[[Fleet], AsyncGenerator[T, None]],  # noqa: ARG002 - the Protocol's
    ) -> AsyncGenerator[T, None]:
        nothing: tuple[T, ...] = ()
        for item in nothing:
            yield item  # never: it makes this a generator, which raises when it is read
        raise self._no_fleet()

    async def stop(self) -> None:
        self._recording.close()

    def _no_fleet(self) -> FleetError:
        began = datetime.fromtimestamp(self._recording.header.started_at_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
        return FleetError(
            NO_FLEET,
            f"this is a recording of {self.cluster} from {began}: there is no fleet to ask",
            hint="`odctl` without a verb opens the live fleet",
        )


class ReplayClock:
    """Now is the moment that is shown: ages are as they were then."""

    def __init__(self) -> None:
        self.time: TimeTravel | None = None

    def now_s(self) -> float:
        return self.time.shown.taken_at_s if self.time is not None and self.time.shown is not None else 0.0

    async def sleep(self, seconds: float) -> None:  # noqa: ARG002 - the Protocol's
        raise AssertionError("nothing sleeps by a recording's clock")
