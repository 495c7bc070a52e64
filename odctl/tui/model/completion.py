"""What a line at the bottom may become: commands, names, filters and files. No I/O: files are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from odctl.tui.model.commands import COMMANDS, Command, command_named
from odctl.tui.model.text import Line, Span, fit_line, line, line_width

MAX_CANDIDATES = 64
"""More are not offered: nobody reads on, and a fleet has ten thousand names."""

FindFiles = Callable[[str], Sequence[str]]
"""Paths that begin with what was typed."""


class Vocabulary(msgspec.Struct, frozen=True, kw_only=True):
    """The names of the moment. `columns` are by command, those of the shown table under the empty name;
    `labels` are `key=value` pairs of the inventory.
    """

    hosts: tuple[str, ...] = ()
    deployments: tuple[str, ...] = ()
    plans: tuple[str, ...] = ()
    columns: Mapping[str, tuple[str, ...]] = {}
    figures: frozenset[str] = frozenset()
    """Columns that are compared with a number; the others have a text."""
    labels: tuple[str, ...] = ()
    themes: tuple[str, ...] = ()


def no_files(typed: str) -> Sequence[str]:  # noqa: ARG001 - a FindFiles
    return ()


def command_candidates(text: str, words: Vocabulary, files: FindFiles = no_files) -> tuple[str, ...]:
    """Whole command lines that `text` is the beginning of, the likeliest first."""
    name, space, argument = text.lstrip().partition(" ")
    if not space:
        return _first(_beginning(name.lower(), _command_lines()))
    command = command_named(name.lower())
    if command is None:
        return ()
    head = f"{name} "
    return _first([head + candidate for candidate in _arguments(command, argument, words, files)])


def filter_candidates(text: str, words: Vocabulary, table: str = "") -> tuple[str, ...]:
    """Whole filters that `text` is the beginning of, over the table that `table` names in `words.columns`."""
    before, space, word = text.rpartition(" ")
    sign = "!" if word.startswith("!") else ""
    typed = word.removeprefix("!")
    if not typed and text:
        return ()
    columns = words.columns.get(table, ())
    keys = list(dict.fromkeys(pair.partition("=")[0] + "=" for pair in words.labels))
    known = [f"{column}{'>' if column in words.figures else '='}" for column in columns] + keys
    if "=" in typed:
        known = list(words.labels)
    elif typed:
        known += words.hosts
    return _first([f"{before}{space}{sign}{candidate}" for candidate in _beginning(typed, known)])


def candidate_line(candidates: Sequence[str], typed: str, chosen: int | None, *, width: int) -> Line:
    """The candidates in one line, without what all of them begin with; the chosen one first and marked."""
    if not candidates:
        return line(Span(" nothing known begins so", "dim")) if typed.strip() else ()
    head = typed.rpartition(" ")[0]
    spans: list[Span] = [Span(" ")]
    first = chosen or 0
    for index, candidate in enumerate(candidates[first:], start=first):
        shown = candidate[len(head) :].strip() if candidate.startswith(head) else candidate
        spans += [Span(shown, "key" if index == chosen else "dim"), Span("  ")]
        if line_width(tuple(spans)) > width:
            break
    return fit_line(tuple(spans), width)


def _command_lines() -> list[str]:
    lines = [command.name + (" " if command.argument else "") for command in COMMANDS]
    return lines + [alias + (" " if command.argument else "") for command in COMMANDS for alias in command.aliases]


def _arguments(command: Command, argument: str, words: Vocabulary, files: FindFiles) -> Sequence[str]:
    match command.takes:
        case "":
            return ()
        case "filter":
            return filter_candidates(argument, words, command.name)
        case "hosts":
            return _beginning(argument, words.hosts)
        case "deployments":
            return _beginning(argument, words.deployments)
        case "plans":
            return [*_beginning(argument, words.plans), *files(argument)]
        case "columns":
            return _beginning(argument, words.columns.get("", ()))
        case "themes":
            return _beginning(argument, words.themes)


def _beginning(typed: str, known: Sequence[str]) -> list[str]:
    """Those that begin with what was typed, whatever the case, and are longer."""
    low = typed.lower()
    return [name for name in known if name.lower().startswith(low) and name != typed]


def _first(candidates: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(candidates))[:MAX_CANDIDATES]
