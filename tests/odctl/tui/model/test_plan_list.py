"""The list of plans: who is on it, in which order, and what `c` compares."""

from __future__ import annotations

from agent.errors import ErrorDetail
from agent.planner.file import plan_hash
from odctl.tui.model.plan_list import PlanFile, PlanRows, plan_entries, to_compare, toggled
from odctl.tui.model.plans import PlanChoice
from odctl.tui.model.text import line_text
from tests.odctl.tui import frozen_fleet as frozen


def choice(name: str, *, split: int = 20, origin: str = "plan.toml") -> PlanChoice:
    plan = frozen.plan(name, split=split)
    return PlanChoice(origin=origin, plan=plan, plan_hash=plan_hash(plan))


def file(path: str, name: str, *, split: int = 20) -> PlanFile:
    return PlanFile(path=path, choice=choice(name, split=split, origin=path))


FILES = (
    file("a.toml", "chat", split=24),
    file("b.toml", "chat"),
    PlanFile(path="c.toml", choice=None, error="error[E104]: unknown key `bach`\n --> c.toml:3:1"),
)


def test_the_preview_comes_first_then_what_runs_then_files() -> None:
    preview = choice("new", origin="a.toml")
    entries = plan_entries(frozen.snapshot(), preview, FILES)
    assert [entry.key for entry in entries] == ["preview", "run:chat", "file:b.toml", "file:c.toml"]
    assert [entry.mark.word for entry in entries] == [
        "preview", "serving, gen 3", "file, it runs", "no sound plan",
    ]  # fmt: skip
    assert entries[3].name == "c.toml"


def test_a_deployment_whose_controller_is_silent_is_not_said_to_run_a_file() -> None:
    error = ErrorDetail(code="E206", message="no agent answers")
    snapshot = frozen.snapshot(deployments=(frozen.deployment(error=error),))
    entries = plan_entries(snapshot, None, FILES)
    assert [entry.mark.word for entry in entries[:3]] == ["unknown, gen 3", "file", "file"]


def test_rows_say_shape_and_prediction_and_a_broken_file_what_is_wrong() -> None:
    entries = plan_entries(frozen.snapshot(), None, FILES)
    rows = PlanRows(entries, marked=("run:chat",))
    assert line_text(rows.cell(0, "mark", 1)) == "◆"
    assert line_text(rows.cell(1, "mark", 1)) == " "
    assert line_text(rows.cell(1, "layout", 40)) == "2 stages, 2 devices on 2 hosts"
    assert line_text(rows.cell(1, "rate", 11)) == "210 tok/s"
    banner = rows.banner(3)
    assert banner is not None
    assert "unknown key `bach`" in line_text(banner[1])
    assert rows.values("rate")[3] is None, "unknown, and not 0"


def test_marks_keep_their_order_and_the_oldest_goes() -> None:
    marked: tuple[str, ...] = ()
    for key in "abcde":
        marked = toggled(marked, key)
    assert marked == ("b", "c", "d", "e")
    assert toggled(marked, "c") == ("b", "d", "e")


def test_what_is_compared() -> None:
    entries = plan_entries(frozen.snapshot(), None, FILES)

    def names(marked: tuple[str, ...], cursor: str | None) -> list[str]:
        return [each.origin for each in to_compare(entries, marked, cursor)]

    assert names(("file:b.toml", "file:a.toml", "run:chat"), None) == ["b.toml", "a.toml", "running"]
    assert names(("file:a.toml",), "run:chat") == ["a.toml", "running"], "the marked one is A"
    assert names((), "file:a.toml") == ["running", "a.toml"], "a file against what runs under its name"
    assert len(names((), "run:chat")) == 1
    assert names((), "file:c.toml") == []
    assert names(("file:c.toml", "file:a.toml"), "file:a.toml") == ["a.toml"], (
        "a broken file is compared to nothing"
    )
