from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.agent.engine.models import Reference, write_model

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reference]:
    """The small model of a family, written once per session."""
    made: dict[str, Reference] = {}

    def get(family: str) -> Reference:
        if family not in made:
            made[family] = write_model(family, tmp_path_factory.mktemp("models") / family)
        return made[family]

    return get


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: unix sockets have 107 bytes for theirs."""
    path = Path(tempfile.mkdtemp(prefix="odr-"))
    yield path
    shutil.rmtree(path)
