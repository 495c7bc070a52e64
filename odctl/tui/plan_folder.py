"""Plan files of a directory, for the screens to list. Bounded: a directory of thousands of files costs little."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from agent.errors import FleetError
from odctl.tui.model.plan_list import PlanFile
from odctl.tui.model.plans import PlanChoice, preview_of

MOST_FILES = 200
MOST_BYTES = 4 << 20
"""Of one file: a plan of thousands of ranks has a few megabytes."""
MOST_BYTES_IN_ALL = 32 << 20


def find_plans(directory: Path) -> tuple[PlanFile, ...]:
    """Every `*.toml` there that is a plan, by name; those that mean to be one and are not, with what is wrong.

    What is no plan (an inventory, a project's file) is passed over, and so is what cannot be read.
    """
    found: list[PlanFile] = []
    left = MOST_BYTES_IN_ALL
    try:
        names = sorted(entry.name for entry in os.scandir(directory) if entry.name.endswith(".toml"))
    except OSError:
        return ()
    for name in names[:MOST_FILES]:
        path = directory / name
        try:
            size = path.stat().st_size
            if not path.is_file() or size > min(MOST_BYTES, left):
                continue
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        left -= size
        if _means_to_be_plan(text):
            found.append(_plan_file(text, name))
    return tuple(found)


def read_choice(path: str) -> PlanChoice:
    """One plan file. Raises FleetError E101 for what cannot be read, and what is wrong with a plan."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise FleetError("E101", f"cannot read {path}: {why}", hint="name a plan file, or what runs") from error
    return preview_of(text, path=path)


def _plan_file(text: str, path: str) -> PlanFile:
    try:
        return PlanFile(path=path, choice=preview_of(text, path=path))
    except FleetError as error:
        return PlanFile(path=path, choice=None, error=str(error))


def _means_to_be_plan(text: str) -> bool:
    """It has a plan's tables. What is no TOML is told as a plan only where it begins as one is written."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return "[[replica" in text and "[model]" in text
    return "replica" in document and "model" in document
