from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.errors import FleetError
from agent.pid_file import hold_pid_file


def test_the_file_names_us_while_we_hold_it(tmp_path: Path) -> None:
    path = tmp_path / "run" / "agent.pid"
    with hold_pid_file(path):
        assert int(path.read_text()) == os.getpid()
        with (
            pytest.raises(FleetError, match=rf"an agent runs already .*\(pid {os.getpid()}\)"),
            hold_pid_file(path),
        ):
            raise AssertionError("held twice")
        assert int(path.read_text()) == os.getpid()
    assert not path.exists()


def test_what_a_killed_agent_left_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "agent.pid"
    path.write_text("999999999\n")
    with hold_pid_file(path):
        assert int(path.read_text()) == os.getpid()
