"""What the assumed cost of a step makes of micro-batches and chunks."""

from __future__ import annotations

from agent.serving.step_cost import ROW_COST, count_micro_batches, cut_prompt, least_acceptance


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
    assert 0.05 < least_acceptance(1) < 0.1
    assert least_acceptance(16) == 0.5
