"""Time in a session: which moment the screens have, what can be gone back to, and a recording under way.

No Textual here. `write` may be called from another thread than the rest, and `read` where there is a recording.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec

from agent.errors import FleetError
from agent.facts.fault import Fault
from odctl.fleet import FleetSnapshot
from odctl.fleet.watch import TICK_S
from odctl.recording import Recording, RecordingWriter, SnapshotRing, Timeline
from odctl.recording.timeline import index_at
from odctl.tui.model import playback as model
from odctl.tui.model.playback import Playback
from odctl.tui.model.scrub import ScrubLine, keys_line, moment_spans, recording_spans, scrub_line, time_of
from odctl.tui.model.text import Line

MAX_RECORDING_BYTES = 1_000_000_000
"""A recording that is begun inside a session ends by itself there."""


class TimeTravel:
    """Over a ring of a live session, or over a recording."""

    def __init__(self, *, recording: Recording | None = None) -> None:
        self.recording = recording
        self.shown: FleetSnapshot | None = None
        """What the screens have."""
        self._ring = SnapshotRing(step_s=TICK_S)
        self.playback = model.of_recording(recording.times) if recording is not None else Playback()
        self._faults: Sequence[Fault] = ()
        self._writer: RecordingWriter | None = None
        self._notice = ""
        self._lock = threading.Lock()

    @property
    def timeline(self) -> Timeline:
        return self.recording if self.recording is not None else self._ring

    @property
    def times(self) -> Sequence[float]:
        return self.timeline.times

    @property
    def is_past(self) -> bool:
        """Whether what is shown is not the fleet as it is: nothing may be changed by the look of it."""
        return self.recording is not None or not self.playback.is_live

    # --- the moment that is shown -----------------------------------------------------------------------

    def take(self, snapshot: FleetSnapshot) -> bool:
        """A live snapshot came. False: another moment is shown, and stays."""
        self._ring.append(snapshot)
        self._faults = snapshot.faults
        if not self.playback.is_live:
            return False
        self.shown = snapshot
        return True

    def read(self) -> FleetSnapshot | None:
        """The snapshot of the moment that playback has come to. Raises FleetError where it cannot be read."""
        at_s, timeline = self.playback.at_s, self.timeline
        if self.recording is not None and not self._faults:
            self._faults = self.recording.snapshot_at(self.recording.times[-1]).faults
        if at_s is not None:
            return timeline.snapshot_at(at_s)
        return self._ring.latest

    @property
    def is_read(self) -> bool:
        """Whether the shown moment is the one that playback has come to."""
        at_s, times = self.playback.at_s, self.times
        if at_s is None:
            return self.shown is self._ring.latest
        return self.shown is not None and self.shown.taken_at_s == times[index_at(times, at_s)]

    def toggle(self) -> None:
        self.playback = model.toggled(self.playback, self.times)

    def pause(self) -> None:
        self.playback = model.paused(self.playback, self.times)

    def step(self, step: int) -> None:
        times = self.times
        at_s = self.playback.at_s
        index = index_at(times, at_s) if at_s is not None and times else len(times) - 1
        self.playback = model.stepped(self.playback, times, index=index, step=step)

    def change_speed(self, step: int) -> None:
        self.playback = model.with_speed(self.playback, step)

    def go_to(self, text: str) -> bool:
        """At a time as it was typed; False when it lies outside, and the nearest end is shown. Raises TimeError."""
        times = self.times
        at_s = self.playback.at_s if self.playback.at_s is not None else (times[-1] if times else 0.0)
        wanted_s = model.parse_time(text, times, at_s=at_s)
        self.playback = model.gone_to(self.playback, times, wanted_s)
        return times[0] - 1.0 <= wanted_s <= times[-1] + 1.0

    def go_to_cell(self, cell: int, width: int) -> None:
        """At the time under a cell of the bar."""
        if times := self.times:
            self.playback = model.gone_to(self.playback, times, time_of(cell, times, width))

    def go_to_end(self) -> None:
        self.playback = model.at_end(self.playback, self.times)

    def toggle_keys(self) -> None:
        """Whose the keys of time are: its own, or the screen's. In a live session it pauses first."""
        if self.playback.is_live:
            self.pause()
        else:
            self.playback = msgspec.structs.replace(self.playback, has_keys=not self.playback.has_keys)

    def advance(self, elapsed_s: float) -> None:
        self.playback = model.advanced(self.playback, self.times, elapsed_s, step_s=self.timeline.step_s)

    # --- what is drawn ----------------------------------------------------------------------------------

    def title_spans(self, *, now_s: float) -> Line:
        """In the place of "live"; nothing while that is what it is."""
        return moment_spans(self.playback, self.shown.taken_at_s if self.shown else None, now_s=now_s)

    def recording_spans(self) -> Line:
        writer = self._writer
        return recording_spans(writer.num_bytes) if writer is not None else ()

    def scrub_lines(self, width: int) -> tuple[ScrubLine, Line] | None:
        """The bar and what its keys are; None while the session is live."""
        if self.playback.is_live:
            return None
        bar = scrub_line(
            self.playback,
            self.times,
            self.shown,
            faults=self._faults,
            step_s=self.timeline.step_s,
            width=width,
        )
        return bar, keys_line(self.playback)

    # --- a recording under way --------------------------------------------------------------------------

    @property
    def recording_path(self) -> Path | None:
        return self._writer.path if self._writer is not None else None

    def start_recording(self, path: Path, *, cluster: str, now_s: float) -> None:
        """Write every snapshot from now on. Raises FleetError E101, E119, or E123 where there is no fleet."""
        with self._lock:
            if self._writer is not None:
                raise FleetError(
                    "E119", f"{self._writer.path} is being written already", hint=":record without a name ends it"
                )
            self._writer = RecordingWriter(
                path, cluster=cluster, started_at_s=now_s, every_s=TICK_S, max_bytes=MAX_RECORDING_BYTES
            )

    def stop_recording(self) -> str:
        """End the recording; the answer is what was written, empty when there was none."""
        with self._lock:
            writer, self._writer = self._writer, None
        if writer is None:
            return ""
        writer.close()
        return f"{writer.path}: {writer.num_frames:,} moments; `odctl replay {writer.path}` shows them"

    def write(self, snapshot: FleetSnapshot) -> None:
        """Add a snapshot to the recording under way. What ends it is told by `take_notice`."""
        with self._lock:
            writer = self._writer
            if writer is None:
                return
            try:
                if writer.write(snapshot):
                    return
                self._notice = f"{writer.path} has reached {MAX_RECORDING_BYTES:,} bytes: the recording has ended"
            except FleetError as error:
                self._notice = f"the recording has ended: {error}"
            writer.close()
            self._writer = None

    def take_notice(self) -> str:
        """Why a recording ended by itself; once."""
        notice, self._notice = self._notice, ""
        return notice
