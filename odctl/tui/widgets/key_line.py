"""The line of keys at the bottom of a screen: a click on one presses it, the wheel moves to those out of sight.

Textual's Footer is a widget for each key, all of them taken away and made anew whenever the focus moves: that took
0.2 of the 0.4 s of CPU from the app's start to its first paint.
"""

from __future__ import annotations

from textual import events
from textual.screen import Screen

from odctl.tui.model.key_line import ShownKey, key_at, key_line, last_first
from odctl.tui.widgets.lines import LinesBar


class KeyLine(LinesBar):
    DEFAULT_CSS = "KeyLine { dock: bottom; height: 1; background: $panel; }"

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self.keys: tuple[ShownKey, ...] = ()
        self._first = 0
        self._is_due = False

    def on_mount(self) -> None:
        self.screen.bindings_updated_signal.subscribe(self, self._bindings_changed)

    def _bindings_changed(self, screen: Screen[object]) -> None:
        """The focus moved, or what may be pressed. This comes several times in a row."""
        if self.app.app_focus and screen is self.screen and not self._is_due:
            self._is_due = True
            self.call_after_refresh(self._read_keys)

    def _read_keys(self) -> None:
        self._is_due = False
        if not self.is_attached:
            return
        keys: dict[str, ShownKey] = {}
        for _, binding, is_enabled, tooltip in self.screen.active_bindings.values():
            if binding.show and binding.action not in keys:
                label = self.app.get_key_display(binding)
                keys[binding.action] = ShownKey(binding.key, label, binding.description, is_enabled, tooltip)
        self.keys = tuple(keys.values())
        self._draw()

    def on_resize(self) -> None:
        self._draw()

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        self._move(1, event)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        self._move(-1, event)

    def on_mouse_move(self, event: events.MouseMove) -> None:
        key = key_at(self.keys, event.x, first=self._first)
        self.tooltip = key.tooltip or None if key is not None else None

    def on_click(self, event: events.Click) -> None:
        key = key_at(self.keys, event.x, first=self._first)
        if key is None:
            return
        if key.is_enabled:
            self.app.simulate_key(key.key)
        else:
            self.app.bell()

    def _move(self, by: int, event: events.Event) -> None:
        event.stop()
        self._first += by
        self._draw()

    def _draw(self) -> None:
        self._first = max(0, min(self._first, last_first(self.keys, width=self.size.width)))
        self.show([key_line(self.keys, width=self.size.width, first=self._first)])
