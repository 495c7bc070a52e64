"""A draft model from plan to answer: fetched where it is needed, held to the byte, right often, and never heard."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.planner.plan import draft_places, rank_places
from agent.wire.gateway import BackendStatus
from odctl.result import ExitCode
from tests.integration.clients import ask
from tests.integration.cluster import Cluster, free_listen, open_cluster, until
from tests.integration.models import write_endless_model
from tests.integration.test_layouts import destroy, fetched_bytes, read

NAME = "chat"
CONTROLLER = "h1"
NUM_TOKENS = 60
LAYOUTS = {
    "pipeline": ("--strategy", "pipeline", "--stages", "2", "--min-hosts", "2"),
    "hybrid": ("--strategy", "hybrid", "--tensor", "1,2", "--min-hosts", "3"),
}


class Room(msgspec.Struct):
    """A lab of three hosts, a model and a smaller one that has learnt from the same text, and a place for plans."""

    cluster: Cluster
    model: Path
    draft: Path
    folder: Path
    listen: str

    def plan(self, file: str, *options: str) -> Path:
        common = ("--name", NAME, "--listen", self.listen, "--controller", CONTROLLER, "--context", "512")
        return self.cluster.plan(self.model, self.folder / file, *common, *options)

    def backend(self) -> BackendStatus:
        """As `odctl status --json` tells it."""
        (deployment,) = self.cluster.must("status")["deployments"]
        return msgspec.convert(deployment["status"]["backend"], BackendStatus, strict=False)


@pytest.fixture(scope="module")
def room() -> Iterator[Room]:
    """In a place of its own: hosts are to fetch the models."""
    folder = Path(tempfile.mkdtemp(prefix="odm-"))
    model = write_endless_model(folder / "large", steps=120)
    draft = write_endless_model(folder / "small", layers=1, hidden=64, steps=120)
    with open_cluster(num_hosts=3) as cluster:
        yield Room(cluster=cluster, model=model, draft=draft, folder=folder, listen=free_listen())
    shutil.rmtree(folder)


@pytest.fixture
def empty(room: Room) -> Room:
    destroy(room.cluster)
    return room


@pytest.mark.parametrize("layout", ["pipeline", pytest.param("hybrid", marks=pytest.mark.slow)])
def test_a_draft_model_is_planned_fetched_held_and_right(layout: str, empty: Room) -> None:
    """1. an answer without one  2. the same with one, from a plan that names it  3. what it guessed was often right
    4. its rank dies, comes back with it, and goes on guessing.
    """
    cluster = empty.cluster
    cluster.apply(empty.plan("plain.toml", *LAYOUTS[layout]))
    expected = ask(empty.listen, NAME, num_predict=NUM_TOKENS)

    path = empty.plan("drafted.toml", *LAYOUTS[layout], "--draft", str(empty.draft))
    plan = read(path)
    (leader,) = draft_places(plan)
    assert plan.draft is not None
    shown = cluster.odctl("apply", str(path), "--dry-run").stdout
    assert f"draft model small ({plan.draft.weight_bytes / 1e3:.0f} kB)" in shown
    host = leader.shard.host
    is_there = host == CONTROLLER or (cluster.hosts[host].prefix / "var/models" / plan.draft.digest).exists()
    answer = cluster.odctl("apply", str(path), "--yes")
    assert answer.exit_code == 0, answer
    small = sum(file.stat().st_size for file in empty.draft.iterdir() if file.suffix != ".safetensors")
    fetched = 0 if is_there else plan.draft.weight_bytes + small
    assert fetched_bytes_of_draft(answer.stderr) == {host: fetched}
    assert ask(empty.listen, NAME, num_predict=NUM_TOKENS) == expected
    backend = empty.backend()
    assert 0 < backend.drafts_accepted <= backend.drafts_proposed < NUM_TOKENS * 2
    check_held(empty, path)

    os.kill(cluster.rank(NAME, leader.rank_id).pid, signal.SIGKILL)
    until(lambda: cluster.status(CONTROLLER, NAME).state != "serving", what="the fault")
    cluster.wait_serving(CONTROLLER, NAME)
    assert ask(empty.listen, NAME, num_predict=NUM_TOKENS) == expected
    assert empty.backend().drafts_accepted > 0
    check_held(empty, path)


def test_a_draft_model_comes_from_a_host_that_has_no_part_in_the_plan(empty: Room) -> None:
    cluster = empty.cluster
    path = empty.plan("plain.toml", *LAYOUTS["pipeline"])
    (beside,) = cluster.hosts.keys() - set(read(path).hosts)
    rare = empty.folder / "rare"
    write_endless_model(rare, layers=2, hidden=64, steps=120)
    assert cluster.odctl("models", "push", str(rare), beside).exit_code == 0
    path = empty.plan("beside.toml", *LAYOUTS["pipeline"], "--draft", "rare")
    plan = read(path)
    assert plan.draft is not None
    assert plan.draft.source_host == beside
    assert beside not in plan.hosts
    cluster.apply(path)
    assert ask(empty.listen, NAME, num_predict=NUM_TOKENS)
    assert empty.backend().drafts_accepted > 0


def check_held(room: Room, path: Path) -> None:
    """Every rank holds the planned bytes, those of the draft model on the one that draws."""
    shards = {place.rank_id: place.shard for place in rank_places(read(path))}
    for view in room.cluster.status(CONTROLLER, NAME).ranks:
        assert view.status is not None
        planned = shards[view.rank_id].bytes
        assert (view.status.weight_bytes, view.status.kv_cache_bytes) == (planned.weights, planned.kv_cache)


def fetched_bytes_of_draft(progress: str) -> dict[str, int]:
    return fetched_bytes("\n".join(line for line in progress.splitlines() if "draft model" in line))


def test_a_draft_model_that_has_changed_is_refused(empty: Room) -> None:
    copy = empty.folder / "copy"
    shutil.copytree(empty.draft, copy)
    path = empty.plan("changed.toml", *LAYOUTS["pipeline"], "--draft", str(copy))
    config = copy / "generation_config.json"
    config.write_text(config.read_text() + "\n")
    refused = empty.cluster.odctl("apply", str(path), "--yes", "--json")
    assert refused.exit_code == ExitCode.STALE, refused
    assert "copy" in refused.data["message"]


def test_a_draft_model_with_other_tokens_is_refused(empty: Room) -> None:
    """Whether it lies here or on a host, whose agent then reads its vocabulary out."""
    other = write_endless_model(empty.folder / "other", layers=1, hidden=64, vocab=640)
    planned = empty.cluster.odctl("plan", str(empty.model), "-o", "-", "--draft", str(other), "--json")
    assert planned.exit_code == ExitCode.OK, "more of the same tokens are no other ones"
    other = write_endless_model(empty.folder / "foreign", layers=1, hidden=64, reverses_text=True)
    assert empty.cluster.odctl("models", "push", str(other), "h2").exit_code == 0
    for named in (str(other), "foreign"):
        refused = empty.cluster.odctl("plan", str(empty.model), "-o", "-", "--draft", named, "--json")
        assert refused.exit_code == ExitCode.ERROR, refused
        assert refused.data["code"] == "E711"
        assert "foreign cannot draft for large: token " in refused.data["message"]


def test_a_draft_model_and_another_speculation_contradict_each_other(empty: Room) -> None:
    for options in (("--draft", str(empty.draft), "--speculation", "none"), ("--speculation", "draft_model")):
        refused = empty.cluster.odctl("plan", str(empty.model), "-o", "-", *options, "--json")
        assert refused.exit_code == ExitCode.BAD_FILE, refused
        assert refused.data["code"] == "E113"
