"""Public data sets that lie beside the repository: found, or the test that needs them is skipped with a reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

VARIABLE = "ODCTL_SHARED_DATA"


def shared_data() -> Path:
    """The folder of data sets: where ODCTL_SHARED_DATA points, else `shared/data` beside the repository."""
    return Path(os.environ.get(VARIABLE) or Path(__file__).parents[2] / "shared" / "data")


def shared_file(name: str) -> Path:
    """A file of it by its path inside (`planner/helix_single24.json`). Skips the test where there is none."""
    path = shared_data() / name
    if not path.is_file():
        pytest.skip(f"no {path}: set {VARIABLE} to the folder of public data sets")
    return path
