"""Plan files, as they are typed."""

from __future__ import annotations

import os
from pathlib import Path

MAX_ENTRIES = 500
"""Of a directory with more, the rest is not offered: completion must not wait for a disk."""


def find_plan_files(typed: str) -> tuple[str, ...]:
    """Directories and `*.toml` whose path begins with what was typed, sorted; what cannot be read is empty."""
    directory, _, beginning = typed.rpartition("/")
    root = "/" if typed.startswith("/") and not directory else directory or "."
    found: list[str] = []
    try:
        with os.scandir(Path(root).expanduser()) as entries:
            for _, entry in zip(range(MAX_ENTRIES), entries, strict=False):
                if not entry.name.startswith(beginning) or (entry.name.startswith(".") and not beginning):
                    continue
                path = f"{typed[: len(typed) - len(beginning)]}{entry.name}"
                if entry.is_dir():
                    found.append(f"{path}/")
                elif entry.name.endswith(".toml"):
                    found.append(path)
    except OSError:
        return ()  # no such directory: there is nothing to offer
    return tuple(sorted(found))


def is_plan_file(name: str) -> bool:
    """Whether a word means a file: it looks like one, or is there."""
    return "/" in name or name.endswith(".toml") or Path(name).expanduser().is_file()


def read_plan_text(path: str) -> str:
    """Raises OSError or UnicodeDecodeError."""
    return Path(path).expanduser().read_text(encoding="utf-8")
