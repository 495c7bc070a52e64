"""Bootstrap under a real `systemd --user`, started in a mount namespace where /run and ~/.config are tmpfs."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SYSTEMD = Path("/lib/systemd/systemd")

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        os.geteuid() != 0 or not SYSTEMD.exists() or shutil.which("unshare") is None,
        reason="needs root, systemd and unshare",
    ),
]

# The last command is the driver; its answer is all of stdout.
SCRIPT = """
set -eu
mount -t tmpfs tmpfs /run
mkdir -p "$HOME/.config" /run/systemd/system "/run/user/0"
mount -t tmpfs tmpfs "$HOME/.config"
mount -t tmpfs tmpfs /var/lib/systemd
chmod 700 /run/user/0
if [ "$2" = lingers ]; then mkdir /var/lib/systemd/linger; touch "/var/lib/systemd/linger/$(id -un)"; fi
export XDG_RUNTIME_DIR=/run/user/0
/lib/systemd/systemd --user >"$1/systemd.log" 2>&1 &
manager=$!
tries=0
until systemctl --user show-environment >/dev/null 2>&1; do
    tries=$((tries + 1)); [ $tries -lt 100 ] || { cat "$1/systemd.log" >&2; exit 77; }
    sleep 0.1
done
"$3" -m tests.odctl.bootstrap.under_systemd "$1" || status=$?
kill "$manager"
wait "$manager" || true
exit "${status:-0}"
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="odctl-"))
    yield path
    shutil.rmtree(path)


def run_under_systemd(directory: Path, *, linger: str) -> dict[str, Any]:
    home = pwd.getpwuid(os.geteuid()).pw_dir
    result = subprocess.run(
        [
            "unshare",
            "--mount",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            SCRIPT,
            "sh",
            directory,
            linger,
            sys.executable,
        ],
        cwd=Path(__file__).parents[3],
        env={"HOME": home, "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if result.returncode == 77:
        pytest.skip("systemd --user does not start in this sandbox")
    assert result.returncode == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def test_a_unit_keeps_the_agent_and_uninstall_takes_it_away(directory: Path) -> None:
    report = run_under_systemd(directory, linger="lingers")
    assert report["first"]["state"] == "changed", report
    assert not report["first"]["is_degraded"]
    assert "enable the unit" in report["first"]["changes"]
    assert report["second"]["state"] == "unchanged"
    assert "enabled" in report["units"]
    assert report["came_back"]
    assert report["upgrade"]["state"] == "changed", report
    assert "write the systemd unit" not in report["upgrade"]["changes"]
    assert report["uninstall"]["state"] == "changed", report
    assert report["units_after"] == ""
    assert not report["prefix_after"]


def test_where_lingering_is_refused_the_agent_is_detached_and_degraded(directory: Path) -> None:
    """There is no logind in the namespace, so that `loginctl enable-linger` fails as a strict site's would."""
    report = run_under_systemd(directory, linger="does not")
    assert report["first"]["state"] == "changed", report
    assert report["first"]["is_degraded"]
    assert report["second"]["state"] == "unchanged"
    assert report["units"] == ""
    assert report["came_back"]
    assert report["uninstall"]["state"] == "changed", report
    assert not report["prefix_after"]
