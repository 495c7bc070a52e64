"""Which files of a directory are plans, and what reading one says when it is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import FleetError
from agent.planner.file import plan_to_toml
from odctl.tui import plan_folder
from odctl.tui.plan_folder import find_plans, read_choice
from tests.odctl.tui import frozen_fleet as frozen


def test_plans_are_found_by_name_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_text(plan_to_toml(frozen.plan("b")))
    (tmp_path / "a.toml").write_text(plan_to_toml(frozen.plan("a")))
    (tmp_path / "inventory.toml").write_text('[cluster]\nname = "lab"\n')
    (tmp_path / "broken.toml").write_text(plan_to_toml(frozen.plan()).replace("version = 1", "version = 9"))
    (tmp_path / "torn.toml").write_text(plan_to_toml(frozen.plan())[:-40] + '"')
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "plan.txt").write_text(plan_to_toml(frozen.plan("c")))
    found = find_plans(tmp_path)
    assert [file.path for file in found] == ["a.toml", "b.toml", "broken.toml", "torn.toml"]
    assert [file.choice.plan.name if file.choice is not None else "" for file in found] == ["a", "b", "", ""]
    assert "plan version 9 is not 1" in found[2].error
    assert found[3].error
    assert find_plans(tmp_path / "none") == ()


def test_a_directory_of_large_and_many_files_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_folder, "MOST_FILES", 3)
    for name in "abcde":
        (tmp_path / f"{name}.toml").write_text(plan_to_toml(frozen.plan(name)))
    assert [file.path for file in find_plans(tmp_path)] == ["a.toml", "b.toml", "c.toml"]
    monkeypatch.setattr(plan_folder, "MOST_BYTES", 10)
    assert find_plans(tmp_path) == ()


def test_a_file_that_is_none_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="No such file") as refusal:
        read_choice(str(tmp_path / "none.toml"))
    assert refusal.value.code == "E101"
    (tmp_path / "plan.toml").write_text(plan_to_toml(frozen.plan("new")))
    assert read_choice(str(tmp_path / "plan.toml")).plan.name == "new"
