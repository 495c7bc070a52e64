"""The benchmarks' own bookkeeping: alternation, results on disk, the table, and what of a document it replaces."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks import table as table_room
from tests.benchmarks.alternate import Measured, alternate
from tests.benchmarks.rows import ROWS
from tests.benchmarks.table import BEGIN, END, Result, Results, table, write_document

ROW = next(row for row in ROWS if row.name == "decode-bf16-1b")
PREFIX = next(row for row in ROWS if row.name == "shared-prefix")


def result(row: str, measured: Measured | None, trouble: str = "") -> Result:
    return Result(row=row, commit="abc", at="now", took_s=61.4, load=0.25, measured=measured, trouble=trouble)


def test_sides_take_turns_after_one_to_warm_up_each() -> None:
    asked: list[str] = []

    def side(name: str, figure: float) -> float:
        asked.append(name)
        return figure

    found = alternate("tokens/s", lambda: side("ours", 6.0), lambda: side("other", 4.0), rounds=3)
    assert asked == ["ours", "other"] * 4
    assert (found.ours, found.others, found.ratio) == ((6.0,) * 3, (4.0,) * 3, 1.5)


def test_the_ratio_is_the_median_of_neighbours_not_the_ratio_of_medians() -> None:
    found = Measured(unit="s", ours=(1.0, 10.0, 2.0), others=(1.0, 5.0, 4.0))
    assert found.ratios == (1.0, 2.0, 0.5)
    assert found.ratio == 1.0


def test_rows_have_names_of_their_own_and_every_goal_of_the_engine() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    goals = {row.name: row.goal for row in ROWS if row.goal is not None and row.other != "transformers"}
    assert {goals[name] for name in goals} >= {0.97, 1.0, 1.6, 1.4, 3.0, 1.5, 1.8, 4.0, 2.0, 0.2, 0.5}


def test_a_goal_is_met_from_its_own_side() -> None:
    assert [ROW.is_met(ratio) for ratio in (0.96, 0.97, 1.2)] == [False, True, True]
    assert [PREFIX.is_met(ratio) for ratio in (0.19, 0.2, 0.3)] == [True, True, False]


def test_the_table_tells_figures_verdicts_and_what_is_missing(tmp_path: Path) -> None:
    results = Results(tmp_path / "results")
    results.keep(result(ROW.name, Measured(unit="tokens/s", ours=(8.0, 9.0), others=(10.0, 10.0), note="n")))
    results.keep(result(PREFIX.name, None, "odctl plan: no such option"))
    text = table((ROW, PREFIX), Results(tmp_path / "results"))
    assert "| 8.5 tokens/s | 10 tokens/s | **0.85** (0.80..0.90) | >= 0.97 **missed** |" in text
    assert "abc, 61 s, load 0.2; n |" in text
    assert "not available: odctl plan: no such option | <= 0.2 |" in text


def test_a_document_keeps_what_is_around_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = tmp_path / "benchmarks.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    monkeypatch.setattr(table_room, "DOCUMENT", document)
    write_document("new")
    assert document.read_text() == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
