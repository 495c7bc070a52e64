"""A keymap file: other keys for bindings, by their ids. What is wrong in it is told at its place, and only that
line is left out. No I/O.

    [keys]
    "app.help" = "f1"
    "table.down" = ["f8", "down"]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from agent.documents import (
    CONTRADICTION,
    NOT_ALLOWED,
    UNKNOWN_KEY,
    WRONG_TYPE,
    Document,
    DocumentError,
    KeyPath,
    Problem,
    closest,
    parse_document,
)

NormalKey = Callable[[str], str | None]
"""The toolkit's name of a key as typed (`?` is `question_mark`); None where there is no such key."""


class KnownBinding(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    keys: tuple[str, ...]
    description: str


class KnownKeys(msgspec.Struct, frozen=True, kw_only=True):
    """Every binding by id, and the ids that can be alive at the same time, a set for each place of focus."""

    bindings: Mapping[str, KnownBinding]
    groups: tuple[frozenset[str], ...]


class Keymap(msgspec.Struct, frozen=True, kw_only=True):
    """`keys` are comma-separated keys by binding id, as the toolkit wants them."""

    path: str = ""
    keys: Mapping[str, str] = {}
    problems: tuple[Problem, ...] = ()


class _Wish(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    keys: tuple[str, ...]
    place: KeyPath


def read_keymap(text: str, *, path: str, known: KnownKeys, normal_key: NormalKey) -> Keymap:
    """The keymap of a file's text: what is sound in it, and every problem of the rest."""
    try:
        document = parse_document(text, file=path)
    except DocumentError as error:
        return Keymap(path=path, problems=error.problems)
    problems = [
        document.problem(UNKNOWN_KEY, f"unknown table `{name}`", (name,), of="key", hint="keys stand under [keys]")
        for name in document.data
        if name != "keys"
    ]
    table = document.data.get("keys", {})
    wishes: list[_Wish] = []
    if isinstance(table, dict):
        for place, value in _entries(("keys",), table):
            found = _wish(document, place, value, known, normal_key)
            if isinstance(found, Problem):
                problems.append(found)
            else:
                wishes.append(found)
    else:
        problems.append(document.problem(WRONG_TYPE, "`keys` is a table", ("keys",), hint="write [keys], then ids"))
    wishes, clashes = _without_clashes(document, wishes, known)
    order = sorted([*problems, *clashes], key=lambda problem: problem.span.line)
    return Keymap(path=path, keys={wish.id: ",".join(wish.keys) for wish in wishes}, problems=tuple(order))


def problem_text(problem: Problem) -> str:
    """`keymap.toml:3: unknown binding `app.hepl`: did you mean `app.help`?`: place, trouble and way out."""
    way_out = f": {problem.hint}" if problem.hint else ""
    return f"{problem.file}:{problem.span.line}: {problem.message}{way_out}"


def _entries(above: KeyPath, table: Mapping[str, Any]) -> Iterator[tuple[KeyPath, Any]]:
    """Values with their paths. `app.help = "f1"` without quotes is a table in TOML, and means the same."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _entries((*above, name), value)
        else:
            yield (*above, name), value


def _wish(
    document: Document, place: KeyPath, value: Any, known: KnownKeys, normal_key: NormalKey
) -> _Wish | Problem:
    binding_id = ".".join(str(part) for part in place[1:])
    if binding_id not in known.bindings:
        near = closest(binding_id, known.bindings) or ":help lists the ids"
        return document.problem(UNKNOWN_KEY, f"unknown binding `{binding_id}`", place, of="key", hint=near)
    typed = value if isinstance(value, list) else str(value).split(",") if isinstance(value, str) else None
    if typed is None or not all(isinstance(key, str) for key in typed):
        return document.problem(
            WRONG_TYPE, f"the keys of `{binding_id}` are a text or a list of texts", place, hint='such as "f1"'
        )
    keys = []
    for written in typed:
        key = normal_key(written.strip()) if written.strip() else None
        if key is None:
            named = f"`{written.strip()}` is no key" if written.strip() else f"`{binding_id}` has no key"
            return document.problem(NOT_ALLOWED, named, place, hint='such as "f1", "ctrl+g", "?" or "space"')
        keys.append(key)
    if not keys:
        return document.problem(NOT_ALLOWED, f"`{binding_id}` has no key", place, hint="leave the line out")
    return _Wish(id=binding_id, keys=tuple(dict.fromkeys(keys)), place=place)


def _without_clashes(
    document: Document, wishes: list[_Wish], known: KnownKeys
) -> tuple[list[_Wish], list[Problem]]:
    """Wishes that take no key from another binding. Bindings may change their keys with each other.

    A wish that is left out keeps its old keys, which may be another wish's new ones: so again, until all is well.
    """
    problems: list[Problem] = []
    while True:
        found = _first_clash(wishes, known)
        if found is None:
            return wishes, problems
        wish, key, other = found
        problems.append(
            document.problem(
                CONTRADICTION,
                f"`{wish.id}` = `{key}`: that key does `{other}` ({known.bindings[other].description})",
                wish.place,
                hint=f"choose another key, or give `{other}` another one too",
            )
        )
        wishes = [kept for kept in wishes if kept.id != wish.id]


def _first_clash(wishes: Sequence[_Wish], known: KnownKeys) -> tuple[_Wish, str, str] | None:
    """The last wish that takes a key away, with that key and the binding that had it.

    The last: of two that want the same key, the earlier line has it.
    """
    keys = {name: binding.keys for name, binding in known.bindings.items()}
    keys |= {wish.id: wish.keys for wish in wishes}
    for wish in reversed(wishes):
        beside = {name for group in known.groups if wish.id in group for name in group} - {wish.id}
        # A key that it has anyhow takes nothing away: screens shade each other's keys on purpose.
        for key in (key for key in wish.keys if key not in known.bindings[wish.id].keys):
            other = next((name for name in sorted(beside) if key in keys[name]), None)
            if other is not None:
                return wish, key, other
    return None
