"""A fleet's snapshots kept: in a file that can be read after a crash, or the last minutes of them in memory.

What is kept is the very `FleetSnapshot` that screens draw, so that every screen can draw it again.
"""

from __future__ import annotations

from odctl.recording.reader import Recording, open_recording
from odctl.recording.ring import SnapshotRing
from odctl.recording.timeline import Timeline
from odctl.recording.writer import RecordingWriter

__all__ = ["Recording", "RecordingWriter", "SnapshotRing", "Timeline", "open_recording"]
