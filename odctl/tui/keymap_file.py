"""The user's keymap file: where it lies, and what is in it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from agent.documents import UNREADABLE, Problem, Span
from odctl.tui.model.keymap import Keymap, KnownKeys, NormalKey, read_keymap


def keymap_path() -> Path:
    """`$XDG_CONFIG_HOME/odctl/keymap.toml`, by default under `~/.config`."""
    # The XDG rules: a path that is not absolute does not count.
    config = os.environ.get("XDG_CONFIG_HOME", "")
    root = Path(config) if config.startswith("/") else Path.home() / ".config"
    return root / "odctl" / "keymap.toml"


def load_keymap(path: Path, *, read_known: Callable[[], KnownKeys], normal_key: NormalKey) -> Keymap:
    """What the file says; a file that is not there says nothing. Never raises: its problems are in the value.

    `read_known` imports every screen, which is worth it only where there is a file to check.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Keymap(path=str(path))
    except (OSError, UnicodeDecodeError) as error:
        problem = Problem(
            code=UNREADABLE,
            message=f"it cannot be read: {error}",
            file=str(path),
            span=Span(line=1, column=1),
            hint="the keys are those of the help",
        )
        return Keymap(path=str(path), problems=(problem,))
    return read_keymap(text, path=str(path), known=read_known(), normal_key=normal_key)
