"""Time in the UI: a live session that stands still, steps, plays and goes live; and recordings."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from textual.pilot import Pilot

from odctl.recording import RecordingWriter, open_recording
from odctl.tui.app import OdctlApp
from odctl.tui.model.fleet_columns import fleet_columns
from odctl.tui.replay import replay_app
from odctl.tui.screens.chat import ChatScreen
from odctl.tui.screens.confirm import ConfirmScreen
from odctl.tui.screens.fleet import FleetScreen
from odctl.tui.screens.host import HostScreen
from odctl.tui.widgets.prompt import Prompt
from odctl.tui.widgets.scrub_bar import ScrubBar
from tests.odctl.recording.moving_fleet import moments
from tests.odctl.tui import frozen_fleet as frozen
from tests.odctl.tui.conftest import make_app
from tests.odctl.tui.reading import SIZES, screen_text, settle

both_sizes = pytest.mark.parametrize("size", SIZES)
SNAPSHOTS = moments(60)
T0 = SNAPSHOTS[0].taken_at_s


class WallClock(frozen.FrozenClock):
    """Stands where the test puts it."""

    def __init__(self) -> None:
        self.at_s = T0

    def now_s(self) -> float:
        return self.at_s


def live_app() -> tuple[OdctlApp, frozen.FrozenFeed, WallClock]:
    """An app that gets the moving fleet's seconds one by one, and whose viewer's time the test owns."""
    feed = frozen.FrozenFeed(None)
    app = make_app(feed)
    clock = WallClock()
    app.clock = clock
    app.steady_clock = lambda: 0.0
    return app, feed, clock


async def push(pilot: Pilot[None], feed: frozen.FrozenFeed, clock: WallClock, first: int, end: int) -> None:
    for snapshot in SNAPSHOTS[first:end]:
        clock.at_s = snapshot.taken_at_s
        feed.push(snapshot)
        await pilot.pause()
    await settle(pilot)


def title(app: OdctlApp) -> str:
    return screen_text(app).splitlines()[0]


def shown_second(app: OdctlApp) -> int:
    assert app.snapshot is not None
    return round(app.snapshot.taken_at_s - T0)


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    path = tmp_path / "lab.rec"
    writer = RecordingWriter(path, cluster="lab", started_at_s=T0, every_s=1.0, max_bytes=10**9)
    for snapshot in SNAPSHOTS:
        assert writer.write(snapshot)
    writer.close()
    return path


def break_moment(path: Path, index: int) -> None:
    """Turn a byte of its change round."""
    recording = open_recording(path)
    frame = recording._frames[index]
    recording.close()
    data = bytearray(path.read_bytes())
    data[frame.offset + frame.rows_bytes + 3] ^= 0xFF
    path.write_bytes(data)


def replay(path: Path) -> OdctlApp:
    app = replay_app(open_recording(path))
    app.animation_level = "none"
    app.steady_clock = lambda: 0.0
    return app


# --- a live session ---------------------------------------------------------------------------------------


@both_sizes
async def test_a_live_session_pauses_steps_back_and_goes_live(size: tuple[int, int]) -> None:
    app, feed, clock = live_app()
    async with app.run_test(size=size) as pilot:
        await push(pilot, feed, clock, 0, 30)
        assert "● live" in title(app)
        assert app.screen.query_one(ScrubBar).size.height == 0, "nothing of it while the session is live"
        await pilot.press("T")
        await settle(pilot)
        await push(pilot, feed, clock, 30, 35)
        text = screen_text(app)
        assert shown_second(app) == 29
        assert "‖ 5 s ago" in text
        assert "● live" not in title(app)
        assert "30/35" in text
        await pilot.press("comma", "comma", "left_square_bracket")
        await settle(pilot)
        assert shown_second(app) == 26
        await pilot.press("full_stop")
        await settle(pilot)
        assert shown_second(app) == 27
        assert "‖ 7 s ago" in screen_text(app)
        await pilot.press("L")
        await settle(pilot)
        assert shown_second(app) == 34
        assert "● live" in title(app)
        await push(pilot, feed, clock, 35, 36)
        assert shown_second(app) == 35


async def test_playing_from_the_past_catches_up() -> None:
    app, feed, clock = live_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await push(pilot, feed, clock, 0, 40)
        app.run_command("time -20s")
        await settle(pilot)
        assert shown_second(app) == 19
        await pilot.press("space")
        await settle(pilot)
        assert "▶ 20 s ago" in screen_text(app)
        app.play_on(5.0)
        await settle(pilot)
        assert shown_second(app) == 24
        await pilot.press("plus", "plus")
        await settle(pilot)
        assert "5x" in screen_text(app)
        app.play_on(2.0)
        await settle(pilot)
        assert shown_second(app) == 34
        await pilot.press("space")
        await settle(pilot)
        app.play_on(2.0)
        assert shown_second(app) == 34, "it stands"
        await pilot.press("space")
        app.play_on(10.0)
        await settle(pilot)
        assert shown_second(app) == 39
        assert "● live" in title(app)


async def test_columns_are_made_ready_only_for_what_is_about_to_be_shown() -> None:
    app, feed, clock = live_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await push(pilot, feed, clock, 0, 5)
        feed.push(SNAPSHOTS[5])
        assert "loads" in vars(fleet_columns(SNAPSHOTS[5])), "before the screen has had its turn"
        await settle(pilot)
        await pilot.press("T")
        await settle(pilot)
        feed.push(SNAPSHOTS[6])
        assert "loads" not in vars(fleet_columns(SNAPSHOTS[6])), "it is not what the screen shows next"


async def test_keys_of_time_are_the_screens_while_the_session_is_live() -> None:
    app, feed, clock = live_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await push(pilot, feed, clock, 0, 5)
        assert isinstance(app.screen, FleetScreen)
        await pilot.press("full_stop")
        await settle(pilot)
        assert app.screen.sort is not None, "the full stop sorts"
        sort = app.screen.sort
        await pilot.press("T", "comma")
        await settle(pilot)
        assert (app.screen.sort, shown_second(app)) == (sort, 3)
        await pilot.press("T", "comma")
        await settle(pilot)
        assert app.screen.sort != sort, "T gave the keys back to the screen"
        assert shown_second(app) == 3, "and time stands still"
        await pilot.press("T", "minus")
        await settle(pilot)
        assert app.time.playback.speed == 0.5
        await pilot.press("g")
        await settle(pilot)
        assert app.screen.query_one(Prompt).is_open
        await pilot.press(*"-2s", "enter")
        await settle(pilot)
        assert shown_second(app) == 1


async def test_keys_that_the_app_itself_has_are_its_own_in_a_live_session() -> None:
    app, feed, clock = live_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await push(pilot, feed, clock, 0, 5)
        await pilot.press("8")
        await settle(pilot)
        await pilot.press("minus")
        await settle(pilot)
        assert app.current_mode == "fleet", "minus leads to the last view"


async def test_letters_that_are_written_are_no_keys_of_time() -> None:
    app, feed, clock = live_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await push(pilot, feed, clock, 0, 5)
        await pilot.press("T", "slash", *"g,L")
        await settle(pilot)
        assert isinstance(app.screen, FleetScreen)
        assert app.screen.filter_text == "g,L"
        assert shown_second(app) == 4


async def test_looking_at_the_past_allows_no_change() -> None:
    app, feed, clock = live_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await push(pilot, feed, clock, 0, 5)
        await pilot.press("ctrl+x")
        await settle(pilot)
        assert " RW" in title(app)
        await pilot.press("T")
        await settle(pilot)
        assert " RO" in title(app), "whoever goes back is read-only"
        await pilot.press("ctrl+x")
        await settle(pilot)
        assert " RO" in title(app)
        assert any("this is the past" in notice.message for notice in app._notifications)
        await pilot.press("2", "a")
        await settle(pilot)
        assert not isinstance(app.screen, ConfirmScreen)
        await pilot.press("L", "ctrl+x")
        await settle(pilot)
        assert " RW" in title(app)


async def test_before_the_first_snapshot_there_is_nothing_to_go_back_to() -> None:
    app, _feed, _clock = live_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("T")
        await settle(pilot)
        assert any("no moment to go back to" in notice.message for notice in app._notifications)
        app.run_command("time 50%")
        await settle(pilot)
        assert any("no moment to go to" in notice.message for notice in app._notifications)


async def test_a_session_can_be_recorded_and_the_recording_is_what_was_seen(tmp_path: Path) -> None:
    path = tmp_path / "session.rec"
    app, feed, clock = live_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await push(pilot, feed, clock, 0, 2)
        app.run_command(f"record {path}")
        await push(pilot, feed, clock, 2, 8)
        assert "◉ REC" in screen_text(app)
        app.run_command(f"record {path}2")
        await settle(pilot)
        assert any("being written already" in notice.message for notice in app._notifications)
        app.run_command("record")
        await settle(pilot)
        assert "◉ REC" not in screen_text(app)
        assert any("6 moments" in notice.message for notice in app._notifications)
        app.run_command("record")
        app.run_command(f"record {path}")
        await settle(pilot)
        assert any("is there already" in notice.message for notice in app._notifications)
    with open_recording(path) as recording:
        assert [recording.snapshot_at(at_s) for at_s in recording.times] == SNAPSHOTS[2:8]


async def test_a_recording_that_ends_by_itself_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("odctl.tui.time_travel.MAX_RECORDING_BYTES", 20_000)
    app, feed, clock = live_app()
    async with app.run_test(size=(80, 24)) as pilot:
        app.run_command(f"record {tmp_path / 'short.rec'}")
        await push(pilot, feed, clock, 0, 60)
        assert any("has reached 20,000 bytes" in notice.message for notice in app._notifications)
        assert "◉ REC" not in screen_text(app)
    with open_recording(tmp_path / "short.rec") as recording:
        assert len(recording.times) > 1


# --- a recording ------------------------------------------------------------------------------------------


@both_sizes
async def test_a_recording_opens_standing_at_its_beginning(recorded: Path, size: tuple[int, int]) -> None:
    app = replay(recorded)
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        assert app.snapshot == SNAPSHOTS[0]
        text = screen_text(app)
        for said in ("‖ REC", "1/60", "RO", "4 hosts", "● live"):
            assert said in text, said
        assert "s old" not in title(app), "ages are as they were then"
        bar = app.screen.query_one(ScrubBar)
        assert bar.size.height == 2
        assert bar.region.bottom < size[1], "above the line of keys"


@both_sizes
async def test_a_recording_plays_steps_and_scrubs(recorded: Path, size: tuple[int, int]) -> None:
    app = replay(recorded)
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        await pilot.press("space")
        app.play_on(10.0)
        await settle(pilot)
        assert app.snapshot == SNAPSHOTS[10]
        assert "▶ REC" in screen_text(app)
        await pilot.press("full_stop")
        await settle(pilot)
        assert app.snapshot == SNAPSHOTS[11]
        assert "‖ REC" in screen_text(app)
        await pilot.press("comma", "comma", "comma")
        await settle(pilot)
        assert app.snapshot == SNAPSHOTS[8]
        await pilot.press("L")
        await settle(pilot)
        assert app.snapshot == SNAPSHOTS[59]
        await pilot.press("g", *"+5s", "enter")
        await settle(pilot)
        assert app.snapshot == SNAPSHOTS[59]
        assert any("nearest one" in notice.message for notice in app._notifications)
        await pilot.press("g", *"50%", "enter")
        await settle(pilot)
        assert shown_second(app) == 29
        bar = app.screen.query_one(ScrubBar)
        assert bar._bar is not None
        await pilot.click(ScrubBar, offset=(bar._bar.bar_start, 0))
        await settle(pilot)
        assert shown_second(app) == 0
        await pilot.click(ScrubBar, offset=(bar._bar.bar_start + bar._bar.bar_width - 1, 0))
        await settle(pilot)
        assert shown_second(app) == 59
        await pilot.press("space")
        app.play_on(1000.0)
        await settle(pilot)
        assert shown_second(app) == 59
        assert "‖ REC" in screen_text(app), "it stands at its end"


@both_sizes
async def test_every_view_shows_a_recording(recorded: Path, size: tuple[int, int]) -> None:
    app = replay(recorded)
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        app.run_command("time +35s")
        await settle(pilot)
        assert isinstance(app.screen, FleetScreen)
        await pilot.press("home", "enter")
        await settle(pilot)
        assert isinstance(app.screen, HostScreen)
        assert "driver 570.148" in screen_text(app)
        await pilot.press("escape")
        for mode, said in (
            ("plans", "generation 3"),
            ("deployments", "57.5"),
            ("faults", "cuda:2 fell off the bus"),
            ("chat", "chat"),
            ("models", "this is a recording of lab"),
            ("logs", "this is a recording of lab"),
            ("learning", "this is a recording of lab"),
            ("probes", "h00"),
        ):
            app.action_mode(mode)
            await settle(pilot)
            text = screen_text(app)
            assert said in text, mode
            assert "‖ REC" in title(app), mode
            assert "36/60" in text, mode


async def test_a_recording_is_read_only_for_good_and_says_why(recorded: Path) -> None:
    app = replay(recorded)
    async with app.run_test(size=(140, 40)) as pilot:
        await settle(pilot)

        def said() -> list[str]:
            found = [notice.message for notice in app._notifications]
            app.clear_notifications()
            return found

        await pilot.press("ctrl+x")
        app.run_command("unlock")
        await settle(pilot)
        assert app.is_read_only
        assert any("this is a recording" in text for text in said())
        app.action_mode("plans")
        await settle(pilot)
        await pilot.press("a")
        await settle(pilot)
        assert not isinstance(app.screen, ConfirmScreen)
        assert any("this is a recording" in text for text in said())
        await pilot.press("e")
        await settle(pilot)
        assert any("this is a recording" in text for text in said())
        app.run_command("record other.rec")
        await settle(pilot)
        assert any("this is a recording" in text for text in said())
        app.action_mode("chat")
        await settle(pilot)
        assert isinstance(app.screen, ChatScreen)
        await pilot.press("i", "h", "i", "enter")
        await settle(pilot)
        assert "this is a recording of lab" in screen_text(app)
        # Below the screens: whatever asks for a fleet is refused.
        with pytest.raises(Exception, match="this is a recording of lab") as caught:
            await app._applier.preview(app.feed, frozen.plan())
        assert getattr(caught.value, "code", "") == "E123"


async def test_a_broken_moment_is_said_and_others_can_be_gone_to(recorded: Path) -> None:
    break_moment(recorded, 5)
    app = replay(recorded)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        app.run_command("time +5s")
        await settle(pilot)
        assert any("cannot be read" in notice.message for notice in app._notifications)
        app.run_command("time +30s")
        await settle(pilot)
        assert app.snapshot == SNAPSHOTS[35]


async def test_leaving_closes_the_recording(recorded: Path) -> None:
    recording = open_recording(recorded)
    app = replay_app(recording)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("q")
    assert recording._file.closed


async def test_a_recording_of_one_moment_is_shown(tmp_path: Path) -> None:
    writer = RecordingWriter(tmp_path / "one.rec", cluster="lab", started_at_s=T0, every_s=1.0, max_bytes=10**9)
    one = msgspec.structs.replace(SNAPSHOTS[0], hosts=())
    assert writer.write(one)
    writer.close()
    app = replay(tmp_path / "one.rec")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("space", "comma", "full_stop", "L")
        await settle(pilot)
        assert app.snapshot == one
        assert "1/1" in screen_text(app)
