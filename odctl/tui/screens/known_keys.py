"""Every binding of ours as the keymap file sees it: by id, and with those that are alive beside it."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

from textual.app import App
from textual.binding import Binding
from textual.dom import DOMNode
from textual.keys import KEY_ALIASES, KEY_DISPLAY_ALIASES, KEY_NAME_REPLACEMENTS, KEY_TO_UNICODE_NAME, Keys
from textual.screen import ModalScreen, Screen
from textual.widget import Widget

from odctl.tui.model.keymap import KnownBinding, KnownKeys
from odctl.tui.screens import import_screens
from odctl.tui.screens.frame import FrameScreen
from odctl.tui.screens.table import TableScreen
from odctl.tui.widgets.fleet_table import FleetTable

OURS = "odctl.tui."
_MODIFIERS = ("ctrl", "shift", "alt", "meta", "super", "hyper")
_SPOKEN = {"esc": "escape", "return": "enter", "del": "delete", "pgup": "pageup", "pgdn": "pagedown"}


def known_keys() -> KnownKeys:
    """Bindings of every class of ours. Imports those screens that have not been opened yet."""
    import_screens()
    classes = [found for found in _subclasses(DOMNode) if found.__module__.startswith(OURS)]
    bindings = {binding.id: binding for found in classes for binding in _own(found)}
    return KnownKeys(bindings=bindings, groups=tuple(_groups(classes)))


def normal_key(typed: str) -> str | None:
    """Textual's name of a key: `?` and `question_mark`, `^x` and `ctrl+x`, `esc`; None for what is no key."""
    if typed.startswith("^") and len(typed) > 1:
        typed = f"ctrl+{typed[1:]}"
    *modifiers, key = typed.split("+") if len(typed) > 1 else [typed]
    if any(modifier not in _MODIFIERS for modifier in modifiers) or not key:
        return None
    if len(key) > 1 or modifiers == ["ctrl"]:
        key = _SPOKEN.get(key.lower(), key.lower())
    if modifiers == ["ctrl"] and key == "space":
        return "ctrl+@"  # what terminals send for it
    if len(key) == 1:
        name = key if key.isalnum() or (modifiers and key == "@") else _name_of(key)
    else:
        name = key if key in _names() else ""
    return "+".join([*modifiers, name]) if name else None


def _name_of(character: str) -> str:
    name = unicodedata.name(character, "").lower().replace("-", "_").replace(" ", "_")
    return KEY_NAME_REPLACEMENTS.get(name, name)


def _names() -> frozenset[str]:
    """Names of keys that are longer than a character."""
    plain = {str(key.value) for key in Keys if "+" not in str(key.value) and "<" not in str(key.value)}
    # `ctrl-at` and the like are old spellings that no event has.
    plain = {name for name in plain if "-" not in name}
    signs = {_name_of(chr(code)) for code in range(0x21, 0x7F) if not chr(code).isalnum()}
    return frozenset(plain | signs | set(KEY_ALIASES) | set(KEY_DISPLAY_ALIASES) | set(KEY_TO_UNICODE_NAME))


def _subclasses(base: type[DOMNode]) -> Iterator[type[DOMNode]]:
    for found in base.__subclasses__():
        yield found
        yield from _subclasses(found)


def _own(found: type[DOMNode]) -> Iterator[KnownBinding]:
    """Bindings that a class itself declares."""
    for declared in vars(found).get("BINDINGS", []):
        if isinstance(declared, Binding) and declared.id:
            keys = tuple(binding.key for binding in Binding.make_bindings([declared]))
            yield KnownBinding(id=declared.id, keys=keys, description=declared.description)


def _ids(found: type[DOMNode]) -> frozenset[str]:
    """Ids of a class and of all that it inherits from."""
    return frozenset(binding.id for part in found.__mro__ if issubclass(part, DOMNode) for binding in _own(part))


def _groups(classes: list[type[DOMNode]]) -> Iterator[frozenset[str]]:
    """What is alive together: a screen with the app, and each widget with the screens that it stands on.

    A dialog shuts out the app's bindings. Of widgets other than the table it is only known that they stand on
    some screen, so they are held against what all screens have.
    """
    app = frozenset[str]().union(*(_ids(found) for found in classes if issubclass(found, App)))
    for found in classes:
        if issubclass(found, ModalScreen):
            yield _ids(found)
        elif issubclass(found, Screen):
            yield _ids(found) | app
            if issubclass(found, TableScreen):
                yield _ids(found) | _ids(FleetTable) | app
        elif issubclass(found, Widget):
            yield _ids(found) | _ids(FrameScreen) | app
