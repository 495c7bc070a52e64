"""What `make bench-tui` measures, run by it in a pty of its own.

Either the app itself over the simulated fleet, or the baseline: the same fleet on Textual's own DataTable.
"""

from __future__ import annotations

import argparse
import gc
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from msgspec.structs import astuple
from textual.app import App

import odctl.tui
from odctl.fleet import FleetSnapshot
from odctl.fleet.clock import SystemClock
from odctl.tui.app import OdctlApp
from odctl.tui.responsive import answer_keys_first
from odctl.tui.screens import fleet as fleet_screen
from tests.simulated_fleet import SimulatedFeed, SimulatedFleet

View = Literal["table", "map", "devices", "datatable"]
VIEWS: tuple[View, ...] = ("table", "map", "devices", "datatable")


HOSTS_AT_A_TIME, PAUSE_S = 25, 0.001
"""A frame is read through in such portions, with time for other threads between them."""


class CountedFeed(SimulatedFeed):
    """Writes down how many frames the app was handed, and the seconds of CPU that are the benchmark's own.

    A real frame has just been decoded when it is handed over. These were made beforehand and have rested for some
    seconds, so each is read through first, which counts as the benchmark's, as making them does.
    """

    def __init__(self, fleet: SimulatedFleet, *, interval_s: float, counter: Path, made_cpu_s: float) -> None:
        super().__init__(fleet, interval_s=interval_s)
        self._counter = os.open(counter, os.O_CREAT | os.O_WRONLY)
        self._num_frames, self._cpu_s = 0, made_cpu_s
        self._write()

    def start(
        self, on_snapshot: Callable[[FleetSnapshot], None], on_failure: Callable[[BaseException], None]
    ) -> None:
        def counted(snapshot: FleetSnapshot) -> None:
            before_s = time.thread_time()
            _read_through(snapshot)
            self._cpu_s += time.thread_time() - before_s
            on_snapshot(snapshot)
            self._num_frames += 1
            self._write()

        super().start(counted, on_failure)

    def _write(self) -> None:
        os.pwrite(self._counter, b"[%8d,%14.6f]" % (self._num_frames, self._cpu_s), 0)


def _read_through(snapshot: FleetSnapshot) -> None:
    """Every value that a second brings; a little at a time, as agents' messages come one by one."""
    for number, host in enumerate(snapshot.hosts):
        if number % HOSTS_AT_A_TIME == 0:
            time.sleep(PAUSE_S)
        astuple(host)
        for part in (host.history.last, host.digest):
            if part is not None:
                astuple(part)
        if host.sample is not None:
            astuple(host.sample)
            for device in host.sample.devices:
                astuple(device)


class DevicesApp(OdctlApp):
    """Goes to the table of devices at once: a row a GPU, and one a CPU."""

    CSS_PATH = str(Path(odctl.tui.__file__).parent / "odctl.tcss")

    def on_ready(self) -> None:
        self.run_command("devices")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, required=True)
    parser.add_argument("--view", choices=VIEWS, required=True)
    parser.add_argument("--interval", type=float, default=1.0, help="seconds from frame to frame")
    parser.add_argument(
        "--counter", type=Path, required=True, help="where frames and CPU not the app's are written"
    )
    arguments = parser.parse_args()
    before_s = time.process_time()
    fleet = SimulatedFleet(arguments.hosts, now_s=time.time())
    # The frames are the benchmark's: a real fleet has no six of them for the collector to walk.
    gc.collect()
    gc.freeze()
    made_cpu_s = time.process_time() - before_s
    feed = CountedFeed(fleet, interval_s=arguments.interval, counter=arguments.counter, made_cpu_s=made_cpu_s)
    match arguments.view:
        case "datatable":
            # Imported for itself alone: the app's first paint is to count what the app imports.
            from tests.benchmarks.tui_baseline import DataTableApp

            app: App[None] = DataTableApp(feed)
        case view:
            # What decides between the two is the number of hosts; here it is the caller.
            fleet_screen.MAP_ABOVE_HOSTS = 0 if view == "map" else arguments.hosts
            kind = DevicesApp if view == "devices" else OdctlApp
            app = kind(feed, clock=SystemClock())
            answer_keys_first()
    app.run()
