"""Runs inside a mount namespace that has a real `systemd --user`, and prints what happened as JSON.

`python -m tests.odctl.bootstrap.under_systemd DIRECTORY`; see test_systemd.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from odctl.bootstrap.run import HostOutcome
from tests.odctl.bootstrap.conftest import Site
from tests.odctl.bootstrap.tiny_agent import tiny_bundle
from tests.odctl.processes import is_running


def systemctl(*arguments: str) -> str:
    argv = ["systemctl", "--user", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()


def agent_pid(prefix: Path) -> int | None:
    try:
        return int((prefix / "run" / "agent.pid").read_text())
    except (FileNotFoundError, ValueError):
        return None


async def wait_for_other_agent(prefix: Path, pid: int) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        other = agent_pid(prefix)
        if other is not None and other != pid and is_running(other):
            return True
        await asyncio.sleep(0.1)
    return False


def told(outcome: HostOutcome) -> dict[str, object]:
    return {
        "state": outcome.state,
        "is_degraded": outcome.is_degraded,
        "changes": outcome.changes,
        "error": outcome.error.message if outcome.error else "",
    }


async def main(directory: Path) -> dict[str, object]:
    site = Site(directory)
    # No home of its own: the user manager serves the account's home only.
    inventory = site.inventory()
    text = inventory.path.read_text().replace(f'home = "{directory / "h1"}"\n', "")
    inventory.path.write_text(text)
    from odctl.inventory import load_inventory

    inventory = load_inventory(inventory.path)
    bundle = tiny_bundle(directory / "bundles")
    report: dict[str, object] = {}
    (outcome,) = await site.bootstrap(bundle, inventory)
    report["first"] = told(outcome)
    (outcome,) = await site.bootstrap(bundle, inventory)
    report["second"] = told(outcome)
    report["units"] = systemctl("list-unit-files", "--no-legend", "odctl-agent-*")
    pid = agent_pid(site.prefix())
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
        report["came_back"] = await wait_for_other_agent(site.prefix(), pid)
    (outcome,) = await site.bootstrap(tiny_bundle(directory / "bundles", "two"), inventory)
    report["upgrade"] = told(outcome)
    (outcome,) = await site.uninstall(inventory)
    report["uninstall"] = told(outcome)
    report["units_after"] = systemctl("list-unit-files", "--no-legend", "odctl-agent-*")
    report["prefix_after"] = site.prefix().exists()
    return report


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(main(Path(sys.argv[1])))))
