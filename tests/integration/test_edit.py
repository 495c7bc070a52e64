"""A plan edited on a real lab: by options, in an editor on a terminal, applied, and held against what runs."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.planner.file import is_edited, plan_from_toml
from tests.integration.cluster import Cluster, free_listen, open_cluster

pytestmark = pytest.mark.timeout(180)
TERMINAL_TIMEOUT_S = 40.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with open_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def plan_path(cluster: Cluster, endless_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stages on two of three hosts; nothing runs yet."""
    path = tmp_path_factory.mktemp("edit") / "plan.toml"
    cluster.plan(
        endless_model, path, "--stages", "2", "--name", "chat", "--context", "256", "--listen", free_listen()
    )
    return path


def test_an_edited_plan_is_what_runs_after_it_is_applied(cluster: Cluster, plan_path: Path) -> None:
    """1. nothing runs; 2. a boundary is moved and applied: it runs; 3. the plan of before would move a layer."""
    new = cluster.odctl("compare", "--running", str(plan_path))
    assert (new.exit_code, "is not deployed: all of it is new" in new.stdout) == (2, True)
    edited = plan_path.with_name("edited.toml")
    answer = cluster.odctl("plan", "edit", str(plan_path), "--move-boundary", "0.0=+1", "-o", str(edited))
    assert answer.exit_code == 0, answer
    assert "time per token" in answer.stdout
    assert f"written to {edited}" in answer.stdout
    cluster.apply(edited)
    assert cluster.must("compare", "--running", str(edited))["comparison"]["is_same"]
    differs = cluster.odctl("compare", "--running", str(plan_path), "--json")
    assert differs.exit_code == 2
    assert len(differs.data["layers_moved"]) == 1
    assert differs.data["bytes_to_move"] > 0
    plan = plan_from_toml(edited.read_text(), file="edited.toml")
    assert plan.objective.strategy == "manual"
    for rank in cluster.status(plan.controllers[0], "chat").ranks:
        assert rank.status is not None
        places = [shard for stage in plan.replicas[0].stages for shard in stage.shards if shard.host == rank.host]
        assert rank.status.weight_bytes == places[0].bytes.weights, "an edited plan's bytes are those that are held"


def test_what_does_not_fit_is_shown_and_not_written(cluster: Cluster, plan_path: Path) -> None:
    before = plan_path.read_text()
    answer = cluster.odctl("plan", "edit", str(plan_path), "--set", "batch=2000000", "--force")
    assert answer.exit_code == 8
    assert "short: its shard takes" in answer.stderr
    assert plan_path.read_text() == before


def test_a_lost_host_is_planned_around(cluster: Cluster, plan_path: Path) -> None:
    used = plan_from_toml(plan_path.read_text(), file="plan.toml").replicas[0].stages[1].shards[0].host
    answer = cluster.odctl("plan", "edit", str(plan_path), "--exclude", used, "--check", "--json")
    assert answer.exit_code == 2
    shards = [shard for stage in answer.data["after"]["replicas"][0]["stages"] for shard in stage["shards"]]
    assert used not in {shard["host"] for shard in shards}
    assert len(shards) == 2


def test_an_editors_mistake_is_told_at_its_line_and_mended(
    cluster: Cluster, plan_path: Path, tmp_path: Path
) -> None:
    """The editor is run twice: first it leaves a gap between the stages, then it closes it."""
    path = tmp_path / "plan.toml"
    path.write_text(plan_path.read_text())
    first, end = plan_from_toml(path.read_text(), file="plan.toml").replicas[0].stages[0].layers
    editor = tmp_path / "editor.py"
    editor.write_text(
        "import pathlib, sys\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "text = path.read_text()\n"
        f"left, right = 'layers = [{first}, {end}]', 'layers = [{end}, 6]'\n"
        f"moved = text.replace(right, 'layers = [{end - 1}, 6]')\n"
        f"path.write_text(moved if moved != text else text.replace(left, 'layers = [{first}, {end - 1}]'))\n"
    )
    said, code = on_terminal(cluster, path, editor=f"{sys.executable} {editor}", answer="y\n")
    assert code == 0, said
    assert "error[E107]: stage 1 holds layers" in said
    assert f"  layers = [{end - 1}, 6]" in said, "the line is shown"
    assert "^^^" in said
    text = path.read_text()
    plan = plan_from_toml(text, file="plan.toml")
    assert [stage.layers for stage in plan.replicas[0].stages] == [(0, end - 1), (end - 1, 6)]
    assert not is_edited(text, plan)


def test_an_edit_that_is_given_up_is_kept(cluster: Cluster, plan_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(plan_path.read_text())
    editor = tmp_path / "editor.sh"
    editor.write_text('#!/bin/sh\nsed -i "s/^version = 1/version = 9/" "$1"\n')
    said, code = on_terminal(cluster, path, editor=f"sh {editor}", answer="n\n")
    assert code == 3
    assert "plan version 9 is not 1" in said
    kept = Path(said.split("your text is kept in ")[1].split()[0])
    assert "version = 9" in kept.read_text()
    assert path.read_text() == plan_path.read_text()


def on_terminal(cluster: Cluster, path: Path, *, editor: str, answer: str) -> tuple[str, int]:
    """`odctl plan edit` on a terminal of its own, its one question answered: all it showed, and its exit code."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "odctl", "-i", str(cluster.lab.inventory_path), "plan", "edit", str(path)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"VISUAL": editor},
    )
    os.close(theirs)
    said, deadline, is_answered = "", time.monotonic() + TERMINAL_TIMEOUT_S, False
    while time.monotonic() < deadline:
        readable, _, _ = select.select([ours], [], [], 0.1)
        if readable:
            try:
                said += os.read(ours, 65536).decode()
            except OSError:  # the other end is closed: it has ended
                break
        if "edit again?" in said and not is_answered:
            os.write(ours, answer.encode())
            is_answered = True
    os.close(ours)
    return said, process.wait(10)
