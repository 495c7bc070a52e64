from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from agent.errors import FleetError
from agent.planner.file import plan_hash, plan_to_toml
from agent.planner.plan import Plan
from agent.wire.agent import DeploymentRecord
from odctl.cli import main
from odctl.commands.compare_running import running_result
from odctl.deployments import DeploymentSight
from tests.agent.planner.clusters import LLAMA_1B, THREE_CPUS, plan_for
from tests.odctl.tui import frozen_fleet as frozen


def odctl(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture
def paths(tmp_path: Path) -> tuple[str, str]:
    """One device; three stages."""
    for name, asked in (("one.toml", {}), ("three.toml", {"stages": 3})):
        (tmp_path / name).write_text(plan_to_toml(plan_for(LLAMA_1B, THREE_CPUS, **asked)))
    return str(tmp_path / "one.toml"), str(tmp_path / "three.toml")


def test_equal_plans_exit_0(paths: tuple[str, str]) -> None:
    result = odctl("compare", paths[0], paths[0])
    assert result.exit_code == 0
    assert "the plans are the same" in result.stdout


def test_plans_that_differ_exit_2_and_say_how(paths: tuple[str, str]) -> None:
    result = odctl("compare", *paths)
    assert result.exit_code == 2
    assert "A to B: " in result.stdout
    assert "adds b and c" in result.stdout
    assert "throughput" in result.stdout
    assert "to bring them (links not measured)" in result.stdout
    assert "A stops with the loss of a\n" in result.stdout
    assert "B stops with the loss of any of a, b and c" in result.stdout
    assert "less time to first token" in result.stdout
    assert "energy per token" in result.stdout
    assert "  least to most" in result.stdout
    assert "B  asked for 3 stages\n" in result.stdout
    assert "A  asked for" not in result.stdout


def test_json_has_metrics_verdicts_and_moves(paths: tuple[str, str]) -> None:
    result = odctl("compare", *paths, "--json")
    assert result.exit_code == 2
    data = json.loads(result.stdout)["data"]
    assert data["is_same"] is False
    assert {metric["name"] for metric in data["metrics"]} >= {"time per token", "memory peak"}
    assert data["changes"][0]["hosts_added"] == ["b", "c"]


def test_one_plan_alone_or_a_missing_one_exits_3(paths: tuple[str, str]) -> None:
    assert odctl("compare", paths[0]).exit_code == 3
    assert odctl("compare", paths[0], paths[0] + ".none").exit_code == 3


def test_options_of_a_measurement_alone_exit_3(paths: tuple[str, str]) -> None:
    result = odctl("compare", *paths, "--requests", "4", "--yes")
    assert result.exit_code == 3
    assert "--requests, --yes without --measure" in result.stderr


def test_a_load_that_no_context_holds_is_refused_before_the_fleet_is_asked(paths: tuple[str, str]) -> None:
    result = odctl("compare", *paths, "--measure", "--prompt-tokens", "5000")
    assert result.exit_code == 3
    assert "prompts of 5000 tokens and answers of 128 do not fit the context of 2048" in result.stderr


def test_more_clients_than_the_way_carries_are_refused(paths: tuple[str, str]) -> None:
    result = odctl("compare", *paths, "--measure", "--concurrency", "17")
    assert result.exit_code == 3
    assert "17 at a time: the way through a host's transport carries 16" in result.stderr


def test_running_takes_one_plan(paths: tuple[str, str]) -> None:
    result = odctl("compare", "--running", *paths)
    assert result.exit_code == 3
    assert "2 plans given: --running compares one" in result.stderr


def running(plan: Plan) -> DeploymentSight:
    status = frozen.status(plan_toml=plan_to_toml(plan), plan_hash=plan_hash(plan), generation=4)
    record = DeploymentRecord(name="chat", generation=4, plan_hash=plan_hash(plan), controller="a", members=())
    return DeploymentSight(record=record, status=status)


def test_a_plan_is_held_against_what_its_deployment_runs() -> None:
    one, three = plan_for(LLAMA_1B, THREE_CPUS), plan_for(LLAMA_1B, THREE_CPUS, stages=3)
    same = running_result(one, running(one), path=Path("one.toml"))
    assert same.exit_code == 0
    other = running_result(three, running(one), path=Path("three.toml"))
    assert other.exit_code == 2
    assert "running generation 4" in other.prose
    moved = other.data["layers_moved"]
    assert f"{len(moved)} layers change hosts or shares" in other.prose
    weights = [shard.bytes.weights for stage in three.replicas[0].stages for shard in stage.shards]
    stays = one.replicas[0].stages[0].shards[0].host
    hosts = [shard.host for stage in three.replicas[0].stages for shard in stage.shards]
    expected = sum(num_bytes for num_bytes, host in zip(weights, hosts, strict=True) if host != stays)
    assert other.data["bytes_to_move"] == pytest.approx(expected, abs=16 * 3)


def test_a_plan_of_no_deployment_is_all_new_and_a_silent_controller_is_an_error() -> None:
    plan = plan_for(LLAMA_1B, THREE_CPUS)
    new = running_result(plan, None, path=Path("one.toml"))
    assert new.exit_code == 2
    assert "chat is not deployed: all of it is new" in new.prose
    silent = msgspec.structs.replace(running(plan), status=None, trouble="no agent answers")
    with pytest.raises(FleetError, match="gives no answer: no agent answers"):
        running_result(plan, silent, path=Path("one.toml"))
