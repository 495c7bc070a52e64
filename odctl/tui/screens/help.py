"""Keys and commands, read from the bindings that are live where help was asked for."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import ActiveBinding, Binding, BindingType
from textual.screen import ModalScreen

from odctl.tui.model.commands import COMMANDS
from odctl.tui.model.text import BLANK, Line, Span, fit, line
from odctl.tui.widgets.lines import LinesView

_GLYPHS = (
    ("● live, serving, linked", "ok"),
    ("▲ warning, stale", "warn"),
    ("✗ fault, lost, unreachable", "fault"),
    ("↻ healing, under way", "heal"),
    ("○ no data yet   — no value: the host page says why", "dim"),
)


class HelpScreen(ModalScreen[None]):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q", "dismiss", "Close", id="help.close"),
    ]

    def __init__(self, bindings: dict[str, ActiveBinding]) -> None:
        super().__init__()
        self._live = bindings

    def compose(self) -> ComposeResult:
        yield LinesView(id="help")

    def on_mount(self) -> None:
        self._show()
        self.query_one(LinesView).focus()

    def on_resize(self) -> None:
        self._show()

    def _show(self) -> None:
        self.query_one(LinesView).show(help_lines(self._live, self.app.get_key_display))


def help_lines(bindings: dict[str, ActiveBinding], display: object) -> list[Line]:
    """A line for each live binding of ours, which are those with an id, nearest to the focus first."""
    assert callable(display)
    by_action: dict[tuple[str, str], list[str]] = {}
    for active in bindings.values():
        binding = active.binding
        if not binding.id or not binding.description or binding.id.startswith("command_palette"):
            continue
        keys = by_action.setdefault((binding.action, binding.description), [])
        keys.append(str(display(binding)))
    lines = [line(Span(" KEYS", "title"))]
    for (_, description), keys in by_action.items():
        lines.append(line("  ", Span(fit(" ".join(dict.fromkeys(keys)), 14), "key"), f" {description}"))
    lines.append(line("  ", Span(fit("^p", 14), "key"), " Palette"))
    lines += [BLANK, line(Span(" COMMANDS", "title"), Span("  after `:`, a beginning is enough", "dim"))]
    for command in COMMANDS:
        argument = f"[{command.argument}]" if command.is_optional else command.argument
        usage = f":{command.name} {argument}".rstrip()
        lines.append(line("  ", Span(fit(usage, 22), "key"), f" {command.help}"))
    lines += [
        BLANK,
        line(Span(" FILTER", "title"), Span("  after `/`: all terms must hold", "dim")),
        line("  ", Span(fit("word  !word", 22), "key"), " regular expression; ! turns it round"),
        line("  ", Span(fit("cpu>50  ram<=80", 22), "key"), " a column against a figure"),
        line("  ", Span(fit("-l rack=a", 22), "key"), " a label of the inventory"),
        BLANK,
        line(Span(" GLYPHS", "title")),
    ]
    lines += [line(f"  {text}") for text, _ in _GLYPHS]
    return lines
