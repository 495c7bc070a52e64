"""What the assumed cost of a step makes of micro-batches and chunks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.planner.step_cost import ROW_COST, count_micro_batches, count_paying_guesses, cut_prompt


def test_micro_batches_grow_before_there_are_more_of_them() -> None:
    assert [count_micro_batches(running, 2) for running in (1, 4, 7, 8, 64)] == [1, 1, 1, 2, 2]
    assert [count_micro_batches(running, 4) for running in (1, 8, 12, 16, 64)] == [1, 2, 3, 4, 4]
    assert count_micro_batches(64, 1) == 1


def test_a_chunk_is_as_long_as_makes_the_prompt_soonest_done() -> None:
    def pipeline_time(chunk: int, tokens: int, stages: int) -> float:
        count = -(-tokens // chunk)
        return (count + stages - 1) * (1 + ROW_COST * tokens / count) / stages

    for tokens in (512, 2048, 8192):
        for stages in (2, 3, 5):
            chosen = pipeline_time(cut_prompt(tokens, stages, 4096), tokens, stages)
            assert chosen <= 1.05 * min(pipeline_time(chunk, tokens, stages) for chunk in range(64, 2048, 16))
    assert cut_prompt(4096, 1, 256) == 256
    assert cut_prompt(1 << 20, 2, 256) == 256


def test_a_guess_must_be_surer_the_fuller_the_step() -> None:
    def least_acceptance(num_rows: int, draft_cost: float = 0.0) -> float:
        chances = (percent / 100 for percent in range(101))
        return next(
            chance
            for chance in chances
            if count_paying_guesses(chance, num_rows=num_rows, limit=1, draft_cost=draft_cost)
        )

    assert least_acceptance(1) == 0.06
    assert least_acceptance(16) == 0.5
    assert least_acceptance(1, draft_cost=0.2) == 0.25
    assert least_acceptance(4, draft_cost=0.2) == pytest.approx(0.36, abs=0.011)
    assert count_paying_guesses(1.0, num_rows=1, limit=8, draft_cost=1.1) == 0


@given(st.floats(0, 0.99), st.integers(1, 32), st.integers(0, 12), st.floats(0, 1.5))
def test_no_other_number_of_guesses_makes_more_tokens_of_the_time(
    acceptance: float, num_rows: int, limit: int, draft_cost: float
) -> None:
    def tokens_per_time(count: int) -> float:
        right = sum(acceptance**index for index in range(1, count + 1))
        return (num_rows + right) / (1 + ROW_COST * (num_rows + count) + draft_cost * count / num_rows)

    chosen = count_paying_guesses(acceptance, num_rows=num_rows, limit=limit, draft_cost=draft_cost)
    assert tokens_per_time(chosen) >= max(map(tokens_per_time, range(limit + 1))) * (1 - 1e-9)
