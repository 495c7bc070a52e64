"""A host drained on a real lab, its logs followed, its agent restarted: through `odctl`, as an operator does it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.planner.file import plan_from_toml
from agent.wire.agent import Done
from agent.wire.host import RestartAgent
from tests.integration.cluster import Cluster, free_listen, is_running, open_cluster, until

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with open_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def serving(cluster: Cluster, endless_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """`chat` runs in two stages on two of three hosts: its controller, and a host of it that is not."""
    path = tmp_path_factory.mktemp("drain") / "plan.toml"
    cluster.plan(
        endless_model, path, "--stages", "2", "--name", "chat", "--context", "256", "--listen", free_listen()
    )
    cluster.apply(path)
    plan = plan_from_toml(path.read_text(), file="plan.toml")
    hosts = [stage.shards[0].host for stage in plan.replicas[0].stages]
    other = next(host for host in hosts if host != plan.controllers[0])
    return plan.controllers[0], other


def test_a_dry_run_shows_what_would_move_and_moves_nothing(cluster: Cluster, serving: tuple[str, str]) -> None:
    controller, host = serving
    before = cluster.wait_serving(controller, "chat")
    answer = cluster.odctl("drain", host, "--dry-run", "--json")
    assert answer.exit_code == 0, answer
    (deployment,) = answer.data["deployments"]
    assert (answer.data["state"], deployment["name"]) == ("dry_run", "chat")
    assert any(line.startswith(f"- {host}/") for line in deployment["changes"])
    assert cluster.status(controller, "chat").generation == before.generation


def test_an_agent_is_restarted_by_what_keeps_it_and_its_ranks_live_on(
    cluster: Cluster, serving: tuple[str, str]
) -> None:
    controller, host = serving
    cluster.wait_serving(controller, "chat")
    agent, rank = cluster.agent_pid(host), cluster.children(host, "rank", "chat")[0]
    body = msgspec.msgpack.encode(RestartAgent(by="the tests"))
    said = msgspec.msgpack.decode(cluster._ask(host, "POST", "/v1/restart", body=body), type=Done).message
    assert "the keeper starts it again" in said
    assert cluster.wait_agent(host, not_pid=agent) != agent
    assert is_running(rank.pid)
    assert "AgentRestartAsked" in {event.kind for event in cluster.events(host)}
    cluster.wait_serving(controller, "chat")


def test_a_drained_host_serves_nothing_and_the_deployment_goes_on(
    cluster: Cluster, serving: tuple[str, str]
) -> None:
    """1. drained: its ranks are gone, the deployment serves. 2. once more: there is nothing to do."""
    controller, host = serving
    before = cluster.wait_serving(controller, "chat")
    answer = cluster.odctl("drain", host, "--yes", "--json")
    assert answer.exit_code == 0, answer
    assert answer.data["state"] == "drained"
    status = until(
        lambda: next((found for name in cluster.hosts if (found := cluster.try_status(name, "chat"))), None),
        what="the deployment's controller",
    )
    assert status.state == "serving"
    assert status.generation > before.generation
    assert host not in {rank.host for rank in status.ranks}
    until(lambda: not cluster.children(host, "rank", "chat"), what="the end of its ranks")
    again = cluster.odctl("drain", host, "--yes", "--json")
    assert (again.exit_code, again.data["state"]) == (0, "unchanged")
    history = cluster.must("history", "chat")
    assert f"host {host} is drained" in str(history)


def test_a_host_that_cannot_be_spared_is_refused_and_nothing_changes(endless_model: Path, tmp_path: Path) -> None:
    """A cluster of one: there is nowhere to go."""
    with open_cluster(num_hosts=1) as small:
        (host,) = small.hosts
        path = small.plan(
            endless_model, tmp_path / "plan.toml", "--name", "chat", "--context", "256", "--listen", free_listen()
        )
        small.apply(path)
        before = small.wait_serving(host, "chat")
        answer = small.odctl("drain", host, "--yes", "--json")
        assert answer.exit_code == 8, answer
        assert f"chat cannot do without {host}" in answer.data["message"]
        after = small.wait_serving(host, "chat")
        assert (after.generation, after.plan_hash) == (before.generation, before.plan_hash)
        unknown = small.odctl("drain", "nobody", "--yes")
        assert (unknown.exit_code, host in unknown.stderr) == (3, True), unknown


def test_logs_of_all_hosts_are_one_story_and_can_be_followed(cluster: Cluster, serving: tuple[str, str]) -> None:
    data = cluster.must("logs", "--tail", "50")
    entries = data["entries"]
    assert {entry["host"] for entry in entries} == set(cluster.hosts)
    assert {"journal", "agent"} <= {entry["source"] for entry in entries}
    assert any(entry["source"].startswith("chat-") for entry in entries), "ranks' logs are there too"
    times = [entry["at_s"] for entry in entries]
    assert times == sorted(times)
    only = cluster.must("logs", "--grep", "level=info name=journal AgentStarted")["entries"]
    assert {entry["text"] for entry in only} == {"AgentStarted"}
    bad = cluster.odctl("logs", "--grep", "level=loud")
    assert (bad.exit_code, "level=loud" in bad.stderr) == (3, True)
    assert cluster.odctl("logs", "nobody").exit_code == 3

    host = next(iter(cluster.hosts))
    process = cluster.start_odctl("logs", host, "--follow", "--tail", "1", "--json")
    try:
        assert process.stdout is not None
        first = msgspec.json.decode(process.stdout.readline())
        assert (first["kind"], first["data"]["host"]) == ("log_entry", host)
        (cluster.hosts[host].prefix / "var" / "log" / "extra.log").write_text("a line of the test\n")
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            entry = msgspec.json.decode(process.stdout.readline())["data"]
            if entry["source"] == "extra":
                break
        assert entry["text"] == "a line of the test"
    finally:
        process.terminate()
        process.communicate(timeout=20)
