"""`make screenshots`: every view of the real app, on a lab of five hosts with a running deployment.

The lab is used as an operator's cluster is: its devices and links are probed, a load runs, a rank has been killed
and healed, and plans are applied. Nothing on a picture is made up; what is of a simulated fleet says so.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from odctl.fleet.clock import SystemClock
from odctl.inventory import load_inventory
from odctl.lab import Lab
from odctl.recording import open_recording
from odctl.tui.app import OdctlApp
from odctl.tui.feed import FleetFeed
from odctl.tui.replay import replay_app
from odctl.tui.screenshot_views import REPLAY_VIEWS, VIEWS, WITHOUT_PICTURE
from odctl.tui.screenshots import SIZES, MissingView, Scene, View, screens_without_view, take_pictures
from tests import simulated_screens
from tests.integration.cluster import Cluster

ROOT = Path(__file__).parent.parent
DEPLOYMENT = "speaker"
QUESTION = "A class is"
PORT = 11434
"""Ollama's, as a deployment has it by default; another where it is taken."""
HEAL_TIMEOUT_S = 90.0
LOAD = ("--api", "openai", "--concurrency", "2", "--prompt", "16..64", "--output", "24..96", "--duration", "7200")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "screenshots")
    parser.add_argument("--hosts", type=int, default=5)
    parser.add_argument("--only", default="", help="Names of views, with commas.")
    parser.add_argument("--warm-up", type=float, default=30.0, help="Seconds of history before the first picture.")
    parser.add_argument("--steps", default="150", help="Of the demo model's training.")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    views = _chosen(arguments.only)
    with Lab(name="screens", num_hosts=arguments.hosts) as lab:
        missing = picture_lab(lab, views, arguments.out, warm_up_s=arguments.warm_up, steps=arguments.steps)
    if not arguments.only:
        for path in asyncio.run(simulated_screens.take(arguments.out)):
            _say(str(path))
    uncovered = set() if arguments.only else set(screens_without_view(VIEWS)) - WITHOUT_PICTURE.keys()
    for each in missing:
        sys.stderr.write(f"✗ {each.name}: {each.reason}\n")
    for name in sorted(uncovered):
        sys.stderr.write(f"✗ no picture of {name}: give it a line in odctl/tui/screenshot_views.py\n")
    return 1 if missing or uncovered else 0


def picture_lab(lab: Lab, views: tuple[View, ...], out: Path, *, warm_up_s: float, steps: str) -> list[MissingView]:
    """Deploy, disturb, and take every view at every size; the other plan is applied at each size, to and fro."""
    model, first, second = (lab.directory / name for name in ("speaker", "plan.toml", "pipeline.toml"))
    odctl(lab, "bootstrap")
    odctl(lab, "models", "make-demo", str(model), "--steps", steps)
    odctl(lab, "probe", "--quick")
    # One gateway for both, so that the load goes on through every apply.
    where = ("--controller", "h1", "--listen", f"127.0.0.1:{_free_port(PORT)}")
    for path, shape in ((first, ("hybrid", "--tensor", "1,2")), (second, ("pipeline", "--stages", "3"))):
        odctl(lab, "plan", str(model), "--strategy", *shape, "--context", "512", *where, "-o", str(path))
    odctl(lab, "apply", str(first), "--yes")
    missing: list[MissingView] = []
    with _load(lab):
        kill_a_rank(lab)
        for index, size in enumerate(SIZES):
            running, other = (first, second) if index % 2 == 0 else (second, first)
            scene = Scene(
                deployment=DEPLOYMENT,
                host="h1",
                model=str(model),
                plan=str(running),
                other_plan=str(other),
                question=QUESTION,
            )
            taken = asyncio.run(
                take_pictures(
                    lambda: _lab_app(lab), views, out, scene=scene, sizes=(size,), warm_up_s=warm_up_s, say=_say
                )
            )
            missing += taken.missing
        recording = lab.directory / "lab.odrec"
        odctl(lab, "record", str(recording), "--for", "20s")
        taken = asyncio.run(
            take_pictures(lambda: replay_app(open_recording(recording)), REPLAY_VIEWS, out, warm_up_s=0.0, say=_say)
        )
        missing += taken.missing
    return missing


def kill_a_rank(lab: Lab) -> None:
    """SIGKILL to one rank, and wait until the deployment serves again: a fault with its whole history."""
    cluster = Cluster(lab)
    record = next(rank for host in cluster.hosts for rank in cluster.children(host, "rank", DEPLOYMENT))
    os.kill(record.pid, signal.SIGKILL)
    deadline = time.monotonic() + HEAL_TIMEOUT_S
    while time.monotonic() < deadline:
        faults = json.loads(odctl(lab, "faults", "--json"))["data"]
        if faults["faults"] and all(fault["healed_at_s"] is not None for fault in faults["faults"]):
            return
        time.sleep(1.0)
    raise TimeoutError(f"the killed rank was not healed within {HEAL_TIMEOUT_S:.0f} s: {faults}")


def odctl(lab: Lab, *arguments: str) -> str:
    _say(f"odctl {' '.join(arguments)}")
    done = subprocess.run(_argv(lab, arguments), check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


@contextmanager
def _load(lab: Lab) -> Iterator[None]:
    """Two clients that go on asking, so that the pictures are of a deployment at work."""
    process = subprocess.Popen(
        _argv(lab, ("bench", DEPLOYMENT, *LOAD)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def _argv(lab: Lab, arguments: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-m", "odctl", "-i", str(lab.inventory_path), *arguments]


def _lab_app(lab: Lab) -> OdctlApp:
    clock = SystemClock()
    return OdctlApp(FleetFeed(load_inventory(lab.inventory_path), clock), clock=clock)


def _chosen(only: str) -> tuple[View, ...]:
    names = set(filter(None, only.split(",")))
    if unknown := names - {view.name for view in VIEWS}:
        raise SystemExit(f"no view {', '.join(sorted(unknown))}: {', '.join(view.name for view in VIEWS)}")
    return tuple(view for view in VIEWS if not names or view.name in names)


def _free_port(wanted: int) -> int:
    """That one, or any where it is taken."""
    for port in (wanted, 0):
        try:
            with socket.create_server(("127.0.0.1", port)) as server:
                bound: int = server.getsockname()[1]
                return bound
        except OSError:
            continue
    raise RuntimeError("no port of 127.0.0.1 is free")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
