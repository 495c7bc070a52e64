"""Errors and the noise beside them, of cases whose figures are known."""

from __future__ import annotations

import pytest

from tests.benchmarks.preview_table import Case, summary, table

CASE = Case(
    condition="equal",
    model="wide",
    layout="one device",
    shape="h2 3",
    predicted=(0.11, 0.05, 80.0),
    bounds=((0.09, 0.12), (0.03, 0.04), (70.0, 90.0)),
    passes=((0.09, 0.05, 110.0), (0.11, 0.05, 90.0)),
    planned_bytes=100,
    held_bytes=100,
    num_runs=2,
)


def test_errors_are_against_the_mean_of_the_passes_and_noise_is_one_against_the_other() -> None:
    assert CASE.measured == pytest.approx((0.1, 0.05, 100.0))
    assert [CASE.error(figure) for figure in range(3)] == pytest.approx([0.1, 0.0, -0.2])
    assert [CASE.drift(figure) for figure in range(3)] == pytest.approx([-2 / 11, 0.0, 2 / 9])
    text = "\n".join([*summary([CASE]), *table([CASE])])
    assert "| time to first token | 10.0% | 10.0% | 1 of 1 | 18.2% | 18.2% | **missed** |" in text
    assert "| time per token | 0.0% | 0.0% | 0 of 1 | 0.0% | 0.0% | met |" in text
    assert "| throughput | 20.0% | 20.0% | 0 of 1 | 22.2% | 22.2% | **missed** |" in text
    assert "| 110, 100 ms (+10%) | 50, 50 ms (+0%) | 80, 100  (-20%) | -18%, +0%, +22% |" in text
