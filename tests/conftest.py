"""What holds for every test: the models that Ollama has on this machine are nobody's, and who runs beside whom.

Two processes of pytest share the suite (`--dist loadgroup`). Labs, which are many processes each and measure times,
run one after the other in one of them; the tests of any other file stay together, for they share its fixtures.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["OLLAMA_MODELS"] = ""

ROOT = Path(__file__).parent
LABS = ("integration", "odctl/bootstrap", "odctl/commands", "odctl/lab")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        file = item.path.relative_to(ROOT).as_posix()
        group = "labs" if file.startswith(LABS) else file
        item.add_marker(pytest.mark.xdist_group(group))
