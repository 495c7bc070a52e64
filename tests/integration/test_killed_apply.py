"""A killed apply leaves the old or the new deployment serving, never none; a second apply finishes the job.

The operator's process and the controller's agent are killed by SIGKILL in every phase, while a client asks all the
time. One lab for all of it: each test applies the layout that does not run.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from agent.planner.file import plan_from_toml, plan_hash
from agent.wire.agent import ApplyPhase
from tests.integration.clients import Asker, ask
from tests.integration.cluster import Cluster, free_listen, open_cluster, until

NAME = "chat"
CONTROLLER = "h1"
PHASES = tuple(phase for phase in get_args(ApplyPhase) if phase not in ("done", "roll_back"))
BEFORE_SWITCH = PHASES[: PHASES.index("switch")]
TELLING = ("start", "switch", "retire")
"""Before anything of the old layout is touched, where it is given up, and after it; all phases are slow ones."""
EVERY_PHASE = [phase if phase in TELLING else pytest.param(phase, marks=pytest.mark.slow) for phase in PHASES]


class Layouts(msgspec.Struct):
    """Two plans on the same hosts; one of them runs."""

    cluster: Cluster
    listen: str
    running: Path
    other: Path

    @property
    def generation(self) -> int:
        return self.cluster.status(CONTROLLER, NAME).generation

    def serving_hash(self) -> str:
        status = self.cluster.try_status(CONTROLLER, NAME)
        return status.plan_hash if status is not None and status.state == "serving" else ""

    def has_settled(self) -> bool:
        """Exactly one layout's ranks run, one a host, nothing holds a lock, and it serves."""
        status = self.cluster.try_status(CONTROLLER, NAME)
        if status is None or status.state != "serving" or status.apply_phase is not None:
            return False
        ranks = [rank for host in self.cluster.hosts for rank in self.cluster.children(host, "rank")]
        records = [record for host in self.cluster.hosts for record in self.cluster.records(host)]
        return (
            len(ranks) == len(status.ranks)
            and len({rank.generation for rank in ranks}) == 1
            and {record.plan_hash for record in records} == {status.plan_hash}
            and not any(record.lock_holder for record in records)
        )


def hash_of(path: Path) -> str:
    return plan_hash(plan_from_toml(path.read_text(), file=str(path)))


@pytest.fixture(scope="module")
def standing(endless_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Layouts]:
    folder = tmp_path_factory.mktemp("plans")
    listen = free_listen()
    options = ("--name", NAME, "--listen", listen, "--strategy", "pipeline", "--stages", "2", "--min-hosts", "2")
    with open_cluster(num_hosts=2) as cluster:
        one = cluster.plan(endless_model, folder / "one.toml", *options, "--context", "512")
        other = cluster.plan(endless_model, folder / "other.toml", *options, "--context", "1024")
        cluster.apply(one)
        yield Layouts(cluster=cluster, listen=listen, running=one, other=other)


@pytest.fixture
def layouts(standing: Layouts) -> Iterator[Layouts]:
    """Settled before the test and after it; what the test applied runs next time."""
    until(standing.has_settled, timeout_s=40.0, what=lambda: standing.cluster.try_status(CONTROLLER, NAME))
    yield standing
    if standing.serving_hash() == hash_of(standing.other):
        standing.running, standing.other = standing.other, standing.running


def start_apply(layouts: Layouts, *options: str) -> subprocess.Popen[str]:
    return layouts.cluster.start_odctl("apply", str(layouts.other), "--yes", *options)


def wait_for_phase(apply: subprocess.Popen[str], phase: ApplyPhase, word: str = "") -> None:
    """Its progress says that the phase has begun, or this of it."""
    assert apply.stderr is not None
    seen = []
    for line in apply.stderr:
        seen.append(line)
        if line.split()[1:2] == [phase] and line.rstrip().endswith(word):
            return
    raise AssertionError(f"apply ended before {phase}: {''.join(seen)}")


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    for pipe in (process.stdout, process.stderr):
        assert pipe is not None
        pipe.close()


def finish(layouts: Layouts) -> None:
    """A second apply of the same plan does what is left, and nothing of the old layout remains."""
    data = layouts.cluster.apply(layouts.other)
    assert data["state"] in ("applied", "unchanged")
    until(layouts.has_settled, timeout_s=40.0, what=lambda: layouts.cluster.try_status(CONTROLLER, NAME))
    assert layouts.serving_hash() == hash_of(layouts.other)
    assert ask(layouts.listen, NAME)


@pytest.mark.parametrize("phase", EVERY_PHASE)
def test_a_killed_operator_changes_nothing(layouts: Layouts, phase: ApplyPhase) -> None:
    """1. the operator dies as the phase begins  2. the controller goes on  3. a second apply joins it, or finds
    it done. No request fails.
    """
    with Asker(layouts.listen, NAME) as asker:
        apply = start_apply(layouts)
        wait_for_phase(apply, phase)
        kill(apply)
        finish(layouts)
    assert asker.failures == [], layouts.cluster.diary()
    assert len(asker.answers) > 3


@pytest.mark.parametrize("phase", EVERY_PHASE)
def test_a_killed_controller_takes_back_or_finishes(layouts: Layouts, phase: ApplyPhase) -> None:
    """1. the apply stands after the phase  2. the controller's agent dies, the keeper starts it again  3. until
    the switch the old layout serves on, from there the new one  4. a second apply finishes the job.
    """
    old, new = hash_of(layouts.running), hash_of(layouts.other)
    cluster = layouts.cluster
    cluster.restart_keeper(CONTROLLER)
    with Asker(layouts.listen, NAME) as asker:
        apply = start_apply(layouts, "--stop-after", phase)
        wait_for_phase(apply, phase, "held")
        killed = cluster.kill_agent(CONTROLLER)
        apply.communicate(timeout=30)
        assert apply.returncode == 4, "the operator is told that the controller went away"
        cluster.wait_agent(CONTROLLER, not_pid=killed)
        expected = old if phase in BEFORE_SWITCH else new
        until(layouts.has_settled, timeout_s=40.0, what=lambda: cluster.try_status(CONTROLLER, NAME))
        assert layouts.serving_hash() == expected
        assert ask(layouts.listen, NAME)
        finish(layouts)
    assert asker.failures == [], layouts.cluster.diary()
    assert len(asker.answers) > 3


def test_a_second_apply_right_after_the_controller_died_waits_for_its_recovery(layouts: Layouts) -> None:
    cluster = layouts.cluster
    cluster.restart_keeper(CONTROLLER)
    with Asker(layouts.listen, NAME) as asker:
        apply = start_apply(layouts, "--stop-after", "switch")
        wait_for_phase(apply, "switch", "held")
        killed = cluster.kill_agent(CONTROLLER)
        apply.communicate(timeout=30)
        cluster.wait_agent(CONTROLLER, not_pid=killed)
        finish(layouts)
    assert asker.failures == [], layouts.cluster.diary()


def test_a_held_apply_is_released_by_a_second_one(layouts: Layouts) -> None:
    """Its operator died; whoever applies the same plan joins it and says how far it goes."""
    apply = start_apply(layouts, "--stop-after", "fetch")
    wait_for_phase(apply, "fetch", "held")
    kill(apply)
    generation = layouts.generation
    finish(layouts)
    assert layouts.generation == generation + 1, "joined, not begun anew"


def test_an_aborted_apply_leaves_the_old_layout_and_no_trace(layouts: Layouts) -> None:
    before = layouts.generation
    apply = start_apply(layouts, "--stop-after", "check")
    wait_for_phase(apply, "check", "held")
    layouts.cluster.abort(CONTROLLER, NAME)
    _, errors = apply.communicate(timeout=60)
    assert apply.returncode == 1
    assert "aborted on request" in errors
    until(layouts.has_settled, timeout_s=40.0)
    assert layouts.serving_hash() == hash_of(layouts.running)
    assert layouts.generation == before


def test_ctrl_c_rolls_back_and_exits_130(layouts: Layouts) -> None:
    apply = start_apply(layouts, "--stop-after", "link")
    wait_for_phase(apply, "link", "held")
    apply.send_signal(signal.SIGINT)
    _, errors = apply.communicate(timeout=60)
    assert apply.returncode == 130, errors
    assert "roll back" in errors
    until(layouts.has_settled, timeout_s=40.0)
    assert layouts.serving_hash() == hash_of(layouts.running)


def test_after_the_switch_an_abort_comes_too_late_and_says_so(layouts: Layouts) -> None:
    apply = start_apply(layouts, "--stop-after", "switch")
    wait_for_phase(apply, "switch", "held")
    apply.send_signal(signal.SIGINT)
    _, errors = apply.communicate(timeout=60)
    assert "goes on" in errors
    until(layouts.has_settled, timeout_s=40.0)
    assert layouts.serving_hash() == hash_of(layouts.other)
