"""The log screen at both sizes: merged, filtered, paused, wrapped, and bounded."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar, cast

import pytest

from agent.errors import FleetError
from odctl.fleet import Fleet, FleetSnapshot
from odctl.logs import LogEntry, parse_log_filter
from odctl.tui.model.log_lines import DROPPED_AT_ONCE, Columns, LogWindow, entry_lines
from odctl.tui.model.text import line_text, line_width
from odctl.tui.screens.events import EventsScreen
from odctl.tui.widgets.lines import LinesView
from tests.odctl.tui import frozen_fleet as frozen
from tests.odctl.tui.reading import SIZES, screen_text, settle
from tests.odctl.tui.scripted_operator import make_app

T = TypeVar("T")
both_sizes = pytest.mark.parametrize("size", SIZES)


class TalkingFeed(frozen.FrozenFeed):
    """Streams these batches, then ends as it was told."""

    def __init__(self, snapshot: FleetSnapshot, batches: list[tuple[LogEntry, ...]]) -> None:
        super().__init__(snapshot)
        self.batches = batches
        self.num_follows = 0
        self.error: FleetError | None = None

    async def stream(self, work: Callable[[Fleet], AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:  # noqa: ARG002
        self.num_follows += 1
        for batch in self.batches:
            yield cast("T", batch)
        if self.error is not None:
            raise self.error


def entry(at_s: float, host: str = "gpu01", **changes: Any) -> LogEntry:
    made: dict[str, Any] = {
        "at_s": at_s,
        "host": host,
        "source": "agent",
        "level": "info",
        "text": f"line {at_s:g}",
    }
    return LogEntry(**(made | changes))


def story() -> list[tuple[LogEntry, ...]]:
    return [
        (entry(30.0), entry(10.0, "cpu01", source="journal", level="error", text="RankLost chat g3")),
        (
            entry(20.0, "cpu02", level="warning", text="late", detail="child=r0"),
            entry(40.0, text="x" * 300 + " finis"),
        ),
    ]


async def open_logs(pilot: Any) -> EventsScreen:
    await settle(pilot)
    pilot.app.action_mode("logs")
    await settle(pilot)
    screen = pilot.app.screen
    assert isinstance(screen, EventsScreen)
    screen._take_waiting()
    await settle(pilot)
    return screen


def shown(screen: EventsScreen) -> list[str]:
    return [line_text(spans) for spans in screen.query_one("#page", LinesView).lines]


@both_sizes
async def test_logs_of_all_hosts_stand_by_time_newest_last(size: tuple[int, int]) -> None:
    app = make_app(TalkingFeed(frozen.snapshot(), story()))
    async with app.run_test(size=size) as pilot:
        screen = await open_logs(pilot)
        text = screen_text(app)
        assert [line.split()[0] for line in shown(screen)] == ["00:00:10", "00:00:20", "00:00:30", "00:00:40"]
        assert "✗ cpu01" in text
        assert "▲ cpu02" in text
        assert "child=r0" in text
        assert "● following 6 hosts" in text


@both_sizes
async def test_a_filter_is_applied_as_it_is_typed_and_taken_back_by_escape(size: tuple[int, int]) -> None:
    feed = TalkingFeed(frozen.snapshot(), story())
    app = make_app(feed)
    async with app.run_test(size=size) as pilot:
        screen = await open_logs(pilot)
        await pilot.press("slash", *"level=warning !late")
        await settle(pilot)
        assert [line.split()[0] for line in shown(screen)] == ["00:00:10"]
        await pilot.press("enter")
        await settle(pilot)
        assert "/ level=warning !late" in screen_text(app)
        assert feed.num_follows == 1, "the same hosts are followed on"
        await pilot.press("escape")
        await settle(pilot)
        assert len(shown(screen)) == 4


async def test_a_filter_that_means_nothing_says_so_and_leaves_the_last_one() -> None:
    app = make_app(TalkingFeed(frozen.snapshot(), story()))
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_logs(pilot)
        screen.set_filter("late")
        await settle(pilot)
        screen.set_filter("late (")
        await settle(pilot)
        assert "▲ filter: `(` is no regular expression" in screen_text(app)
        assert len(shown(screen)) == 1


async def test_a_filter_by_host_follows_these_hosts_alone() -> None:
    feed = TalkingFeed(frozen.snapshot(), story())
    app = make_app(feed)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_logs(pilot)
        await pilot.press("slash", *"host=cpu*", "enter")
        await settle(pilot)
        assert feed.num_follows == 2
        assert "following 5 hosts" in screen_text(app)
        await pilot.press("greater_than_sign")
        await settle(pilot)
        assert screen.filter_text == "host=cpu01"
        await pilot.press("greater_than_sign")
        await settle(pilot)
        assert screen.filter_text == "host=cpu02"
        screen.set_filter("host=nobody")
        await settle(pilot)
        assert "no host passes the filter" in screen_text(app)


async def test_while_paused_what_comes_waits() -> None:
    app = make_app(TalkingFeed(frozen.snapshot(), []))
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_logs(pilot)
        await pilot.press("space")
        screen._waiting.extend([entry(1.0), entry(2.0)])
        screen._take_waiting()
        screen._show()
        await settle(pilot)
        text = screen_text(app)
        assert "❚❚ paused" in text
        assert "2 more wait" in text
        assert shown(screen) == []
        await pilot.press("space")
        await settle(pilot)
        assert len(shown(screen)) == 2


@both_sizes
async def test_a_long_line_is_cut_or_wrapped_whole(size: tuple[int, int]) -> None:
    app = make_app(TalkingFeed(frozen.snapshot(), story()))
    async with app.run_test(size=size) as pilot:
        screen = await open_logs(pilot)
        assert " finis" not in screen_text(app)
        await pilot.press("w")
        await settle(pilot)
        await pilot.press("G")
        await settle(pilot)
        assert " finis" in screen_text(app)
        assert len(shown(screen)) > 4
        assert "".join(shown(screen)).count("x") == 300


async def test_a_stream_that_breaks_says_why() -> None:
    feed = TalkingFeed(frozen.snapshot(), story())
    feed.error = FleetError("E901", "the fleet's thread did not start")
    app = make_app(feed)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_logs(pilot)
        assert "✗ the fleet's thread did not start" in screen_text(app)
        assert len(shown(screen)) == 4, "what was read stays"


async def test_a_screen_that_nobody_sees_follows_nothing() -> None:
    feed = TalkingFeed(frozen.snapshot(), story())
    app = make_app(feed)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_logs(pilot)
        await pilot.press("1")
        await settle(pilot)
        assert screen._hosts is None
        feed.push(frozen.snapshot(taken_at_s=frozen.NOW_S + 1))
        await settle(pilot)
        assert feed.num_follows == 1
        app.action_mode("logs")
        await settle(pilot)
        assert feed.num_follows == 2


def test_a_window_keeps_its_bound_its_order_and_its_filter() -> None:
    window = LogWindow(kept=1000)
    window.choose(parse_log_filter("level=error"))
    for number in range(5000):
        late = number - 3 if number % 7 == 0 else number
        window.add([entry(float(late), level="error" if number % 2 else "info")])
        assert len(window) <= 1000
    assert window.num_dropped == 5000 - len(window)
    assert len(window) >= 1000 - DROPPED_AT_ONCE
    times = [each.at_s for each in window.shown]
    assert times == sorted(times)
    assert {each.level for each in window.shown} == {"error"}
    window.choose(parse_log_filter(""))
    assert len(window.shown) == len(window)


@pytest.mark.parametrize("width", [60, 100, 140])
def test_a_wrapped_entry_loses_nothing_and_keeps_within_the_width(width: int) -> None:
    words = " ".join(f"word{number}" for number in range(60))
    lines = entry_lines(
        entry(1.0, text=words, detail="a=1 b=2"), Columns(host=8, source=12), width=width, is_wrapped=True
    )
    assert all(line_width(spans) <= width for spans in lines)
    said = " ".join(line_text(spans) for spans in lines).split()
    assert [word for word in said if word.startswith("word")] == words.split()
    assert said[-2:] == ["a=1", "b=2"]


@pytest.mark.parametrize(("width", "is_whole"), [(80, True), (140, True), (50, False)])
def test_names_stand_whole_as_long_as_the_text_keeps_half_of_the_screen(width: int, is_whole: bool) -> None:
    window = LogWindow()
    window.add([entry(1.0, "gpu01", source="chat-3-r0s0t0"), entry(2.0, "cpu01")])
    text = line_text(entry_lines(window.shown[0], window.columns(width), width=width, is_wrapped=False)[0])
    assert ("chat-3-r0s0t0 " in text) is is_whole
    assert "line 1" in text
