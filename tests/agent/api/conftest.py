"""Gateways for tests: one for each test that breaks it, one for each file of those that only ask."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.api.rig import Rig, open_rig


@pytest.fixture
def rig() -> Iterator[Rig]:
    """A fresh rig with nothing started. Its directory is short, as unix sockets want it."""
    with tempfile.TemporaryDirectory(prefix="gw-") as directory, open_rig(Path(directory)) as fresh:
        yield fresh


@pytest.fixture(scope="module")
def serving_rig() -> Iterator[Rig]:
    """A gateway that serves `demo` from two stages, for all tests of a file."""
    with tempfile.TemporaryDirectory(prefix="gw-") as directory, open_rig(Path(directory)) as shared:
        shared.serve()
        yield shared
