"""Which moment is shown: the latest, or one gone back to, standing or moving. Pure.

Times are seconds since the epoch. A live session and a recording differ in two things: a recording has no "now",
and its end stands still.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec

SPEEDS = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
GAP_S = 10.0
"""A stretch without a moment that is longer than this, and than three steps, is not waited through."""
_CLOCK = re.compile(
    r"^(?:(?P<day>\d{4}-\d{2}-\d{2})[ T])?(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2}))?$"
)
_SPAN = re.compile(r"^(?P<sign>[+-])(?P<amount>\d+(?:\.\d+)?)\s*(?P<unit>ms|s|m|h)?$")
_SHARE = re.compile(r"^(?P<percent>\d+(?:\.\d+)?)\s*%$")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
TIME_FORMS = "14:02, 14:02:31 (UTC), -90s, +5m or 50%"


class TimeError(ValueError):
    """A time that cannot be gone to; its message says what can."""


class Playback(msgspec.Struct, frozen=True, kw_only=True):
    is_recording: bool = False
    at_s: float | None = None
    """Up to where time has come; None: the latest of a live session, always."""
    is_playing: bool = False
    speed: float = 1.0
    has_keys: bool = False
    """Whether the keys of time (space, comma …) are its own, and not the screen's."""

    @property
    def is_live(self) -> bool:
        return self.at_s is None


def of_recording(times: Sequence[float]) -> Playback:
    """At its beginning, standing."""
    return Playback(is_recording=True, at_s=times[0], has_keys=True)


def paused(playback: Playback, times: Sequence[float]) -> Playback:
    """Standing where it was; a live one at its latest moment. Without a moment yet it goes on."""
    if not times:
        return playback
    at_s = times[-1] if playback.at_s is None else playback.at_s
    return msgspec.structs.replace(playback, at_s=at_s, is_playing=False, has_keys=True)


def toggled(playback: Playback, times: Sequence[float]) -> Playback:
    """Standing becomes moving and the other way round. At its end a recording begins anew."""
    if playback.is_live or playback.is_playing or not times or playback.at_s is None:
        return paused(playback, times)
    at_s = times[0] if playback.is_recording and playback.at_s >= times[-1] else playback.at_s
    return msgspec.structs.replace(playback, at_s=at_s, is_playing=True)


def stepped(playback: Playback, times: Sequence[float], *, index: int, step: int) -> Playback:
    """Standing, `step` moments after the one of that index, which is shown; before it when negative."""
    if not times:
        return playback
    at_s = times[min(len(times) - 1, max(0, index + step))]
    return msgspec.structs.replace(paused(playback, times), at_s=at_s)


def gone_to(playback: Playback, times: Sequence[float], at_s: float) -> Playback:
    """At that time, or the end that is nearest to it; moving if it was."""
    if not times:
        return playback
    at_s = min(times[-1], max(times[0], at_s))
    return msgspec.structs.replace(playback, at_s=at_s, is_playing=playback.is_playing, has_keys=True)


def at_end(playback: Playback, times: Sequence[float]) -> Playback:
    """Live again; a recording stands at its last moment."""
    if playback.is_recording:
        return msgspec.structs.replace(playback, at_s=times[-1], is_playing=False)
    return msgspec.structs.replace(playback, at_s=None, is_playing=False, has_keys=False, speed=1.0)


def with_speed(playback: Playback, step: int) -> Playback:
    """The next faster speed, or the next slower one."""
    index = min(range(len(SPEEDS)), key=lambda at: abs(SPEEDS[at] - playback.speed))
    return msgspec.structs.replace(playback, speed=SPEEDS[min(len(SPEEDS) - 1, max(0, index + step))])


def advanced(playback: Playback, times: Sequence[float], elapsed_s: float, *, step_s: float) -> Playback:
    """After so many seconds of the viewer's time. At the end a live one is live again, a recording stands."""
    if not playback.is_playing or playback.at_s is None or not times:
        return playback
    at_s = max(times[0], playback.at_s) + elapsed_s * playback.speed
    following = next((time_s for time_s in times if time_s > playback.at_s), None)
    if following is not None and following - playback.at_s > max(GAP_S, 3 * step_s):
        before = max((time_s for time_s in times if time_s <= playback.at_s), default=times[0])
        # A gap is left as soon as its beginning was seen for the time of one step.
        at_s = following if at_s >= before + step_s else at_s
    if at_s >= times[-1]:
        return at_end(playback, times)
    return msgspec.structs.replace(playback, at_s=at_s)


def parse_time(text: str, times: Sequence[float], *, at_s: float) -> float:
    """A time as people write it: of the clock (UTC), relative to `at_s`, or a share of the whole.

    It may lie outside of what there is. Raises TimeError.
    """
    text = text.strip()
    if not times:
        raise TimeError("there is no moment to go to yet")
    if found := _SHARE.match(text):
        return times[0] + (times[-1] - times[0]) * min(1.0, float(found["percent"]) / 100)
    if found := _SPAN.match(text):
        span_s = float(found["amount"]) * _UNITS[found["unit"] or "s"]
        return at_s + (span_s if found["sign"] == "+" else -span_s)
    if found := _CLOCK.match(text):
        return _clock_time(found, times)
    raise TimeError(f"`{text}` is no time: write {TIME_FORMS}")


def _clock_time(found: re.Match[str], times: Sequence[float]) -> float:
    """On the day that it names, or else the last such time that is not after the end."""
    end = datetime.fromtimestamp(times[-1], UTC)
    try:
        day = datetime.fromisoformat(found["day"]).date() if found["day"] else end.date()
        moment = datetime(
            day.year,
            day.month,
            day.day,
            int(found["hour"]),
            int(found["minute"]),
            int(found["second"] or 0),
            tzinfo=UTC,
        )
    except ValueError as error:
        raise TimeError(f"`{found[0]}` is no time: {error}") from error
    if not found["day"] and moment > end and moment - timedelta(days=1) >= datetime.fromtimestamp(times[0], UTC):
        moment -= timedelta(days=1)
    return moment.timestamp()
