"""Themes of our own beside Textual's, and what makes a palette of any of them."""

from __future__ import annotations

from textual.theme import Theme

from odctl.tui.model.palettes import COLOUR_BLIND, LIGHT, tone_colours, tone_variables

DEFAULT = "textual-dark"
NO_COLOR = "ansi-dark"
"""Only native ANSI colours can be dropped: Textual greys others, and then default text turns black on black."""

THEMES = (
    Theme(
        name="colour-blind",
        primary="#0072b2",
        secondary="#56b4e9",
        accent="#e69f00",
        warning="#e69f00",
        error="#d55e00",
        success="#009e73",
        foreground="#f2f2f2",
        background="#000000",
        surface="#121212",
        panel="#202428",
        variables=tone_variables(COLOUR_BLIND),
    ),
    Theme(
        name="paper",
        primary="#0072b2",
        secondary="#3a6ea5",
        accent="#8a5d00",
        warning="#8a5d00",
        error="#b03a00",
        success="#00684b",
        foreground="#1c1c1c",
        background="#ffffff",
        surface="#f4f4f4",
        panel="#e4e4e4",
        dark=False,
        variables=tone_variables(LIGHT),
    ),
)


def colours_of(theme: Theme) -> dict[str, str]:
    """Colour by tone under this theme."""
    return tone_colours(theme.variables, is_dark=theme.dark, is_ansi=theme.ansi)
