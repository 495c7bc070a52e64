"""What the app does about time: it keeps the last minutes, stands still on demand, plays, and records.

Keys of time have priority only while time stands or plays: in a live session they are the screens'.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from textual import work
from textual.timer import Timer
from textual.widgets import Input

from agent.errors import FleetError
from odctl.fleet import FleetSnapshot
from odctl.fleet.clock import Clock
from odctl.recording import Recording
from odctl.tui.app_moving import AppMoving
from odctl.tui.model.playback import TimeError
from odctl.tui.screens.frame import FrameScreen
from odctl.tui.time_travel import TimeTravel

PLAY_TICK_S = 0.2
IS_A_RECORDING = "this is a recording: there is no fleet behind it that could be changed"


class TimeApp(AppMoving):
    """The part of the app that decides which moment `snapshot` is. Its keys are `screens.time_keys`."""

    clock: Clock
    time: TimeTravel
    steady_clock: Callable[[], float]
    _player: Timer | None = None
    _played_at: float = 0.0

    def set_up_time(self, recording: Recording | None, *, steady_clock: Callable[[], float] = monotonic) -> None:
        self.time = TimeTravel(recording=recording)
        self.steady_clock = steady_clock

    def set_read_only(self, is_read_only: bool) -> None:
        if is_read_only or not self.refuses_changes():
            super().set_read_only(is_read_only)

    def may_change(self) -> bool:
        return not self.refuses_changes() and super().may_change()

    def refuses_changes(self) -> bool:
        """True, and it is said why, where another moment than the present is shown."""
        if self.time.recording is not None:
            self.notify(IS_A_RECORDING, severity="warning")
        elif self.time.is_past:
            self.notify("this is the past: L goes back to the live fleet", severity="warning")
        return self.time.is_past

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keys of time are its own only where no dialog is open and nothing is being written."""
        if not action.startswith("time_"):
            return super().check_action(action, parameters)
        if not isinstance(self.screen, FrameScreen) or isinstance(self.screen.focused, Input):
            return False
        return action == "time_keys" or self.time.playback.has_keys

    # --- snapshots --------------------------------------------------------------------------------------

    def take_live(self, snapshot: FleetSnapshot) -> None:
        """A live snapshot came: show it, unless another moment is shown."""
        if self.time.take(snapshot):
            self.snapshot = snapshot
        if notice := self.time.take_notice():
            self.notify(notice, severity="warning", timeout=12)
        self.redraw()

    def show_moment(self) -> None:
        """Show the moment that playback has come to; the clock's hand moves at once, the screen when it is read."""
        self._keep_playing()
        self.redraw()
        self._read_moment()

    @work(exclusive=True, group="time")
    async def _read_moment(self) -> None:
        try:
            # A file is read beside the screen; what is in memory changes only here.
            is_file = self.time.recording is not None
            found = await asyncio.to_thread(self.time.read) if is_file else self.time.read()
        except FleetError as error:
            self.time.pause()
            self._keep_playing()
            self.notify(str(error), severity="error", timeout=12)
            return
        if found is not None:
            self.snapshot = self.time.shown = found
            self.redraw()

    def _keep_playing(self) -> None:
        """A timer runs while playback moves, and only then."""
        if self.time.playback.is_playing and self._player is None:
            self._played_at = self.steady_clock()
            self._player = self.set_interval(PLAY_TICK_S, self._play)
        elif not self.time.playback.is_playing and self._player is not None:
            self._player.stop()
            self._player = None

    def _play(self) -> None:
        """Time went on for the viewer. While a moment is still being read, it waits for that one."""
        now = self.steady_clock()
        elapsed_s, self._played_at = now - self._played_at, now
        if elapsed_s > 0 and self.time.is_read:
            self.play_on(elapsed_s)

    def play_on(self, elapsed_s: float) -> None:
        """So many seconds of the viewer's time further."""
        self.time.advance(elapsed_s)
        if not self.time.is_read or not self.time.playback.is_playing:
            self.show_moment()

    # --- keys and commands ------------------------------------------------------------------------------

    def action_time_keys(self) -> None:
        self._leave_present(self.time.toggle_keys)

    def action_time_toggle(self) -> None:
        self._leave_present(self.time.toggle)

    def action_time_step(self, step: int) -> None:
        self._leave_present(lambda: self.time.step(step))

    def action_time_speed(self, step: int) -> None:
        self._leave_present(lambda: self.time.change_speed(step))

    def action_time_ask(self) -> None:
        if isinstance(self.screen, FrameScreen):
            self.screen.open_prompt("time ")

    def action_time_end(self) -> None:
        self.time.go_to_end()
        self.show_moment()

    def seek_cell(self, cell: int, width: int) -> None:
        """The bar was clicked."""
        self._leave_present(lambda: self.time.go_to_cell(cell, width))

    def perform_time(self, command: str, argument: str) -> None:
        """`:pause`, `:live`, `:time TIME` and `:record FILE`."""
        match command:
            case "pause":
                self._leave_present(self.time.pause)
            case "live":
                self.action_time_end()
            case "time":
                self._go_to(argument)
            case "record":
                self._record(argument)
            case _:
                raise AssertionError(f"no command about time: {command}")

    def _leave_present(self, change: Callable[[], None]) -> None:
        """Change the moment that is shown. Whoever looks at the past may not change the present by it."""
        was_live = self.time.playback.is_live
        change()
        if was_live and not self.time.playback.is_live:
            self.set_read_only(True)
        if was_live and self.time.playback.is_live:
            self.notify("there is no moment to go back to yet")
        self.show_moment()

    def _go_to(self, text: str) -> None:
        def go() -> None:
            if not self.time.go_to(text):
                self.notify("there is no moment at that time: this is the nearest one", severity="warning")

        try:
            self._leave_present(go)
        except TimeError as error:
            self.notify(str(error), severity="warning")

    def _record(self, name: str) -> None:
        if self.time.recording is not None:
            self.notify(IS_A_RECORDING, severity="warning")
            return
        if self.guard.never:
            self.notify(f"{self.guard.never}: it writes no files either", severity="warning")
            return
        if not name:
            self.notify(self.time.stop_recording() or "nothing is being recorded: :record FILE begins")
            self.redraw()
            return
        path = Path(name).expanduser()
        try:
            self.time.start_recording(path, cluster=self.feed.cluster, now_s=self.clock.now_s())
        except FleetError as error:
            self.notify(str(error), title="record", severity="error")
            return
        self.notify(f"recording into {path}; :record without a name ends it", title="record")
        self.redraw()
