"""What colour each tone has under which theme. Glyph and word tell a state too; a colour never does alone."""

from __future__ import annotations

from collections.abc import Mapping

PREFIX = "tone-"
"""A theme names a tone's colour in the variable `tone-ok`, `tone-warn` and so on."""

DARK: Mapping[str, str] = {
    "key": "#56b4e9",
    "ok": "#009e73",
    "warn": "#e69f00",
    "fault": "#ff6a3d",
    "heal": "#56b4e9",
    "bar": "#56b4e9",
    "kv": "#cc79a7",
    "activation": "#f0e442",
}
"""Okabe and Ito's, the vermilion lighter: on a dark grey it would be read with effort."""
LIGHT: Mapping[str, str] = {
    "key": "#0072b2",
    "ok": "#00684b",
    "warn": "#8a5d00",
    "fault": "#b03a00",
    "heal": "#0072b2",
    "bar": "#0072b2",
    "kv": "#9b3d75",
    "activation": "#7a7000",
}
"""The same hues, dark enough for a white page (4.5:1)."""
COLOUR_BLIND: Mapping[str, str] = {
    "key": "#f0e442",
    "ok": "#009e73",
    "warn": "#e69f00",
    "fault": "#d55e00",
    "heal": "#56b4e9",
    "bar": "#56b4e9",
    "kv": "#cc79a7",
    "activation": "#f0e442",
}
"""Okabe and Ito's palette as published (Color Universal Design, 2008), for a black page."""
ANSI: Mapping[str, str] = {
    "key": "bright_cyan",
    "ok": "green",
    "warn": "yellow",
    "fault": "bright_red",
    "heal": "cyan",
    "bar": "cyan",
    "kv": "magenta",
    "activation": "yellow",
}
"""The terminal's own sixteen colours, for themes that use nothing else."""


def tone_colours(variables: Mapping[str, str], *, is_dark: bool, is_ansi: bool) -> dict[str, str]:
    """Colour by tone for a theme: its own word where it has one, or else what suits its background."""
    base = ANSI if is_ansi else DARK if is_dark else LIGHT
    own = {name.removeprefix(PREFIX): value for name, value in variables.items() if name.startswith(PREFIX)}
    return {**base, **own}


def tone_variables(colours: Mapping[str, str]) -> dict[str, str]:
    """The variables by which a theme names these colours."""
    return {f"{PREFIX}{tone}": colour for tone, colour in colours.items()}
