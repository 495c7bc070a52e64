"""Words for quantities that several places tell in the same way."""

from __future__ import annotations

from agent.planner.words import runs, runs_words


def test_numbers_without_a_gap_are_told_as_one_run() -> None:
    assert runs([0, 1, 2, 5, 7, 8]) == [range(3), range(5, 6), range(7, 9)]
    assert runs_words([0, 1, 2, 5, 7, 8]) == ["0-2", "5", "7-8"]
    assert runs_words([]) == []
