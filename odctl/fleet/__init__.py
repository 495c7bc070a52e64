"""Many agents as one fleet: requests to one or all of them, and one live snapshot of what they say.

No Textual here: the terminal UI and the scripted verbs use the same room.
"""

from __future__ import annotations

from odctl.fleet.connection import Fleet, HostAccess, open_fleet
from odctl.fleet.guard import WriteGuard
from odctl.fleet.snapshot import FleetSnapshot, HostView
from odctl.fleet.watch import watch_fleet

__all__ = ["Fleet", "FleetSnapshot", "HostAccess", "HostView", "WriteGuard", "open_fleet", "watch_fleet"]
