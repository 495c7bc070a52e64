"""Where the public measurements lie: beside the repository, or where ODCTL_SHARED_DATA points."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def find_shared_data(name: str) -> Path | None:
    """The file or directory of that name among the data, or None where there is none."""
    stated = os.environ.get("ODCTL_SHARED_DATA")
    root = Path(stated) if stated else Path(__file__).resolve().parents[1].parent / "shared" / "data"
    found = root / name
    return found if found.exists() else None


def shared_data(name: str) -> Path:
    """As `find_shared_data`; a test that asks for what is not there is skipped, and says what would bring it."""
    found = find_shared_data(name)
    if found is None:
        pytest.skip(f"no {name}: put the public data into ../shared/data, or point ODCTL_SHARED_DATA at it")
    return found
