"""Plans measured alone and beside what serves, and a deployment's history and way back. One lab, in order."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.facts.cluster import HostFacts
from agent.planner.file import plan_from_toml, plan_hash, plan_to_toml
from agent.planner.plan import Plan
from tests.integration.clients import ask
from tests.integration.cluster import Cluster, free_listen, open_cluster, set_memory_fraction

NAME = "chat"
CONTROLLER = "h1"
SMALL = ("--requests", "2", "--concurrency", "2", "--prompt-tokens", "16", "--max-tokens", "6", "--hosts", "h1,h2")


class Standing(msgspec.Struct):
    """Two plans of one model: `one` on h1 alone, `two` on both hosts."""

    cluster: Cluster
    listen: str
    one: Path
    two: Path

    def serving(self) -> tuple[int, str]:
        status = self.cluster.wait_serving(CONTROLLER, NAME)
        return status.generation, status.plan_hash

    def names(self) -> set[str]:
        return {record.name for host in self.cluster.hosts for record in self.cluster.records(host)}


@pytest.fixture(scope="module")
def empty(endless_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    folder = tmp_path_factory.mktemp("plans")
    listen = free_listen()
    options = ("--name", NAME, "--listen", listen, "--context", "512", "--batch", "2")
    split = ("--strategy", "pipeline", "--stages", "2", "--min-hosts", "2")
    with open_cluster(num_hosts=2) as cluster:
        one = cluster.plan(endless_model, folder / "one.toml", *options, "--max-hosts", "1")
        two = cluster.plan(endless_model, folder / "two.toml", *options, *split)
        yield Standing(cluster=cluster, listen=listen, one=one, two=two)


@pytest.fixture(scope="module")
def standing(empty: Standing) -> Standing:
    """`one` serves as generation 1; for the tests below the first one."""
    empty.cluster.apply(empty.one)
    return empty


def test_plans_are_measured_one_after_the_other_and_nothing_is_left(empty: Standing) -> None:
    """1. both are applied in turn, under their own name and address  2. every request is answered  3. nothing of
    them is left  4. their controller keeps what was measured.
    """
    cluster = empty.cluster
    answer = cluster.odctl("compare", str(empty.one), str(empty.two), "--measure", "--yes", "--json", *SMALL)
    assert answer.exit_code == 2, answer.stderr
    measured = answer.data["measured"]
    assert measured["before"] == measured["after"] == {}
    assert [plan["error"] for plan in measured["plans"]] == [None, None]
    for plan, path in zip(measured["plans"], (empty.one, empty.two), strict=True):
        assert plan["deployment"] == NAME
        assert plan["plan_hash"] == plan["applied_hash"] == hash_of(path)
        assert (plan["alone"]["num_answered"], plan["full"]["num_answered"]) == (2, 2)
        assert [figure["name"] for figure in plan["held"]] == [
            "time to first token",
            "time per token",
            "throughput",
        ]
        assert all(figure["ratio"] > 0 for figure in plan["held"])
        # A stretch alone and one together; a busy controller may not see the pause between them.
        assert plan["evidence"] in (1, 2)
    assert {verdict["objective"] for verdict in measured["verdicts"]} == {"ttft", "latency", "throughput"}
    assert all(verdict["agrees"] in (True, False) for verdict in measured["verdicts"])
    assert empty.names() == set()
    entries = cluster.must("history")["deployments"][NAME]
    assert [(entry["cause"], entry["state"]) for entry in entries] == [("measure", "destroyed")] * 2
    assert {figures["source"] for figures in entries[1]["measured"]} == {"check", "window"}
    assert cluster.odctl("rollback", NAME, "--yes").exit_code == 3, (
        "what was only measured is nothing to go back to"
    )


def test_hosts_where_something_serves_are_measured_only_when_they_are_named(standing: Standing) -> None:
    answer = standing.cluster.odctl("compare", str(standing.one), str(standing.two), "--measure", "--yes")
    assert answer.exit_code == 7
    assert f"{standing.one} needs h1, where {NAME} serves" in answer.stderr
    assert "--hosts h1" in answer.stderr
    assert standing.names() == {NAME}


def test_without_a_yes_and_a_terminal_nothing_is_applied(standing: Standing) -> None:
    answer = standing.cluster.odctl("compare", str(standing.one), str(standing.two), "--measure", *SMALL)
    assert answer.exit_code == 3
    assert "--yes" in answer.stderr
    assert standing.names() == {NAME}


def test_ctrl_c_half_way_takes_away_what_is_measured_and_what_serves_is_untouched(standing: Standing) -> None:
    before = standing.serving()
    one = str(standing.one)
    options = ("--requests", "4000", *SMALL[2:])
    compare = standing.cluster.start_odctl("compare", one, one, "--measure", "--yes", "--json", *options)
    assert compare.stderr is not None
    seen = ""
    while "round 1 of 1" not in seen:
        line = compare.stderr.readline()
        assert line, f"it ended before the load: {seen}"
        seen += line
    names = standing.names() - {NAME}
    assert ask(standing.listen, NAME)
    compare.send_signal(signal.SIGINT)
    out, errors = compare.communicate(timeout=60)
    assert compare.returncode == 130, errors
    measured = json.loads(out)["data"]["measured"]
    (plan,) = measured["plans"]
    assert plan["is_interrupted"]
    assert names == {plan["deployment"]}
    assert plan["deployment"].startswith(f"{NAME}-measure-")
    assert plan["applied_hash"] != plan["plan_hash"] == before[1]
    assert measured["is_restored"]
    assert standing.serving() == before
    assert standing.names() == {NAME}


def test_a_plan_edited_by_hand_is_rolled_back_and_the_history_tells(standing: Standing, tmp_path: Path) -> None:
    """1. edited and applied  2. rolled back to the plan before  3. again: to the edited one  4. by number."""
    cluster = standing.cluster
    first = standing.serving()[1]
    edited = tmp_path / "edited.toml"
    edited.write_text(standing.one.read_text().replace("queue = 512", "queue = 7"))
    assert hash_of(edited) != first
    cluster.apply(edited)
    shown = cluster.odctl("rollback", NAME, "--dry-run")
    assert shown.exit_code == 0
    assert "~ serving.queue: 7 -> 512" in shown.stdout
    assert "dry run: nothing changed" in shown.stdout
    assert "back to generation 1" in shown.stderr
    data = cluster.must("rollback", NAME, "--yes")
    assert (data["state"], data["to_generation"], data["generation"], data["plan_hash"]) == ("applied", 1, 3, first)
    assert standing.serving() == (3, first)
    assert ask(standing.listen, NAME)
    entries = cluster.must("history", NAME)["deployments"][NAME][-3:]
    assert [(entry["generation"], entry["cause"], entry["state"]) for entry in entries] == [
        (1, "apply", "replaced"),
        (2, "apply", "replaced"),
        (3, "rollback", "current"),
    ]
    assert entries[2]["reason"] == "to generation 1"
    assert entries[1]["plan_toml"] == plan_text(edited)
    assert cluster.must("rollback", NAME, "--yes", "--to", "3")["state"] == "unchanged"
    unknown = cluster.odctl("rollback", NAME, "--yes", "--to", "9")
    assert unknown.exit_code == 3
    assert "known: 1, 2, 3" in unknown.stderr


def test_an_unknown_deployment_has_no_history(standing: Standing) -> None:
    answer = standing.cluster.odctl("history", "nobody")
    assert answer.exit_code == 3
    assert f"known: {NAME}" in answer.stderr


def test_less_memory_refuses_a_measurement_and_a_rollback(standing: Standing, tmp_path: Path) -> None:
    """1. hosts may use half more than the deployment takes  2. a second one of it finds no room beside the first
    3. the plans of before are stale, for a rollback as for an apply. Nothing was changed.
    """
    cluster = standing.cluster
    before = standing.serving()
    device = cluster.get(CONTROLLER, "/v1/facts", HostFacts).devices[0]
    held = plan_of(standing.one).replicas[0].stages[0].shards[0].bytes.total
    set_memory_fraction(cluster.lab.inventory_path, 1.5 * held / device.memory_bytes)
    cluster.bootstrap()
    now = tmp_path / "now.toml"
    cluster.plan(
        Path(plan_of(standing.one).model.path), now, "--name", NAME, "--context", "512", "--max-hosts", "1"
    )
    answer = cluster.odctl("compare", str(now), str(now), "--measure", "--yes", *SMALL)
    assert answer.exit_code == 8, answer
    assert f"error[E601]: {CONTROLLER}: {now}" in answer.stderr
    assert f"of {NAME}" in answer.stderr
    stale = cluster.odctl("rollback", NAME, "--yes", "--to", "2")
    assert stale.exit_code == 6
    assert "the plan is stale" in stale.stderr
    assert standing.serving() == before


def plan_of(path: Path) -> Plan:
    return plan_from_toml(path.read_text(), file=str(path))


def hash_of(path: Path) -> str:
    return plan_hash(plan_of(path))


def plan_text(path: Path) -> str:
    """As the writer writes it: the first line of an edited file has the hash of before."""
    return plan_to_toml(plan_of(path))
