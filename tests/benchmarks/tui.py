"""`make bench-tui`: what the fleet's screens cost over a simulated fleet, in a real pty, beside a plain DataTable.

Prints a table and writes it into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import compileall
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import msgspec

import agent
import odctl
import tests
from tests.benchmarks.output import say, write_between
from tests.benchmarks.table import DOCUMENT, commit_now
from tests.benchmarks.tui_app import VIEWS, View
from tests.benchmarks.tui_pty import PtyApp

BEGIN, END = "<!-- tui: begin -->", "<!-- tui: end -->"
WIDTH, HEIGHT = 140, 40
SIZES = (100, 1_000, 10_000)
GPUS = 8
TICK_S = 1.0
WARM_TICK_S, WARM_SETTLE_S = 0.1, 2.0
RESTED_OBJECTS = 300_000
STARTS = 5
"""Of which the first paint is the median: on a machine that others share one start takes half as long again."""
COUNTER = "counter"
"""What an app writes into its folder."""
FIRST_HOST = re.compile(rb"sim-0000\d")
WORDS: dict[View, str] = {
    "table": "table",
    "map": "heat map",
    "devices": "table of devices",
    "datatable": "plain DataTable (baseline)",
}
DOWN, RIGHT, PAGE_UP, PAGE_DOWN = b"\x1b[B", b"\x1b[C", b"\x1b[5~", b"\x1b[6~"
PAGES = 20
"""The fewest hosts have a few more pages of devices."""
KEYS: dict[View, tuple[bytes, ...]] = {
    "table": (DOWN,),
    "map": (RIGHT,),
    "devices": (PAGE_DOWN,) * PAGES + (PAGE_UP,) * PAGES,
    "datatable": (DOWN,),
}
"""Again and again: a row, a cell, or a page of devices, so that the next one is another host's."""
KEYS_BUDGET_S = 45.0
"""A baseline that answers late gets fewer keys."""
CORE_GOAL, BYTES_GOAL, KEY_GOAL_S, FIRST_GOAL_S = 0.06, 60_000, 0.050, 0.8
"""At 10,000 hosts: share of a core, bytes a tick, p95 from key to paint; CPU until hosts are seen."""


class Cost(NamedTuple):
    view: View
    num_hosts: int
    first_paint_cpu_s: float
    """CPU of the process until the first hosts are on the screen, the making of the fleet not counted; a median."""
    cpu_per_tick_s: float
    warm_cpu_per_tick_s: float | None
    """The same at ten ticks a second, so that no memory has rested; None of the baseline, which cannot keep up."""
    bytes_per_tick: float
    key_s: tuple[float, ...]
    """Sorted."""
    cpu_per_key_s: float
    """Beside that of the ticks meanwhile."""
    rss_bytes: int


def measure(view: View, num_hosts: int, *, seconds: float, keys: int, settle_s: float) -> Cost:
    """One app from its start: first paint, then ticks alone, then keys between ticks."""
    firsts_s = [_first_paint_cpu_s(view, num_hosts) for _ in range(STARTS - 1)]
    warm_s = None if view == "datatable" else _warm_cpu_per_tick_s(view, num_hosts, seconds)
    with _started(view, num_hosts) as (app, folder):
        firsts_s.append(_own_cpu_s(app, folder))
        app.read_for(settle_s)
        cpu_s, num_bytes = _own_cpu_s(app, folder), app.num_bytes
        app.read_for(seconds)
        ticks = seconds / TICK_S
        cpu_s, num_bytes = (_own_cpu_s(app, folder) - cpu_s) / ticks, app.num_bytes - num_bytes
        app.key_to_paint_s(KEYS[view][0])  # the first one finds caches empty
        before_s, begin_s = _own_cpu_s(app, folder), time.monotonic()
        latencies = app.keys_to_paint_s(KEYS[view], keys, seed=num_hosts, budget_s=KEYS_BUDGET_S)
        of_ticks_s = cpu_s * (time.monotonic() - begin_s) / TICK_S
        return Cost(
            view=view,
            num_hosts=num_hosts,
            first_paint_cpu_s=statistics.median(firsts_s),
            cpu_per_tick_s=cpu_s,
            warm_cpu_per_tick_s=warm_s,
            bytes_per_tick=num_bytes / ticks,
            key_s=tuple(sorted(latencies)),
            cpu_per_key_s=max(0.0, _own_cpu_s(app, folder) - before_s - of_ticks_s) / len(latencies),
            rss_bytes=app.rss_bytes,
        )


def _first_paint_cpu_s(view: View, num_hosts: int) -> float:
    with _started(view, num_hosts) as (app, folder):
        return _own_cpu_s(app, folder)


def _warm_cpu_per_tick_s(view: View, num_hosts: int, seconds: float) -> float:
    with _started(view, num_hosts, interval_s=WARM_TICK_S) as (app, folder):
        app.read_for(WARM_SETTLE_S)
        cpu_s, (ticks, _) = _own_cpu_s(app, folder), _counted(folder)
        app.read_for(seconds / 2)
        return (_own_cpu_s(app, folder) - cpu_s) / (_counted(folder)[0] - ticks)


@contextmanager
def _started(view: View, num_hosts: int, *, interval_s: float = TICK_S) -> Iterator[tuple[PtyApp, Path]]:
    """An app with its first hosts on the screen, and its folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        argv = [
            sys.executable, "-m", "tests.benchmarks.tui_main", "--hosts", str(num_hosts), "--view", view,
            "--counter", str(folder / COUNTER), "--interval", str(interval_s),
        ]  # fmt: skip
        with PtyApp(argv, width=WIDTH, height=HEIGHT) as app:
            app.wait_for(FIRST_HOST, timeout_s=120)
            yield app, folder


def _counted(folder: Path) -> tuple[int, float]:
    """Frames that an app was handed, and seconds of CPU that are the benchmark's own."""
    return msgspec.json.decode((folder / COUNTER).read_bytes(), type=tuple[int, float])


def _own_cpu_s(app: PtyApp, folder: Path) -> float:
    """Seconds of CPU so far, the making and the receipt of frames not counted."""
    return app.cpu_s - _counted(folder)[1]


def compile_as_installed(*packages: ModuleType) -> None:
    """As pip leaves them: where Python is told to write no bytecode, every start of a checkout compiles it all."""
    for package in packages:
        for folder in package.__path__:
            if not compileall.compile_dir(folder, quiet=1):
                raise SystemExit(f"{folder} does not compile")


def rested_memory() -> float:
    """How many times as long the same small objects take to read after a second's rest as at once again.

    Where that is much longer, other tenants of the machine have the caches, or its host has taken the pages.
    """
    values = [[float(number)] for number in range(RESTED_OBJECTS)]

    def sweep() -> float:
        before_s = time.perf_counter()
        assert sum([each[0] for each in values]) > 0
        return time.perf_counter() - before_s

    sweep()
    at_once = min(sweep() for _ in range(5))
    rested = []
    for _ in range(3):
        time.sleep(1.0)
        rested.append(sweep())
    return sorted(rested)[1] / at_once


def quantile(values: tuple[float, ...], share: float) -> float:
    """The value that this share of them does not exceed."""
    return values[min(len(values) - 1, int(share * len(values)))]


def verdicts(cost: Cost) -> list[str]:
    """Goals that a cost misses, in words; none for the baseline."""
    if cost.view == "datatable":
        return []
    said = []
    if cost.first_paint_cpu_s > FIRST_GOAL_S:
        said.append(f"first paint {cost.first_paint_cpu_s:.2f} s > {FIRST_GOAL_S} s")
    if cost.num_hosts == max(SIZES):
        if cost.cpu_per_tick_s / TICK_S > CORE_GOAL:
            said.append(f"{cost.cpu_per_tick_s / TICK_S:.1%} of a core > {CORE_GOAL:.0%}")
        if cost.bytes_per_tick > BYTES_GOAL:
            said.append(f"{cost.bytes_per_tick / 1000:.0f} kB a tick > {BYTES_GOAL // 1000} kB")
        if quantile(cost.key_s, 0.95) > KEY_GOAL_S:
            said.append(f"key to paint p95 {quantile(cost.key_s, 0.95) * 1e3:.0f} ms > {KEY_GOAL_S * 1e3:.0f} ms")
    return said


def lines(costs: list[Cost], *, seconds: float, load: float, slower: float) -> list[str]:
    out = [
        f"Commit {commit_now()}, {os.cpu_count()} cores, load {load:.1f} before it; {WIDTH}x{HEIGHT}, {GPUS} GPUs "
        f"a host, all figures new each second, {seconds:.0f} s of ticks, then {len(costs[0].key_s)} keys at random "
        "moments. Goals: at 10,000 hosts at most 6% of a core, 60 kB a tick and 50 ms from key to paint (p95); "
        "first hosts on the screen within 0.8 s of CPU, the interpreter's start and imports counted, the median "
        f"of {STARTS} starts.",
        "",
        f"Memory that has rested for a second is read {slower:.1f} times as slowly here as at once "
        "again: others have the caches, or the pages. A frame is read through when it comes, as decoding would "
        "leave it, which is not counted; what the app itself keeps has rested for a second at every tick, so the "
        "same is measured at ten ticks a second, too.",
        "",
        "| hosts | view | first paint, CPU | CPU a tick | of a core | CPU a tick of ten a second | bytes a tick | "
        "key to paint p50 / p95 | CPU a key | memory | |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    return [*out, *map(row, costs)]


def row(cost: Cost) -> str:
    """A cost's row of the table."""
    missed = verdicts(cost)
    warm = f"{cost.warm_cpu_per_tick_s * 1e3:.0f} ms" if cost.warm_cpu_per_tick_s is not None else ""
    verdict = "" if cost.view == "datatable" else f"**missed**: {'; '.join(missed)}" if missed else "met"
    return (
        f"| {cost.num_hosts:,} | {WORDS[cost.view]} | {cost.first_paint_cpu_s:.2f} s | "
        f"{cost.cpu_per_tick_s * 1e3:.0f} ms | {cost.cpu_per_tick_s / TICK_S:.1%} | {warm} | "
        f"{cost.bytes_per_tick / 1000:.1f} kB | {quantile(cost.key_s, 0.5) * 1e3:.0f} / "
        f"{quantile(cost.key_s, 0.95) * 1e3:.0f} ms | {cost.cpu_per_key_s * 1e3:.0f} ms | "
        f"{cost.rss_bytes / 1e6:.0f} MB | {verdict} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", default=",".join(map(str, SIZES)), help="numbers of hosts, by commas")
    parser.add_argument("--views", default=",".join(VIEWS), help=f"of {', '.join(VIEWS)}")
    parser.add_argument("--seconds", type=float, default=20.0, help="of ticks that are measured")
    parser.add_argument("--keys", type=int, default=60)
    parser.add_argument("--settle", type=float, default=4.0)
    parser.add_argument("--no-write", action="store_true", help="leave docs/benchmarks.md as it is")
    arguments = parser.parse_args()
    views = [view for view in VIEWS if view in arguments.views.split(",")]
    if not views:
        parser.error(f"--views {arguments.views}: none of {', '.join(VIEWS)}")
    compile_as_installed(agent, odctl, tests)
    load, slower, costs = os.getloadavg()[0], rested_memory(), []
    for num_hosts in map(int, arguments.hosts.split(",")):
        for view in views:
            say(f"{num_hosts:,} hosts, {WORDS[view]}")
            costs.append(
                measure(view, num_hosts, seconds=arguments.seconds, keys=arguments.keys, settle_s=arguments.settle)
            )
            say(row(costs[-1]))
    text = "\n".join(lines(costs, seconds=arguments.seconds, load=load, slower=slower))
    print(text)
    if not arguments.no_write:
        write_between(DOCUMENT, BEGIN, END, text)
    return 1 if any(verdicts(cost) for cost in costs) else 0


if __name__ == "__main__":
    raise SystemExit(main())
