"""Whether this session may change the fleet: shown and switched here, enforced by the feed's guard."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.timer import Timer

from agent.errors import FleetError
from odctl.fleet import FleetSnapshot, WriteGuard
from odctl.tui.app_looks import AppLooks
from odctl.tui.feed import Feed, GuardedFeed
from odctl.tui.model.consent import name_to_type
from odctl.tui.model.keymap import Keymap
from odctl.tui.options import UiOptions
from odctl.tui.screens.frame import FrameScreen

UNLOCKED_S = 600.0


class AppLock(AppLooks):
    """Read-only until it is unlocked, and again ten minutes later."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+x", "toggle_lock", "Allow changes, or lock", id="app.unlock", show=False),
    ]

    def __init__(self, feed: Feed, *, options: UiOptions, keymap: Keymap) -> None:
        super().__init__(options=options, keymap=keymap)
        self.feed = feed
        self.guard = feed.guard if isinstance(feed, GuardedFeed) else WriteGuard()
        self.snapshot: FleetSnapshot | None = None
        self._relock: Timer | None = None

    def redraw(self) -> None:
        """Draw the current screen anew; the others draw when they come back."""
        # While the app leaves, the last snapshots come when its screens are gone.
        if self.screen_stack and isinstance(self.screen, FrameScreen):
            self.screen.redraw()

    @property
    def is_read_only(self) -> bool:
        """Whether changes are refused now, by the fleet itself (`odctl.fleet.guard`)."""
        return self.guard.is_locked

    def may_change(self) -> bool:
        """Whether changes are allowed now; where they are not, it says so and names the way out."""
        if self.is_read_only:
            said = "this session is read-only: ^x (or :unlock) allows changes for ten minutes"
            self.notify(said, title="RO", severity="warning")
        return not self.is_read_only

    def name_to_type(self, name: str, *, num_hosts: int) -> str:
        """The name that a dialog must have typed before an action on that many hosts; empty: a yes is enough."""
        fleet_hosts = len(self.snapshot.hosts) if self.snapshot is not None else 0
        return name_to_type(name, num_hosts=num_hosts, fleet_hosts=fleet_hosts)

    def action_toggle_lock(self) -> None:
        self.set_read_only(not self.is_read_only)

    def set_read_only(self, is_read_only: bool) -> None:
        """Unlocking lasts ten minutes. The guard keeps the time; the timer only draws that it is over."""
        if self._relock is not None:
            self._relock.stop()
            self._relock = None
        if is_read_only:
            self.guard.lock()
        else:
            try:
                self.guard.unlock(UNLOCKED_S)
            except FleetError as error:
                self.notify(str(error), title="RO", severity="warning")
                return
            self._relock = self.set_timer(UNLOCKED_S, self.redraw)
            self.notify("changes are allowed for ten minutes; ^x locks again", title="RW")
        self.redraw()
