"""Gateways for tests: one for each test that breaks it, one for each file of those that only ask."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import ollama
import openai
import pytest

from agent.planner.plan import Serving
from tests.agent.api.rig import Rig, open_rig

if TYPE_CHECKING:
    from tests.agent.api.engine import Served

ENGINE_SERVING = Serving(context=2048, batch=8, dtype="float32", prefill_chunk=256, queue=8)


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


@pytest.fixture(scope="package")
def served() -> Iterator[Served]:
    """Real ranks, two stages, with Qwen3's chat template; for the files that only ask."""
    from tests.agent.api.engine import serve_model
    from tests.agent.engine.models import stage
    from tests.agent.serving.test_tools import template_text

    with serve_model(
        lambda spec: (stage(spec, (0, 2)), stage(spec, (2, 4))),
        serving=ENGINE_SERVING,
        chat_template=template_text("qwen3"),
    ) as served:
        yield served


@pytest.fixture
def open_ai(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.rig.base_url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture
def oll(served: Served) -> Iterator[ollama.Client]:
    with ollama.Client(served.rig.base_url) as client:
        yield client
