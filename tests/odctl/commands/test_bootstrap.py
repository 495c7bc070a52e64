"""`odctl lab`, `bootstrap` and `uninstall` as a user calls them: exit codes, stdout, stderr."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Call = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def odctl(tmp_path: Path) -> Iterator[Call]:
    environment = os.environ | {"ODCTL_HOME": str(tmp_path)}
    name = f"t{secrets.token_hex(3)}"
    lab = Path("/tmp") / f"odctl-lab-{name}"

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "odctl", "-i", str(lab / "inventory.toml"), *arguments]
        if arguments[0] == "lab":
            argv += ["--name", name]
        return subprocess.run(
            argv,
            env=environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
            timeout=120,
        )

    yield call
    assert call("lab", "down").returncode == 0
    assert not lab.exists()


def test_the_verbs_from_a_lab_to_an_empty_prefix(odctl: Call) -> None:
    """1. lab up --bootstrap  2. bootstrap again  3. uninstall is not confirmed  4. uninstall  5. nothing there."""
    up = odctl("lab", "up", "--hosts", "2", "--bootstrap")
    assert up.returncode == 0, up.stderr
    assert "h2: done" in up.stderr
    assert "updated" in up.stdout
    assert "warning: h1: degraded" in up.stdout

    again = odctl("bootstrap", "--json")
    assert again.returncode == 0
    report = json.loads(again.stdout)
    assert report["kind"] == "bootstrap"
    assert [outcome["state"] for outcome in report["data"]] == ["unchanged", "unchanged"]

    status = json.loads(odctl("lab", "status", "--json").stdout)["data"]
    assert all(host["agent_pid"] for host in status["hosts"])

    asked = odctl("uninstall")
    assert asked.returncode == 3
    assert "--yes" in asked.stderr
    assert asked.stdout == ""

    removed = odctl("uninstall", "h1", "--yes")
    assert removed.returncode == 0, removed.stdout + removed.stderr
    after = json.loads(odctl("lab", "status", "--json").stdout)["data"]
    assert [bool(host["agent_pid"]) for host in after["hosts"]] == [False, True]
    assert not (Path(after["directory"]) / "h1" / "odctl").exists()
    assert "nothing there" in odctl("uninstall", "h1", "--yes").stdout


def test_one_failing_host_among_three_gives_exit_5_and_the_table(odctl: Call) -> None:
    up = odctl("lab", "up", "--hosts", "3")
    assert up.returncode == 0
    directory = Path(json.loads(odctl("lab", "status", "--json").stdout)["data"]["directory"])
    # A file stands where the second host's prefix should be.
    (directory / "h2" / "odctl").write_text("in the way")
    ended = odctl("bootstrap")
    assert ended.returncode == 5, ended.stderr
    rows = {line.split()[0]: line for line in ended.stdout.splitlines() if line[:1] == "h"}
    assert "updated" in rows["h1"]
    assert "failed" in rows["h2"]
    assert "updated" in rows["h3"]
    assert "error[E30" in ended.stdout
    assert "h2: failed at:" in ended.stderr


def test_a_wrong_selector_and_a_missing_inventory_exit_with_3(odctl: Call) -> None:
    assert odctl("bootstrap").returncode == 3
    odctl("lab", "up", "--hosts", "1")
    wrong = odctl("bootstrap", "h9")
    assert wrong.returncode == 3
    assert "no host `h9`" in wrong.stderr
