"""What befell the fleet and what was done about it: journals of agents, folded into lanes and steps.

Pure: events in, values out. No I/O, no clock. `kinds` alone says which events matter; others are passed over, so
that an agent of a later release may write more than this one reads.
"""

from __future__ import annotations

from odctl.timeline.fold import fold
from odctl.timeline.journal import HostJournal
from odctl.timeline.kinds import KINDS
from odctl.timeline.story import Lane, Silence, Step, Story, Timeline

__all__ = ["KINDS", "HostJournal", "Lane", "Silence", "Step", "Story", "Timeline", "fold"]
