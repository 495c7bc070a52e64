"""Keys and commands, read from the bindings that are live where help was asked for: the focused widget's first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import ActiveBinding, Binding, BindingType
from textual.dom import DOMNode
from textual.screen import ModalScreen, Screen
from textual.widget import Widget

from odctl.tui.model.help_page import HelpGroup, HelpKey, help_lines
from odctl.tui.widgets.lines import LinesView

KeyDisplay = Callable[[Binding], str]


class HelpScreen(ModalScreen[None]):
    DEFAULT_CSS = """
    HelpScreen { align: center middle; }
    HelpScreen #help { width: 76; max-width: 100%; height: 90%; border: round $primary; background: $surface; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,f1,q", "dismiss", "Close", id="help.close"),
    ]

    def __init__(
        self, groups: Sequence[HelpGroup], *, keymap_path: str = "", keymap_problems: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self._groups = groups
        self._keymap_path = keymap_path
        self._keymap_problems = keymap_problems

    def compose(self) -> ComposeResult:
        yield LinesView(id="help")

    def on_mount(self) -> None:
        self.query_one(LinesView).focus()
        self.call_after_refresh(self._show)

    def on_resize(self) -> None:
        self.call_after_refresh(self._show)

    def _show(self) -> None:
        page = self.query_one(LinesView)
        page.show(
            help_lines(
                self._groups,
                width=page.content_width,
                keymap_path=self._keymap_path,
                keymap_problems=self._keymap_problems,
            )
        )


def help_groups(screen: Screen[object], display: KeyDisplay) -> tuple[HelpGroup, ...]:
    """Live bindings by where they belong: the focus and what is around it, the screen, the app."""
    by_node: dict[DOMNode, list[ActiveBinding]] = {}
    for active in screen.active_bindings.values():
        by_node.setdefault(active.node, []).append(active)
    groups = []
    for node, found in by_node.items():
        # Of a widget of ours all keys have an id; what it inherits without one says nothing of it.
        is_foreign = node is screen.focused and not type(node).__module__.startswith("odctl.")
        keys = _keys(found, display, is_foreign=is_foreign)
        if keys:
            groups.append(HelpGroup(title=_title(node, screen), said=_said(node), keys=keys))
    return tuple(groups)


def _keys(found: Sequence[ActiveBinding], display: KeyDisplay, *, is_foreign: bool) -> tuple[HelpKey, ...]:
    """A line for each action: ours have an id; of the toolkit's own those of a focused field or button are told."""
    shown: dict[tuple[str, str], HelpKey] = {}
    for active in found:
        binding = active.binding
        is_ours = bool(binding.id) and not (binding.id or "").startswith("command_palette")
        if not binding.description or not (is_ours or is_foreign):
            continue
        action = (binding.action, binding.description)
        before = shown[action].keys if action in shown else ()
        keys = tuple(dict.fromkeys((*before, display(binding))))
        shown[action] = HelpKey(keys=keys, description=binding.description, id=binding.id or "")
    return tuple(shown.values())


def _title(node: DOMNode, screen: Screen[object]) -> str:
    if node is screen:
        return "THIS VIEW"
    if isinstance(node, Widget):
        return "HERE, where the focus is" if node is screen.focused else "AROUND IT"
    return "EVERYWHERE"


def _said(node: DOMNode) -> str:
    said = getattr(node, "HELP", None)
    return said if isinstance(said, str) else ""
