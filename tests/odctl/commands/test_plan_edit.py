"""`odctl plan edit`: what options mean, what is written, and what never is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from agent.errors import FleetError
from agent.planner.edit import (
    AddStage,
    Basis,
    Edit,
    Edited,
    MoveBoundary,
    PlaceStage,
    RemoveStage,
    Replan,
    SetServing,
    SetTensor,
    ShareHeads,
    apply_edit,
    begin_edit,
)
from agent.planner.file import is_edited, plan_from_toml, plan_to_toml
from odctl.cli import main
from odctl.commands.plan_edit import computed_anew, edits_of, outcome
from odctl.editing import located, write_plan_file
from odctl.result import ExitCode, Result
from tests.agent.planner.clusters import LLAMA_1B, cluster, cpu, host, plan_for

SMALL = cluster(host("a", cpu(2.4)), host("b", cpu(2.4)), host("c", cpu(8)))
BASIS = Basis(LLAMA_1B, SMALL)
BEFORE = begin_edit(plan_for(LLAMA_1B, SMALL, stages=2, hosts=("a", "b")), BASIS)
TEXT = plan_to_toml(BEFORE.plan)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(TEXT)
    return path


def finish(after: Edited, path: Path, **options: Any) -> Result:
    asked: dict[str, Any] = {"output": "", "check": False, "force": False} | options
    return outcome(BEFORE, after, (), facts=SMALL, path=path, text=TEXT, **asked)


def edited(*edits: Edit) -> Edited:
    after = BEFORE
    for edit in edits:
        after = apply_edit(after, edit, BASIS)
    return after


def test_options_become_edits_in_the_order_that_the_help_tells() -> None:
    assert edits_of(
        boundaries=("0.0=+2", "0.1=-1"),
        shares=("0.1=5,3",),
        tensors=("0.1=2",),
        placed=(("0.1", "c/cpu, d/cpu"),),
        added=(("0.0", "c/cpu"),),
        removed=("0.0", "0.2"),
        settings=("context=4096",),
        pin="b",
        exclude="a,c",
    ) == [
        Replan(excluded=("a", "c"), pinned=("b",)),
        SetServing(field="context", value="4096"),
        RemoveStage(replica=0, stage=2),
        RemoveStage(replica=0, stage=0),
        AddStage(replica=0, stage=0, devices=("c/cpu",)),
        PlaceStage(replica=0, stage=1, devices=("c/cpu", "d/cpu")),
        SetTensor(replica=0, stage=1, size=2),
        ShareHeads(replica=0, stage=1, kv_heads=(5, 3)),
        MoveBoundary(replica=0, stage=0, layers=2),
        MoveBoundary(replica=0, stage=1, layers=-1),
    ]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"boundaries": ("0.0",)}, "--move-boundary '0.0' is no edit"),
        ({"boundaries": ("0=+1",)}, "--move-boundary '0' is no edit"),
        ({"boundaries": ("0.0=1,2",)}, "--move-boundary '0.0=1,2' is no edit"),
        ({"tensors": ("0.0=two",)}, "--tensor '0.0=two' is no edit"),
        ({"settings": ("context",)}, "--set 'context' is no edit"),
        ({"removed": ("first",)}, "--remove-stage 'first' is no edit"),
    ],
)
def test_an_option_that_is_no_edit_is_named_with_an_example(options: dict[str, Any], named: str) -> None:
    with pytest.raises(FleetError) as caught:
        edits_of(**options)
    assert caught.value.code == "E113"
    assert caught.value.message == named
    assert caught.value.hint.startswith(f"write {named.split(maxsplit=1)[0]} ")


def test_a_sound_plan_is_written_with_before_and_after(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "edited.toml"
    after = edited(MoveBoundary(replica=0, stage=0, layers=-2))
    result = finish(after, path, output=str(target))
    assert result.exit_code is ExitCode.OK
    assert plan_from_toml(target.read_text(), file="edited.toml") == after.plan
    assert not is_edited(target.read_text(), after.plan), "its hash is that of its content"
    assert path.read_text() == TEXT
    first = BEFORE.plan.replicas[0].stages[0].layers[1]
    assert f"layers 0-{first - 1}, " in result.prose
    assert f"layers 0-{first - 3}, " in result.prose
    assert "of 2.4 GB" in result.prose
    assert "time per token" in result.prose
    assert result.data["comparison"]["changes"][0]["layers_moved"] == (first - 2, first - 1)


def test_without_output_the_plan_itself_is_replaced(path: Path) -> None:
    path.chmod(0o640)
    after = edited(SetServing(field="context", value=1024))
    assert finish(after, path).exit_code is ExitCode.OK
    assert "context = 1024" in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(path.parent.iterdir()) == [path], "nothing is left beside it"


@pytest.mark.parametrize("force", [False, True])
def test_what_does_not_fit_is_never_written(path: Path, force: bool, capsys: pytest.CaptureFixture[str]) -> None:
    after = edited(SetServing(field="batch", value=400))
    assert {problem.code for problem in after.problems} == {"E601"}
    result = finish(after, path, force=force)
    assert result.exit_code is ExitCode.DOES_NOT_FIT
    assert path.read_text() == TEXT
    assert "not written: 2 problems" in result.prose
    assert result.data["is_written"] is False
    told = capsys.readouterr().err
    assert "error[E601]: replica[0].stage[0].shard[0]: a/cpu is" in told
    assert "shrink the batch" in told


def test_check_writes_nothing_and_says_whether_it_would(path: Path) -> None:
    changed = finish(edited(SetServing(field="batch", value=2)), path, check=True)
    assert (changed.exit_code, path.read_text()) == (ExitCode.CHANGES, TEXT)
    assert finish(BEFORE, path, check=True).exit_code is ExitCode.OK


def test_a_dash_gives_the_plan_on_stdout(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    after = edited(SetServing(field="batch", value=2))
    assert finish(after, path, output="-").prose == plan_to_toml(after.plan)
    assert "decode, batch 2" in capsys.readouterr().err


def test_a_file_that_is_there_is_replaced_only_when_that_is_said(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text("mine")
    done = CliRunner().invoke(main, ["plan", "edit", str(path), "--set", "batch=2", "-o", str(other)])
    assert done.exit_code == 3
    assert "is there already" in done.stderr
    assert other.read_text() == "mine"
    with pytest.raises(FleetError) as caught:
        write_plan_file(other, "new", replaces=False)
    assert caught.value.code == "E119"
    assert other.read_text() == "mine"
    write_plan_file(other, "new", replaces=True)
    assert other.read_text() == "new"
    with pytest.raises(FleetError, match="No such file"):
        write_plan_file(tmp_path / "none" / "plan.toml", "new", replaces=True)


def test_a_hand_written_boundary_needs_no_bytes(path: Path) -> None:
    first = BEFORE.plan.replicas[0].stages[0].layers[1]
    text = TEXT.replace(f"layers = [0, {first}]", f"layers = [0, {first - 1}]")
    text = text.replace(f"layers = [{first}, 16]", f"layers = [{first - 1}, 16]").replace(
        'name = "chat"', 'name = "x"'
    )
    after = computed_anew(text, path, BEFORE, BASIS)
    assert after.problems == ()
    moved = apply_edit(BEFORE, MoveBoundary(replica=0, stage=0, layers=-1), BASIS).plan
    assert after.plan.replicas == moved.replicas
    assert after.plan.predicted == moved.predicted
    assert after.plan.name == "x"
    assert after.plan.why[0].startswith("edited by hand: ")


def test_hand_written_trouble_is_told_at_its_line(path: Path) -> None:
    first = BEFORE.plan.replicas[0].stages[0].layers[1]
    gap = TEXT.replace(f"layers = [{first}, 16]", f"layers = [{first + 1}, 16]")
    line = gap.splitlines().index(f"  layers = [{first + 1}, 16]") + 1
    with pytest.raises(FleetError) as caught:
        computed_anew(gap, path, BEFORE, BASIS)
    assert f"{path}:{line}:12   replica[0].stage[1].layers" in caught.value.message
    assert f"let it begin at {first}" in caught.value.message
    heavy = computed_anew(TEXT.replace("batch = 8", "batch = 400"), path, BEFORE, BASIS)
    told = located(TEXT, heavy.problems, file="plan.toml").message
    assert "error[E601]" in told
    assert "replica[0].stage[1].shard[0]" in told


def test_edit_is_a_subcommand_and_every_other_word_a_model(tmp_path: Path) -> None:
    def said(*arguments: str) -> str:
        done = CliRunner().invoke(main, ["-i", str(tmp_path / "none.toml"), "plan", *arguments])
        assert done.exit_code == 3 or "--help" in arguments
        return done.output

    assert "Usage: main plan edit [OPTIONS] PLAN" in said("edit", "--help")
    assert "odctl plan edit PLAN" in said("--help")
    assert "there is no" in said("./edit"), "a model by that name asks for the inventory as any other"
    assert "there is no" in said("some-model", "-o", "plan.toml")
    assert "edit.toml" in said("edit", str(tmp_path / "edit.toml"), "--set", "batch=2")


def test_no_edit_and_no_terminal_is_no_hanging_editor(path: Path) -> None:
    done = CliRunner().invoke(main, ["plan", "edit", str(path), "--json"])
    assert done.exit_code == 3
    assert json.loads(done.stdout)["data"]["code"] == "E111"
    assert "there is no terminal for an editor" in done.stderr
