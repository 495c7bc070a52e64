"""Moving about: the history of views, jumping, and help."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import Binding, BindingType

from odctl.tui import screens
from odctl.tui.app_lock import AppLock
from odctl.tui.feed import Feed
from odctl.tui.model.frame import MODES as TABS
from odctl.tui.model.jump import JumpTarget, lettered
from odctl.tui.model.keymap import Keymap, problem_text
from odctl.tui.model.view_history import ViewHistory
from odctl.tui.options import UiOptions
from odctl.tui.screens.frame import FrameScreen
from odctl.tui.screens.time_keys import TIME_KEYS
from odctl.tui.widgets.tabs import TabsBar

GOING_S = 0.5
"""How long a step in the history of views may take to show; then what is on the screen is where it led."""


class AppMoving(AppLock):
    BINDINGS: ClassVar[list[BindingType]] = [
        *TIME_KEYS,
        Binding("minus", "last_view", "Last view", key_display="-", id="app.last_view", show=False),
        Binding("left_square_bracket", "view(-1)", "View before", key_display="[", id="app.view_back", show=False),
        Binding("right_square_bracket", "view(1)", "View after", key_display="]", id="app.view_on", show=False),
        Binding("ctrl+o", "jump", "Jump", id="app.jump", show=False),
        Binding("ctrl+p", "command_palette", "Palette", id="app.palette", show=False),
        Binding("question_mark,f1", "help", "Help", key_display="?", id="app.help"),
    ]

    def __init__(self, feed: Feed, *, options: UiOptions, keymap: Keymap) -> None:
        super().__init__(feed, options=options, keymap=keymap)
        self.views = ViewHistory()

    def run_command(self, text: str) -> None:
        """What was typed after `:`."""
        raise NotImplementedError

    def action_mode(self, mode: str) -> None:
        """Go to a view; its own number again leads back to its first screen."""
        if mode == self.current_mode:
            is_above = len(self.screen_stack) > 1
            if is_above and isinstance(self.screen, FrameScreen) and not self.screen.may_leave():
                return
            while len(self.screen_stack) > 1:
                self.pop_screen()
            return
        self.switch_mode(mode)

    def go_to(self, mode: str) -> None:
        """The first screen of a mode, whatever stands above it."""
        if mode != self.current_mode:
            self.action_mode(mode)
        self._to_first_screen()

    def _to_first_screen(self) -> None:
        """The first screen of the mode, as far as nothing would be lost on the way."""
        while len(self.screen_stack) > 1:
            if isinstance(self.screen, FrameScreen) and self.screen.leave_question("Leave") is not None:
                return
            self.pop_screen()

    def action_last_view(self) -> None:
        if address := self.views.last():
            self._show_view(address)

    def action_view(self, step: int) -> None:
        """To the view before or after this one in the order of visits."""
        address = self.views.back() if step < 0 else self.views.forward()
        if address:
            self._show_view(address)
        else:
            self.notify(f"there is no view {'before' if step < 0 else 'after'} this one")

    def _show_view(self, address: str) -> None:
        """Show again what a command line had shown."""
        self.run_command(address)
        self.call_after_refresh(self._focus_body)
        self.set_timer(GOING_S, self._arrive)

    def _arrive(self) -> None:
        self.views.arrived()
        self.redraw()

    def hold_views(self) -> None:
        """From here until all that has been asked for is on the screen, nothing that is there is a view."""
        self.views.hold()
        self.call_after_refresh(self._release_views)

    def _release_views(self) -> None:
        self.views.release()
        self.redraw()

    def _focus_body(self) -> None:
        """Keys go on to be commands: a view that takes text when it is chosen must not take them."""
        if isinstance(self.screen, FrameScreen):
            self.screen.focus_body()

    def action_jump(self) -> None:
        """Letters over what can have the focus, and the tabs by their numbers."""
        if not isinstance(self.screen, FrameScreen):
            return
        tabs = self.screen.query_one(TabsBar)
        places = {
            (widget.region.x, widget.region.y): widget for widget in self.screen.focus_chain if widget.region.area
        }
        targets = lettered(list(places))
        widgets = {target.letter: places[target.x, target.y] for target in targets}
        modes = {str(number): mode for number, (mode, _) in enumerate(TABS, start=1)}
        digits = [
            JumpTarget(digit, tabs.region.x + tabs.place_of(mode), tabs.region.y) for digit, mode in modes.items()
        ]

        def go(letter: str | None) -> None:
            if letter in widgets:
                widgets[letter].focus()
            elif letter in modes:
                self.action_mode(modes[letter])

        self.push_screen(screens.jump.JumpScreen([*targets, *digits]), go)

    def action_help(self) -> None:
        groups = screens.help.help_groups(self.screen, self.get_key_display)
        problems = [problem_text(problem) for problem in self.user_keymap.problems]
        page = screens.help.HelpScreen(groups, keymap_path=self.user_keymap.path, keymap_problems=problems)
        self.push_screen(page)
