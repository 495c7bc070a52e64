from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.json_log import start_logging


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    # start_logging replaces all handlers; pytest's own must come back.
    for handler in handlers:
        root.removeHandler(handler)
    yield root
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)


def test_a_line_carries_its_fields_and_the_traceback(tmp_path: Path, root_logger: logging.Logger) -> None:
    path = tmp_path / "log" / "agent.log"
    start_logging(path)
    log = logging.getLogger("agent.test")
    log.info("stage ready", extra={"rank": 3, "path": path})
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("stage failed")
    log.debug("too quiet")
    ready, failed = map(json.loads, path.read_text().splitlines())
    assert (ready["event"], ready["rank"], ready["level"], ready["logger"]) == (
        "stage ready",
        3,
        "info",
        "agent.test",
    )
    assert ready["path"] == str(path)
    assert failed["event"] == "stage failed"
    assert "ValueError: broken" in failed["traceback"]
