"""Help: the keys that are alive where it was asked for, nearest first; then commands, filters and glyphs."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from odctl.tui.model.commands import COMMANDS
from odctl.tui.model.marks import MARKED
from odctl.tui.model.text import BLANK, Line, Span, fit, line, wrap

KEY_WIDTH = 14
USAGE_WIDTH = 22
GLYPHS = (
    ("● live, serving, linked", "ok"),
    ("▲ warning, stale", "warn"),
    ("✗ fault, lost, unreachable", "fault"),
    ("↻ healing, under way", "heal"),
    ("○ no data yet   — no value: the host page says why", "dim"),
    (f"{MARKED} marked", "key"),
)
FILTERS = (
    ("word  !word", "a part of the row, or a regular expression; ! turns any term round"),
    ("cpu>50  ram<=80", "a column against a figure; percentages are 0 to 100"),
    ("state=stale", "a column's text"),
    ("rack=r03", "a label of the inventory (a column of that name wins; -l rack=r03 does not ask)"),
)


class HelpKey(msgspec.Struct, frozen=True, kw_only=True):
    """One binding that is alive: its keys for people, what it does, and its id for the keymap file."""

    keys: tuple[str, ...]
    description: str
    id: str


class HelpGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Bindings of one place: the thing with the focus, the screen, or the whole app."""

    title: str
    said: str = ""
    keys: tuple[HelpKey, ...]


def help_lines(
    groups: Sequence[HelpGroup], *, width: int, keymap_path: str = "", keymap_problems: Sequence[str] = ()
) -> tuple[Line, ...]:
    """The page, in lines of at most `width` cells."""
    lines: list[Line] = []
    for group in groups:
        lines.append(line(Span(f" {group.title}", "title")))
        lines += [line(Span(f"  {part}", "dim")) for part in wrap(group.said, width - 3) if group.said]
        lines += [_key_line(key, width) for key in group.keys]
        lines.append(BLANK)
    lines += _commands(width)
    lines += [BLANK, line(Span(" FILTER", "title"), Span("  after `/`: all terms must hold", "dim"))]
    for usage, said in FILTERS:
        lines += _entry(usage, said, USAGE_WIDTH, width)
    lines += [BLANK, line(Span(" GLYPHS", "title"))]
    lines += [line(f"  {text}") for text, _ in GLYPHS]
    if keymap_path:
        lines += [BLANK, line(Span(" KEYMAP", "title"), Span('  under [keys]: "app.help" = "f1"', "dim"))]
        lines += [line(f"  {part}") for part in wrap(keymap_path, width - 3)]
        for problem in keymap_problems:
            lines += [line(Span(f"  {part}", "warn")) for part in wrap(f"▲ {problem}", width - 3)]
    return tuple(lines)


def _commands(width: int) -> list[Line]:
    lines = [line(Span(" COMMANDS", "title"), Span("  after `:`, a beginning is enough; tab completes", "dim"))]
    for command in COMMANDS:
        argument = f"[{command.argument}]" if command.is_optional else command.argument
        said = f"{command.help} (not while RO)" if command.changes else command.help
        lines += _entry(f":{command.name} {argument}".rstrip(), said, USAGE_WIDTH, width)
    return lines


def _key_line(key: HelpKey, width: int) -> Line:
    """Keys, what they do, and at the right the id, where there is room for it."""
    left = line("  ", Span(fit(" ".join(key.keys), KEY_WIDTH), "key"), f" {key.description}")
    used = 2 + KEY_WIDTH + 1 + len(key.description)
    if not key.id or used + 2 + len(key.id) + 1 > width:
        return left
    return (*left, Span(" " * (width - used - len(key.id) - 1)), Span(key.id, "dim"))


def _entry(usage: str, said: str, usage_width: int, width: int) -> list[Line]:
    parts = wrap(said, max(8, width - usage_width - 4))
    first = line("  ", Span(fit(usage, usage_width), "key"), f" {parts[0]}")
    return [first, *(line(" " * (usage_width + 3) + part) for part in parts[1:])]
