"""The measuring itself, on a terminal program small enough to be known."""

from __future__ import annotations

import re
import sys

import pytest

from tests.benchmarks.tui import Cost, lines, quantile, verdicts
from tests.benchmarks.tui_pty import PtyApp
from tests.simulated_fleet import SimulatedFleet

ECHO = """
import os, sys, termios, tty
tty.setraw(0)
os.write(1, "\\x1b[1m ▸ \\x1b[0msim-00000".encode())
number = 0
while os.read(0, 1) != b"q":
    number += 1
    os.write(1, f"\\x1b[2J ▸ \\x1b[38;2;1;2;3msim-{number:05d}".encode())
"""


def cost(**changes: object) -> Cost:
    met = Cost("table", 10_000, 0.5, 0.04, 0.03, 20_000.0, (0.01, 0.02, 0.03), 0.007, 400_000_000)
    return met._replace(**changes)  # type: ignore[arg-type] # names of the tuple's own fields


def test_a_key_is_answered_when_another_host_is_named() -> None:
    with PtyApp([sys.executable, "-c", ECHO], width=80, height=24) as app:
        app.wait_for(re.compile(rb"sim-00000"), timeout_s=20)
        taken = [app.key_to_paint_s(b"j") for _ in range(3)]
        assert all(0 < seconds < 5 for seconds in taken)
        assert app.num_bytes > 60
        assert app.cpu_s > 0


def test_an_app_that_ends_or_never_answers_is_told_and_not_waited_for() -> None:
    with (
        PtyApp([sys.executable, "-c", "print('bye')"], width=80, height=24) as app,
        pytest.raises(RuntimeError, match="the app ended: bye"),
    ):
        app.wait_for(re.compile(rb"sim-\d"), timeout_s=20)
    with (
        PtyApp([sys.executable, "-c", "import time; time.sleep(60)"], width=80, height=24) as app,
        pytest.raises(TimeoutError, match="stayed on None"),
    ):
        app.key_to_paint_s(b"j", timeout_s=0.2)


def test_a_missed_goal_is_named_with_both_figures_and_the_baseline_has_none() -> None:
    assert verdicts(cost()) == []
    assert verdicts(cost(cpu_per_tick_s=0.07)) == ["7.0% of a core > 6%"]
    assert verdicts(cost(bytes_per_tick=70_000.0)) == ["70 kB a tick > 60 kB"]
    assert verdicts(cost(key_s=(0.01, 0.09))) == ["key to paint p95 90 ms > 50 ms"]
    assert verdicts(cost(num_hosts=100, cpu_per_tick_s=0.07)) == [], "that goal is for the whole fleet"
    assert verdicts(cost(num_hosts=100, first_paint_cpu_s=0.9)) == ["first paint 0.90 s > 0.8 s"]
    assert verdicts(cost(view="datatable", cpu_per_tick_s=0.7, first_paint_cpu_s=9.0)) == []
    text = "\n".join(lines([cost(), cost(bytes_per_tick=70_000.0)], seconds=20.0, load=0.3, slower=4.0))
    assert "| 10,000 | table | 0.50 s | 40 ms | 4.0% | 30 ms | 20.0 kB | 20 / 30 ms | 7 ms | 400 MB | met |" in text
    assert "**missed**: 70 kB a tick > 60 kB" in text


def test_quantiles_are_values_that_were_measured() -> None:
    assert quantile((1.0, 2.0, 3.0, 4.0), 0.5) == 3.0
    assert quantile((1.0, 2.0, 3.0, 4.0), 0.95) == 4.0
    assert quantile((7.0,), 0.95) == 7.0


def test_equal_seeds_give_equal_fleets_whose_figures_move_by_steps() -> None:
    first = SimulatedFleet(40, gpus=2, frames=3, now_s=0.0)
    again = SimulatedFleet(40, gpus=2, frames=3, now_s=0.0)
    assert [host.sample for host in first.frames[2].hosts] == [host.sample for host in again.frames[2].hosts]
    other = SimulatedFleet(40, seed=2, gpus=2, frames=1, now_s=0.0)
    assert [host.sample for host in first.frames[0].hosts] != [host.sample for host in other.frames[0].hosts]
    assert first.frames[0].cluster == "simulated", "a picture of it says so in its title"
    assert [first.frames.index(first.frame(tick)) for tick in range(6)] == [0, 1, 2, 1, 0, 1]
    for before, after in zip(first.frames[0].hosts, first.frames[1].hosts, strict=True):
        if before.sample is not None and after.sample is not None:
            assert abs(before.sample.cpu - after.sample.cpu) < 0.1
