"""How the app looks and which keys it has: themes, `--ascii`, NO_COLOR, the keymap file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

from textual import events, on
from textual.app import App
from textual.binding import Binding
from textual.filter import LineFilter
from textual.theme import BUILTIN_THEMES

from agent.documents import closest
from agent.errors import FleetError
from odctl.tui.keymap_file import keymap_path, load_keymap
from odctl.tui.model.keymap import Keymap, problem_text
from odctl.tui.model.plain_ascii import ascii_text
from odctl.tui.options import UiOptions
from odctl.tui.screens.known_keys import known_keys, normal_key
from odctl.tui.widgets import themes
from odctl.tui.widgets.ascii_filter import AsciiFilter
from odctl.tui.widgets.paint import use_colours

Severity = Literal["information", "warning", "error"]
KEYMAP_NOTICE_S = 20.0


class AppLooks(App[None]):
    """An app with our themes. Textual is told of NO_COLOR before it makes its colours, hence by the constructor."""

    def __init__(self, *, options: UiOptions, keymap: Keymap) -> None:
        self.options = options
        self.user_keymap = keymap
        self.has_no_color = os.environ.get("NO_COLOR") is not None
        self._ascii_filter = AsciiFilter(enabled=options.is_ascii)
        super().__init__(ansi_color=True if self.has_no_color else None)
        for theme in themes.THEMES:
            self.register_theme(theme)
        self.theme = themes.NO_COLOR if self.has_no_color else options.theme or themes.DEFAULT

    def use_looks(self) -> None:
        """Once there is a screen: tones of the theme, keys of the user."""
        use_colours(themes.colours_of(self.current_theme))
        self.set_keymap(dict(self.user_keymap.keys))
        self.screen.refresh_bindings()  # of an app that is just being mounted, nobody else tells the line of keys
        if self.user_keymap.problems:
            text = "\n".join(problem_text(problem) for problem in self.user_keymap.problems)
            title = "left out of the keymap file"
            self.notify(text, title=title, severity="error", timeout=KEYMAP_NOTICE_S)

    def watch_theme(self) -> None:
        """Tones follow the theme, on every screen: the hidden ones are not painted anew by themselves."""
        use_colours(themes.colours_of(self.current_theme))
        for stack in self._screen_stacks.values():
            for widget in (widget for screen in stack for widget in screen.walk_children()):
                widget.notify_style_update()
                widget.refresh()

    def set_theme(self, name: str) -> None:
        """Use a theme by name; without one, let it be chosen."""
        if self.has_no_color:
            self.notify("NO_COLOR is set: no theme has colours", severity="warning")
        elif not name:
            self.action_change_theme()
        elif name in self.available_themes:
            self.theme = name
        else:
            self.notify(f"no theme `{name}`: {', '.join(sorted(self.available_themes))}", severity="warning")

    def notify(
        self,
        message: str,
        *,
        title: str = "",
        severity: Severity = "information",
        timeout: float | None = None,
        markup: bool = False,  # noqa: ARG002 - a host's words may have brackets: none of it is ever markup
    ) -> None:
        super().notify(message, title=title, severity=severity, timeout=timeout, markup=False)

    def action_help_quit(self) -> None:
        self.notify("q (or :quit) leaves; what is deployed stays")

    @on(events.DeliveryComplete)
    def _tell_where(self, event: events.DeliveryComplete) -> None:
        """As Textual does, but for its markup, which `notify` shows as it is."""
        if event.name != "screenshot":
            return
        event.prevent_default()
        self.notify(f"saved to {event.path}" if event.path is not None else "saved", title="Screenshot")

    def get_line_filters(self) -> Sequence[LineFilter]:
        found = super().get_line_filters()
        return [*found, self._ascii_filter] if self._ascii_filter.enabled else found

    def get_key_display(self, binding: Binding) -> str:
        if self.options.is_ascii and binding.key == "enter":
            return "enter"
        shown = super().get_key_display(binding)
        return ascii_text(shown) if self.options.is_ascii else shown


def user_keymap() -> Keymap:
    """The keymap file of whoever runs this, with its problems."""
    return load_keymap(keymap_path(), read_known=known_keys, normal_key=normal_key)


def check_theme(name: str) -> None:
    """Raises FleetError E109 for a theme that there is not; empty is the default one."""
    known = sorted({*BUILTIN_THEMES, *(theme.name for theme in themes.THEMES)})
    if name and name not in known:
        raise FleetError("E109", f"no theme `{name}`", hint=closest(name, known) or f"there are {', '.join(known)}")
