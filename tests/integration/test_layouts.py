"""One deployment from layout to layout: what is fetched and held, who may change it, and what clients notice."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from agent.errors import FleetError
from agent.models.spec import read_spec
from agent.planner.file import plan_from_toml, plan_to_toml
from agent.planner.layout import extent_of
from agent.planner.memory import shard_bytes
from agent.planner.plan import Plan, Replica, rank_places
from agent.wire.agent import ApplyEvent
from odctl.apply import apply_plan, preview_apply
from odctl.fleet import open_fleet
from odctl.inventory import load_inventory
from odctl.result import ExitCode, exit_code_of
from tests.integration.clients import Asker, ask
from tests.integration.cluster import Cluster, free_listen, open_cluster, set_memory_fraction, until
from tests.integration.models import write_endless_model
from tests.odctl.plugins import HALVES, write_distribution

NAME = "chat"
PIPELINE = ("--strategy", "pipeline", "--stages", "2", "--min-hosts", "2", "--exclude", "h3")
"""On h1 and h2, whatever runs of earlier tests said of their link."""
HYBRID = ("--strategy", "hybrid", "--tensor", "1,2", "--min-hosts", "3")


class Room(msgspec.Struct):
    """A lab of three hosts, a model that none of them has, and a place for plans."""

    cluster: Cluster
    model: Path
    folder: Path
    listen: str

    def plan(self, file: str, *options: str, listen: str = "", controller: str = "h1") -> Path:
        common = ("--name", NAME, "--listen", listen or self.listen, "--controller", controller, "--context", "512")
        return self.cluster.plan(self.model, self.folder / file, *common, *options)


@pytest.fixture(scope="module")
def room(endless_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    with open_cluster(num_hosts=3) as cluster:
        yield Room(
            cluster=cluster, model=endless_model, folder=tmp_path_factory.mktemp("plans"), listen=free_listen()
        )


@pytest.fixture
def empty(room: Room) -> Room:
    """Nothing is deployed."""
    destroy(room.cluster)
    return room


def destroy(cluster: Cluster) -> None:
    if any(record.generation for host in cluster.hosts for record in cluster.records(host)):
        cluster.must("destroy", NAME, "--yes")


def read(path: Path) -> Plan:
    return plan_from_toml(path.read_text(), file=str(path))


def fetched_bytes(progress: str) -> dict[str, int]:
    """By host, as the apply's progress says."""
    idle = re.findall(r"fetch +(\S+) progress: already there", progress)
    busy = re.findall(r"fetch +(\S+) progress: fetched (\d+) bytes", progress)
    return dict.fromkeys(idle, 0) | {host: int(count) for host, count in busy}


def weights_by_host(plan: Plan) -> dict[str, int]:
    return {place.shard.host: place.shard.bytes.weights for place in rank_places(plan)}


def anonymous_bytes(pid: int) -> int:
    """Resident memory of the process's own: weights, caches, the interpreter's and torch's heaps."""
    line = re.search(r"^RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert line is not None
    return int(line[1]) * 1024


def test_only_own_tensors_are_fetched_and_exactly_the_planned_bytes_held(empty: Room) -> None:
    """1. the operator brings the model to the controller  2. other hosts fetch their shard, byte for byte
    3. each rank holds what was planned  4. applied again, nothing is fetched.
    """
    cluster = empty.cluster
    path = empty.plan("first.toml", "--strategy", "pipeline", "--stages", "3", "--min-hosts", "3")
    plan = read(path)
    answer = cluster.odctl("apply", str(path), "--yes")
    assert answer.exit_code == 0, answer
    small = sum(file.stat().st_size for file in empty.model.iterdir() if file.suffix != ".safetensors")
    weights = weights_by_host(plan)
    fetched = fetched_bytes(answer.stderr)
    assert fetched["h1"] == 0, "it was brought there whole"
    for host in ("h2", "h3"):
        assert fetched[host] == weights[host] + small
    for view in cluster.status("h1", NAME).ranks:
        assert view.status is not None
        assert view.status.weight_bytes == weights[view.host]
        assert view.status.read_bytes == weights[view.host]
    destroy(cluster)
    answer = cluster.odctl("apply", str(path), "--yes")
    assert fetched_bytes(answer.stderr) == {"h1": 0, "h2": 0, "h3": 0}


@pytest.mark.slow
def test_resident_memory_grows_by_the_planned_weights(empty: Room) -> None:
    """Against a rank of a tiny model, which has the same interpreter, libraries and buffers."""
    cluster = empty.cluster
    large_model = write_endless_model(empty.folder / "large", layers=16, hidden=512, vocab=1024)
    held = []
    for model, file in ((empty.model, "tiny.toml"), (large_model, "large.toml")):
        room = msgspec.structs.replace(empty, model=model)
        path = room.plan(file, *PIPELINE, "--batch", "1")
        cluster.apply(path)
        assert ask(empty.listen, NAME)
        ranks = {rank.rank_id: rank for host in cluster.hosts for rank in cluster.children(host, "rank")}
        held.append({
            place.shard.host: (anonymous_bytes(ranks[place.rank_id].pid), place.shard.bytes)
            for place in rank_places(read(path))
        })  # fmt: skip
        destroy(cluster)
    tiny, large = held
    for host in tiny.keys() & large.keys():
        planned = large[host][1].weights - tiny[host][1].weights
        caches = large[host][1].kv_cache + large[host][1].activations
        grown = large[host][0] - tiny[host][0]
        assert planned > 50e6
        assert 0.98 * planned <= grown <= 1.02 * planned + caches, (host, grown, planned, caches)


def test_another_layout_takes_over_without_one_failed_request(empty: Room) -> None:
    cluster = empty.cluster
    cluster.apply(empty.plan("pipeline.toml", *PIPELINE))
    old = {rank.pid for host in cluster.hosts for rank in cluster.children(host, "rank")}
    path = empty.plan("hybrid.toml", *HYBRID)
    assert [stage.tensor_parallel_size for stage in read(path).replicas[0].stages] == [1, 2]
    askers = [Asker(empty.listen, NAME) for _ in range(3)]
    with askers[0], askers[1], askers[2]:
        until(lambda: all(asker.answers for asker in askers))
        cluster.apply(path)
        counts = [len(asker.answers) for asker in askers]
        until(lambda: all(len(asker.answers) > n + 2 for asker, n in zip(askers, counts, strict=True)))
    assert [asker.failures for asker in askers] == [[], [], []]
    texts = {text for asker in askers for _, _, text in asker.answers}
    assert len(texts) == 1, "another layout, the same model, the same greedy answer"
    ranks = {rank.pid for host in cluster.hosts for rank in cluster.children(host, "rank")}
    assert len(ranks) == 3
    assert not ranks & old


def test_the_listen_address_and_the_gateway_host_can_change(empty: Room) -> None:
    cluster, other = empty.cluster, free_listen()
    cluster.apply(empty.plan("here.toml", *PIPELINE))
    cluster.apply(empty.plan("there.toml", *PIPELINE, listen=other))
    assert ask(other, NAME)
    assert [gateway.listen for gateway in cluster.children("h1", "gateway")] == [other]
    third = free_listen()
    cluster.apply(empty.plan("on_h2.toml", *PIPELINE, listen=third, controller="h2"))
    until(lambda: not cluster.children("h1", "gateway"), what="the end of the old gateway")
    assert [gateway.listen for gateway in cluster.children("h2", "gateway")] == [third]
    assert ask(third, NAME)
    status = cluster.wait_serving("h2", NAME)
    assert (status.controller, status.gateway_host) == ("h2", "h2")
    assert cluster.try_status("h1", NAME) is None, "the former controller has let go of it"


def test_a_controller_that_had_no_part_relieves_all_that_leave(empty: Room) -> None:
    """There and back: whoever leaves forgets the deployment, and can be given a part again."""
    cluster, other = empty.cluster, free_listen()
    first = empty.plan("first.toml", *PIPELINE, "--exclude", "h3")
    cluster.apply(first)
    second = empty.plan("second.toml", "--exclude", "h1,h2", listen=other, controller="h3")
    cluster.apply(second)
    assert ask(other, NAME)
    until(lambda: cluster.records("h1") == cluster.records("h2") == (), what="h1 and h2 to forget")
    for host in ("h1", "h2"):
        assert cluster.children(host, "rank") == []
        assert cluster.children(host, "gateway") == []
    cluster.apply(first)
    assert ask(empty.listen, NAME)
    assert cluster.status("h1", NAME).generation == 3
    until(lambda: cluster.records("h3") == (), what="h3 to forget")
    assert cluster.children("h3", "rank") == []


def test_a_controller_that_had_no_part_leaves_what_runs_alone_when_it_fails(empty: Room) -> None:
    cluster = empty.cluster
    cluster.apply(empty.plan("first.toml", *PIPELINE, "--exclude", "h3"))
    ranks = {rank.pid for rank in cluster.children("h2", "rank")}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        path = empty.plan("second.toml", *PIPELINE, "--exclude", "h1", listen=listen, controller="h3")
        refused = cluster.odctl("apply", str(path), "--yes")
    assert refused.exit_code != ExitCode.OK
    assert {rank.pid for rank in cluster.children("h2", "rank")} == ranks, "the old generation's, and no other"
    assert cluster.records("h3") == ()
    assert ask(empty.listen, NAME)


def test_an_old_generation_is_refused(empty: Room) -> None:
    """Two operators looked at the same state; the slower one is told what happened."""
    cluster = empty.cluster
    one, two = empty.plan("one.toml", *PIPELINE), empty.plan("two.toml", *PIPELINE, "--batch", "4")
    inventory = load_inventory(cluster.lab.inventory_path)

    async def apply_late(meanwhile: Callable[[], object]) -> ApplyEvent:
        async with open_fleet(inventory) as fleet:
            preview = await preview_apply(fleet, read(two), cluster=inventory.cluster)
            await asyncio.to_thread(meanwhile)

            async def ignore(event: ApplyEvent) -> None:
                assert event.phase == "prepare", event

            return await apply_plan(fleet, preview, on_event=ignore, holder="the slower operator")

    with pytest.raises(FleetError, match="at generation 1, not at 0") as refusal:
        asyncio.run(apply_late(lambda: cluster.apply(one)))
    assert refusal.value.code == "E401"
    assert exit_code_of(refusal.value) == ExitCode.STALE
    assert ask(empty.listen, NAME)
    assert cluster.status("h1", NAME).plan_hash == cluster.records("h2")[0].plan_hash
    assert not any(record.lock_holder for host in cluster.hosts for record in cluster.records(host))


def test_a_second_operator_is_locked_out_while_an_apply_runs(empty: Room) -> None:
    cluster = empty.cluster
    one, two = empty.plan("one.toml", *PIPELINE), empty.plan("two.toml", *PIPELINE, "--batch", "4")
    cluster.apply(one)
    held = cluster.start_odctl("apply", str(two), "--yes", "--stop-after", "start")
    assert held.stderr is not None
    assert any("held" in line for line in held.stderr)
    three = empty.plan("three.toml", *PIPELINE, "--batch", "2")
    refused = cluster.odctl("apply", str(three), "--yes", "--json")
    assert refused.exit_code == ExitCode.LOCKED
    assert "by " in refused.data["message"]
    refused = cluster.odctl("destroy", NAME, "--yes", "--json")
    assert refused.exit_code == ExitCode.LOCKED
    # Nor through another controller: every host of both layouts holds the lock.
    elsewhere = empty.plan("elsewhere.toml", *PIPELINE, "--batch", "2", controller="h2")
    refused = cluster.odctl("apply", str(elsewhere), "--yes", "--json")
    assert refused.exit_code == ExitCode.LOCKED, refused
    cluster.abort("h1", NAME)
    held.communicate(timeout=60)
    assert ask(empty.listen, NAME)
    cluster.apply(three)


def test_a_plan_that_does_not_fit_is_refused(empty: Room) -> None:
    """Nobody wrote such a plan for this cluster: its bytes are honest, and too many."""
    path = empty.plan("fits.toml", *PIPELINE)
    plan = read(path)
    spec = read_spec(empty.model)
    serving = msgspec.structs.replace(plan.serving, batch=1_000_000)
    stages = tuple(
        msgspec.structs.replace(
            stage,
            shards=tuple(
                msgspec.structs.replace(
                    shard, bytes=shard_bytes(spec, extent_of(spec, stage.layers, shard), serving, "cpu")
                )
                for shard in stage.shards
            ),
        )
        for stage in plan.replicas[0].stages
    )
    large = msgspec.structs.replace(plan, serving=serving, replicas=(Replica(stages=stages),))
    path.write_text(plan_to_toml(large))
    refused = empty.cluster.odctl("apply", str(path), "--yes", "--json")
    assert refused.exit_code == ExitCode.DOES_NOT_FIT, refused
    assert not any(empty.cluster.children(host, "rank") for host in empty.cluster.hosts)


def test_agents_serve_a_plan_of_a_plugin_that_they_lack(
    empty: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only this machine's odctl has it; the plan is explained before and after it is a file."""
    write_distribution(tmp_path, HALVES)
    known = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{known}" if known else str(tmp_path))
    cluster = empty.cluster
    path = empty.plan("halves.toml", "--strategy", "halves", "--explain")
    plan = read(path)
    assert plan.objective.strategy == "halves"
    assert [stage.shards[0].host for stage in plan.replicas[0].stages] == ["h3", "h1"]
    monkeypatch.setenv("PYTHONPATH", known)
    shown = cluster.must("show", str(path), "--explain")
    titles = [section["title"] for section in shown["explanation"]]
    assert {"bottleneck", "what would help most", "constants"} <= set(titles)
    cluster.apply(path)
    assert ask(empty.listen, NAME)
    refused = cluster.odctl("plan", str(empty.model), "--strategy", "halves")
    assert "'halves' is not one of 'adaptive'" in refused.stderr


def test_as_many_replicas_as_fit_and_pinned_devices(empty: Room) -> None:
    most = read(empty.plan("most.toml", "--replicas", "max", "--objective", "throughput"))
    places = [(shard.host, shard.device) for replica in most.replicas for shard in replica.stages[0].shards]
    assert sorted(places) == [("h1", "cpu"), ("h2", "cpu"), ("h3", "cpu")]
    pinned = read(empty.plan("pinned.toml", "--pin", "h2/cpu", "--exclude", "h3", "--max-hosts", "1"))
    assert [shard.host for stage in pinned.replicas[0].stages for shard in stage.shards] == ["h2"]
    refused = empty.cluster.odctl("plan", str(empty.model), "--pin", "h2/cuda:0", "--json")
    assert refused.exit_code == ExitCode.BAD_FILE
    assert "no device `h2/cuda:0` in the cluster to pin" in refused.data["message"]


def test_a_plan_of_a_cluster_that_has_changed_is_refused_naming_what_moved(empty: Room) -> None:
    cluster = empty.cluster
    path = empty.plan("stale.toml", *PIPELINE)
    before = cluster.lab.inventory_path.read_text()
    set_memory_fraction(cluster.lab.inventory_path, 0.05)
    try:
        cluster.bootstrap("h2")
        refused = cluster.odctl("apply", str(path), "--yes", "--json")
        assert refused.exit_code == ExitCode.STALE, refused
        assert "h2" in refused.data["message"]
        assert "h3" not in refused.data["message"]
    finally:
        cluster.lab.inventory_path.write_text(before)
        cluster.bootstrap("h2")


def test_destroy_leaves_nothing(empty: Room) -> None:
    cluster = empty.cluster
    cluster.apply(empty.plan("one.toml", *PIPELINE))
    cluster.must("destroy", NAME, "--yes")
    for host in cluster.hosts:
        assert cluster.records(host) == ()
        assert cluster.children(host, "rank") == []
        assert cluster.children(host, "gateway") == []
        assert not list((cluster.hosts[host].prefix / "run").glob(f"{NAME}-*"))
    assert cluster.odctl("destroy", NAME, "--yes").exit_code == ExitCode.BAD_FILE


def test_destroy_with_a_host_down_says_so_and_a_later_one_cleans_up(empty: Room) -> None:
    """The agent is lost and its ranks are not: they must not be forgotten."""
    cluster = empty.cluster
    path = empty.plan("one.toml", *PIPELINE)
    cluster.apply(path)
    host = next(place.shard.host for place in rank_places(read(path)) if place.shard.host != "h1")
    stop_agent(cluster, host)
    partial = cluster.odctl("destroy", NAME, "--yes", "--json")
    assert partial.exit_code == ExitCode.PARTIAL, partial
    assert partial.data["code"] == "E301"
    assert host in partial.data["message"]
    assert cluster.children("h1", "rank") == []
    assert len(cluster.children(host, "rank")) == 1
    cluster.bootstrap(host)
    cluster.must("destroy", NAME, "--yes")
    assert cluster.children(host, "rank") == []
    assert all(cluster.records(each) == () for each in cluster.hosts)


def test_a_host_that_was_planned_around_forgets_when_it_is_back(empty: Room) -> None:
    """1. a host's agent is lost  2. the deployment moves away from it  3. it comes back: its old rank ends."""
    cluster = empty.cluster
    path = empty.plan("with_h2.toml", *PIPELINE, "--exclude", "h3")
    cluster.apply(path)
    stop_agent(cluster, "h2")
    cluster.apply(empty.plan("without_h2.toml", *PIPELINE, "--exclude", "h2"))
    assert ask(empty.listen, NAME)
    assert len(cluster.children("h2", "rank")) == 1
    cluster.bootstrap("h2")
    until(lambda: not cluster.children("h2", "rank") and cluster.records("h2") == (), timeout_s=30.0)
    assert ask(empty.listen, NAME)


def stop_agent(cluster: Cluster, host: str) -> None:
    """Keeper and agent end, ranks live on: as if the daemon had been uninstalled by hand."""
    cluster.daemon(host, "stop")
