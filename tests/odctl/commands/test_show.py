from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from agent.planner.file import plan_hash, plan_to_toml
from odctl.cli import main
from odctl.commands.show import hosts_left_out
from odctl.inventory import parse_inventory
from tests.agent.planner.clusters import LLAMA_1B, THREE_CPUS, plan_for


def odctl(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture
def plan_path(tmp_path: Path) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(plan_to_toml(plan_for(LLAMA_1B, THREE_CPUS, stages=3)))
    return path


def test_a_plan_is_drawn_with_its_prediction_and_its_reasons(plan_path: Path) -> None:
    result = odctl("show", str(plan_path), "--width", "80")
    assert result.exit_code == 0
    plan = plan_for(LLAMA_1B, THREE_CPUS, stages=3)
    for name in ("a/cpu", "b/cpu", "c/cpu"):
        assert name in result.stdout
    assert all(line in result.stdout for line in plan.why)
    assert f"plan {plan_hash(plan)[:12]}\n" in result.stdout
    assert "\nasked  3 stages\n" in result.stdout
    assert result.stderr == ""


def test_json_is_the_whole_plan(plan_path: Path) -> None:
    result = odctl("show", str(plan_path), "--json")
    shown = json.loads(result.stdout)
    plan = plan_for(LLAMA_1B, THREE_CPUS, stages=3)
    assert (shown["schema"], shown["kind"]) == ("1.0", "plan")
    assert shown["data"]["hash"] == plan_hash(plan)
    assert shown["data"]["is_edited"] is False
    assert shown["data"]["plan"]["asked"] == {"stages": 3}
    assert shown["data"]["plan"]["predicted"]["ttft_s"] == plan.predicted.ttft_s


def test_a_change_by_hand_is_told(plan_path: Path) -> None:
    plan_path.write_text(plan_path.read_text().replace("queue = 512", "queue = 5"))
    assert "edited by hand" in odctl("show", str(plan_path)).stdout


def test_a_bad_file_exits_3_with_every_problem_on_stderr(plan_path: Path) -> None:
    plan_path.write_text(
        plan_path.read_text().replace("batch = ", "bacth = ").replace("version = 1", "version = 9")
    )
    result = odctl("show", str(plan_path))
    assert result.exit_code == 3
    assert result.stdout == ""
    assert result.stderr.count("error[E10") == 2
    assert "did you mean `batch`?" in result.stderr


def test_a_missing_or_binary_file_exits_3(tmp_path: Path) -> None:
    assert odctl("show", str(tmp_path / "none.toml")).exit_code == 3
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    result = odctl("show", str(binary))
    assert result.exit_code == 3
    assert "is not UTF-8" in result.stderr


FIVE = parse_inventory(
    '[cluster]\nname = "lab"\n'
    + "".join(
        f'[hosts.{name}]\ntransport = "local"\nhome = "/{name}"\n'
        f'cluster_port = {port}\nlabels = {{ rack = "{rack}" }}\n'
        for port, (name, rack) in enumerate(zip("abcde", "xxxyy", strict=True), 7001)
    ),
    path=Path("inventory.toml"),
)


def test_a_plan_is_explained_on_the_hosts_that_it_was_to_be_chosen_from(capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_for(LLAMA_1B, THREE_CPUS, controllers=("a",), selected="rack=x", left_out=("b",))
    told = hosts_left_out(plan, FIVE)
    assert told == {
        "b": "excluded",
        "d": "not selected by --hosts rack=x",
        "e": "not selected by --hosts rack=x",
    }
    kept = msgspec.structs.replace(plan, controllers=("a", "b"))
    assert "b" not in hosts_left_out(kept, FIVE), "the plan needs it all the same"
    away = msgspec.structs.replace(plan, model=msgspec.structs.replace(plan.model, source_host="d"))
    assert "d" not in hosts_left_out(away, FIVE), "it has the model"
    assert hosts_left_out(msgspec.structs.replace(plan, asked=None), FIVE) == {}
    assert capsys.readouterr().err == ""
    gone = plan_for(LLAMA_1B, THREE_CPUS, controllers=("a",), selected="rack=z")
    assert hosts_left_out(gone, FIVE) == {}
    assert "warning: the plan was asked for --hosts rack=z" in capsys.readouterr().err
