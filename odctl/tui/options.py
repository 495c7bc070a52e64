"""How the terminal UI is opened. Importing this costs nothing: the command line does so for every verb."""

from __future__ import annotations

from typing import NamedTuple

UI_OPTIONS = "odctl.ui_options"
"""Where the command line keeps them in click's `meta`, for verbs that open the UI."""


class UiOptions(NamedTuple):
    """`is_unlocked`: changes are allowed for the first ten minutes. `theme`: its name; empty for the default."""

    is_unlocked: bool = False
    is_ascii: bool = False
    theme: str = ""
