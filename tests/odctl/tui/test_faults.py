"""The timeline of troubles at both sizes: lanes, steps, zoom and scrub, filter, copy, and the ways out of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from odctl.timeline import HostJournal, Timeline, fold
from odctl.tui.screens.deployment import DeploymentScreen
from odctl.tui.screens.faults import FaultsScreen, StoryScreen
from odctl.tui.screens.host import HostScreen
from odctl.tui.widgets.lines import LinesView
from tests.odctl.timeline.events import T0, Journals, killed_rank
from tests.odctl.tui import faulty_fleet as faulty
from tests.odctl.tui import frozen_fleet as frozen
from tests.odctl.tui.conftest import make_app
from tests.odctl.tui.reading import SIZES, screen_text, settle

both_sizes = pytest.mark.parametrize("size", SIZES)
RANK_LANE = "rank|h3|r1s1t0|chat"


async def opened(pilot: object) -> FaultsScreen:
    app = pilot.app  # type: ignore[attr-defined]
    await settle(pilot)  # type: ignore[arg-type]
    app.run_command("faults")
    await settle(pilot)  # type: ignore[arg-type]
    screen = app.screen
    assert isinstance(screen, FaultsScreen)
    return screen


def page_text(screen: FaultsScreen | StoryScreen, name: str) -> str:
    lines = screen.query_one(f"#{name}", LinesView).lines
    return "\n".join("".join(span.text for span in spans) for spans in lines)


@both_sizes
async def test_every_trouble_has_a_lane_with_glyph_word_and_a_legend(size: tuple[int, int]) -> None:
    app = make_app(frozen.FrozenFeed(faulty.snapshot()))
    async with app.run_test(size=size) as pilot:
        screen = await opened(pilot)
        text = screen_text(app)
        assert screen.table.shown_keys == ("deployment|||chat", RANK_LANE)
    assert "█ healed 3.10 s" in text
    for said in ("─ healthy", "▲ warning", "✗ fault", "▒ diagnosing", "▓ acting", "↻ healing", "○ unknown"):
        assert said in text, said
    assert "✗█" in text, "at this distance a heal is one cell"
    assert "0 open   1 healed in 3.10 s (median)" in text
    assert "last 1h" in text


@both_sizes
async def test_the_chosen_story_is_told_step_by_step_and_can_be_read_to_its_end(size: tuple[int, int]) -> None:
    app = make_app(frozen.FrozenFeed(faulty.snapshot()))
    async with app.run_test(size=size) as pilot:
        screen = await opened(pilot)
        screen.table.move_to(RANK_LANE)
        await settle(pilot)
        whole = " ".join(page_text(screen, "detail").split())
        for said in (
            "rank_lost",
            "+2.00 acted",
            "signal SIGKILL",
            "generation 2 is linked, was checked and serves",
            "decided by h1",
            "requests replayed: not reported by these agents",
        ):
            assert said in whole, said
        page = screen.query_one("#detail", LinesView)
        assert all(len("".join(span.text for span in spans)) <= page.content_width for spans in page.lines)
        await pilot.press("tab", "end")
        await settle(pilot)
        assert screen.focused is page
        assert "signal SIGKILL" in screen_text(app), "the last lines are reached by scrolling"


@both_sizes
async def test_enter_opens_the_story_over_the_whole_screen_and_escape_leads_back(size: tuple[int, int]) -> None:
    app = make_app(frozen.FrozenFeed(faulty.snapshot()))
    async with app.run_test(size=size) as pilot:
        screen = await opened(pilot)
        screen.table.move_to(RANK_LANE)
        await pilot.press("enter")
        await settle(pilot)
        assert isinstance(app.screen, StoryScreen)
        assert "evidence, as reported" in page_text(app.screen, "page")
        await pilot.press("escape")
        await settle(pilot)
        assert app.screen_stack[-1] is screen
        assert screen.table.cursor_key == RANK_LANE


async def test_a_page_is_broken_anew_when_something_beside_it_goes() -> None:
    app = make_app(frozen.FrozenFeed(faulty.snapshot()))
    async with app.run_test(size=(140, 40)) as pilot:
        screen = await opened(pilot)
        assert "4 streams\n" in page_text(screen, "detail")
        screen.query_one("#open").display = False
        await settle(pilot)
        assert "4 streams ended\n" in page_text(screen, "detail"), "without waiting for news of the fleet"


async def test_zooming_and_scrubbing_move_the_axis_and_now_leads_back() -> None:
    app = make_app(frozen.FrozenFeed(faulty.snapshot()))
    async with app.run_test(size=(140, 40)) as pilot:
        screen = await opened(pilot)
        before = screen_text(app)
        await pilot.press("underscore")
        await settle(pilot)
        assert screen.axis.span_s == 6 * 3600
        await pilot.press("plus", "plus", "left")
        await settle(pilot)
        assert (screen.axis.span_s, screen.axis.end_s) == (900.0, frozen.NOW_S - 112.5)
        assert "15m until 2023-11-14" in screen_text(app)
        await pilot.press("right")
        await settle(pilot)
        assert screen.axis.end_s is None, "at the present it follows again"
        await pilot.press("left", "n", "underscore")
        await settle(pilot)
        assert screen_text(app) == before


async def test_the_axis_is_fitted_to_a_story_so_that_each_phase_is_seen() -> None:
    app = make_app(frozen.FrozenFeed(faulty.snapshot()))
    async with app.run_test(size=(140, 40)) as pilot:
        screen = await opened(pilot)
        screen.table.move_to(RANK_LANE)
        await pilot.press("z")
        await settle(pilot)
        lane = next(line for line in screen_text(app).splitlines() if line.startswith(" h3 r1s1t0"))
        row = list(screen.table.shown_keys).index(RANK_LANE) + 1
        for segment in screen.table.render_line(row):
            is_reversed = bool(segment.style and segment.style.reverse)
            assert is_reversed == ("h3 r1s1t0" in segment.text), "blocks that are reversed look like nothing"
    assert screen.axis.start(frozen.NOW_S) < T0
    order = [lane.index(glyph) for glyph in "✗▓↻█"]
    assert order == sorted(order), lane


@both_sizes
async def test_lanes_are_filtered_and_an_open_trouble_stands_out(size: tuple[int, int]) -> None:
    told = killed_rank().fault("h1", 800.0, "F-2", "host_lost", rank_id="", message="h2 is silent", host="h2")
    app = make_app(frozen.FrozenFeed(faulty.snapshot(told)))
    async with app.run_test(size=size) as pilot:
        screen = await opened(pilot)
        assert screen.table.shown_keys[0] == "host|h2||", "the newest first"
        text = screen_text(app)
        assert "✗ open" in text
        assert "1 open" in text
        if size[0] >= 130:
            assert "open and healing" in text
        screen.set_filter("SIGKILL")
        await settle(pilot)
        assert "host|h2||" in screen.table.shown_keys, "evidence is searched"
        screen.set_filter("rank_lost")
        await settle(pilot)
        assert screen.table.shown_keys == (RANK_LANE,)
        screen.set_filter("-l state=open")
        await settle(pilot)
        assert screen.table.shown_keys == ("host|h2||",)
        await pilot.press("escape", "v")
        await settle(pilot)
        assert "List" in screen_text(app)
        assert "▓ acting" not in screen_text(app), "a list has no legend"


async def test_a_story_is_copied_as_text() -> None:
    app = make_app(frozen.FrozenFeed(faulty.snapshot()))
    async with app.run_test(size=(140, 40)) as pilot:
        screen = await opened(pilot)
        screen.table.move_to(RANK_LANE)
        await pilot.press("c")
        await settle(pilot)
        assert app.clipboard.startswith("█ rank_lost of chat r1s1t0 on h3: healed after 3.10 s\n")
        assert "evidence signal: SIGKILL\n" in app.clipboard


@both_sizes
async def test_the_host_and_the_deployment_of_a_trouble_are_a_key_away(size: tuple[int, int]) -> None:
    app = make_app(frozen.FrozenFeed(faulty.snapshot()))
    async with app.run_test(size=size) as pilot:
        screen = await opened(pilot)
        screen.table.move_to(RANK_LANE)
        await pilot.press("o")
        await settle(pilot)
        assert isinstance(app.screen, HostScreen)
        assert app.screen.host == "h3"
        await pilot.press("escape", "d")
        await settle(pilot)
        assert isinstance(app.screen, DeploymentScreen)
        assert app.screen.deployment == "chat"


@both_sizes
async def test_a_host_that_vanishes_is_a_lane_and_makes_unknown_what_it_alone_could_tell(
    size: tuple[int, int],
) -> None:
    told = Journals().fault("h1", 700.0, "F-3", "rank_lost").state("h1", 700.1, "healing", "restarting r1s1t0")
    feed = frozen.FrozenFeed(faulty.snapshot(told))
    app = make_app(feed)
    async with app.run_test(size=size) as pilot:
        screen = await opened(pilot)
        screen.table.move_to(RANK_LANE)
        await pilot.press("enter")
        await settle(pilot)
        assert "▓ acting" in page_text(app.screen, "page")  # type: ignore[arg-type]
        gone = faulty.with_host(
            faulty.snapshot(told),
            "h1",
            state="lost",
            reason="connection lost: reset by peer",
            way_out="odctl bootstrap h1",
            sample_age_s=60.0,
        )
        feed.push(gone)
        await settle(pilot)
        assert "○ unknown" in page_text(app.screen, "page")  # type: ignore[arg-type]
        await pilot.press("escape")
        await settle(pilot)
        assert screen.table.shown_keys[0] == "host|h1||"
        text = screen_text(app)
    assert "○ unknown" in text
    assert "no_answer" in text or size[0] < 100
    lane = next(line for line in text.splitlines() if line.startswith(" h3 r1s1t0"))
    assert "○ " in lane


async def test_a_story_whose_tellers_are_gone_stays_as_it_was_told_last() -> None:
    feed = frozen.FrozenFeed(faulty.snapshot())
    app = make_app(feed)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot)
        screen.table.move_to(RANK_LANE)
        await pilot.press("enter")
        await settle(pilot)
        feed.push(faulty.snapshot(Journals()))
        await settle(pilot)
        text = screen_text(app)
    assert "nobody tells of this any more" in text
    assert "rank_lost" in text


@both_sizes
async def test_what_could_not_be_read_and_clocks_that_are_off_are_said(size: tuple[int, int]) -> None:
    off = killed_rank(h2=-75.0)
    found = faulty.with_host(
        faulty.snapshot(off), "h3", journal=HostJournal(error="the agent did not answer in time")
    )
    app = make_app(frozen.FrozenFeed(found))
    async with app.run_test(size=size) as pilot:
        await opened(pilot)
        text = screen_text(app)
    assert "▲ not read: the journal of h3: the agent did not answer in time" in text
    assert "▲ clocks are off, and put right here: h2 -75.0 s" in text


async def test_one_thing_with_several_troubles_is_one_lane_to_step_through() -> None:
    told = killed_rank().fault("h1", 300.0, "F-4", "rank_hung").healed("h1", 305.0, "F-4", 5.0)
    app = make_app(frozen.FrozenFeed(faulty.snapshot(told)))
    async with app.run_test(size=(140, 40)) as pilot:
        screen = await opened(pilot)
        screen.table.move_to(RANK_LANE)
        await settle(pilot)
        assert "2 of 2 here" in page_text(screen, "detail")
        assert "before that, here" in page_text(screen, "detail")
        await pilot.press("less_than_sign")
        await settle(pilot)
        assert "1 of 2 here" in page_text(screen, "detail")
        assert screen.chosen is not None
        assert screen.chosen[1].story_id == "F-1"


async def test_the_timeline_is_folded_anew_only_when_something_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    folded: list[object] = []

    def counting(journals: Mapping[str, HostJournal], **more: Any) -> Timeline:
        folded.append(journals)
        return fold(journals, **more)

    monkeypatch.setattr("odctl.tui.model.fault_lanes.fold", counting)
    found = faulty.snapshot()
    feed = frozen.FrozenFeed(found)
    app = make_app(feed)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        for _ in range(3):
            feed.push(found)
            await settle(pilot)
    assert len(folded) == 1


async def test_the_journals_of_five_thousand_hosts_are_drawn_anew() -> None:
    """Every host has a journal, a hundred tell of a killed rank, and one of them has just told more."""
    told = killed_rank()
    started = Journals().tell("x", -60.0, "AgentStarted", {"pid": 1}, deployment="", generation=0).read()["x"]
    base, troubled = frozen.host("base"), told.read()["h1"]
    hosts = tuple(
        msgspec.structs.replace(base, name=f"h{number:05d}", journal=started if number % 50 else troubled)
        for number in range(5000)
    )
    more = told.fault("h1", 700.0, "F-5", "rank_lost").read()["h1"]
    later = (msgspec.structs.replace(hosts[0], journal=more), *hosts[1:])
    app = make_app(frozen.FrozenFeed(frozen.snapshot(hosts=hosts, faults=())))
    async with app.run_test(size=(140, 40)) as pilot:
        screen = await opened(pilot)
        assert screen.table.shown_keys
        app.snapshot = frozen.snapshot(hosts=later, faults=())
        app.redraw()
        await pilot.pause()
        assert screen.chosen is not None
