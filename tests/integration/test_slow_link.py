"""A link that becomes slow under a deployment is left by the next plans, without a new probe."""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec
import pytest

from tests.benchmarks.shaped_network import UNSHAPED
from tests.benchmarks.slow_link import MOST_SLOW_RUNS, Story

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs root"),
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(1500),
]


def test_plans_leave_a_link_that_became_slow_within_six_measured_runs() -> None:
    """1. two hosts serve over a fast link 2. it becomes slow 3. runs tell 4. a plan takes other hosts"""
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.slow_link", "--json"],
        capture_output=True,
        timeout=1400,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    story = msgspec.json.decode(done.stdout, type=Story)
    told = "\n".join(str(run) for run in story.runs)
    assert story.runs_until_change is not None, told
    assert story.runs_until_change <= MOST_SLOW_RUNS, told
    slow = [run for run in story.runs if run.link != UNSHAPED]
    stayed, left = slow[: story.runs_until_change], slow[story.runs_until_change :]
    assert all(set(run.layout) == set(story.pair) for run in stayed)
    assert all(set(run.layout) != set(story.pair) for run in left), told
    assert min(run.measured_s for run in stayed) > 2 * max(run.measured_s for run in left), told
