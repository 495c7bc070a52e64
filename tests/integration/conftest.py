from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.models import write_endless_model


@pytest.fixture(scope="session")
def endless_model() -> Iterator[Path]:
    """Six layers, a few hundred kilobytes, no end of text. In a place of its own: hosts are to fetch it."""
    root = Path(tempfile.mkdtemp(prefix="odm-"))
    yield write_endless_model(root / "endless")
    shutil.rmtree(root)
