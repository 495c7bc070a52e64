from __future__ import annotations

import itertools

import pytest

from agent.planner.make import make_plan
from agent.planner.pareto import Choice, pareto_choices
from agent.planner.plan import Objective, ObjectiveKind
from tests.agent.planner.clusters import LLAMA_1B, LLAMA_70B, MIXED_GPUS, THREE_CPUS, request


def costs(choice: Choice) -> tuple[float, ...]:
    return (
        choice.time_per_token_s,
        choice.ttft_s,
        -choice.tokens_per_s,
        -choice.context,
        choice.joules_per_token,
    )


def test_no_choice_beats_another_in_everything() -> None:
    choices = pareto_choices(request(LLAMA_70B, MIXED_GPUS))
    assert len(choices) >= 2
    for one, other in itertools.permutations(choices, 2):
        assert any(a > b for a, b in zip(costs(one), costs(other), strict=True))
    assert sorted(kind for choice in choices for kind in choice.best_at) == sorted(
        ["latency", "ttft", "throughput", "context", "energy"]
    )


@pytest.mark.parametrize("kind", ["latency", "ttft", "throughput", "energy"])
def test_the_best_choice_is_at_least_as_good_as_the_objectives_own_plan(kind: ObjectiveKind) -> None:
    best = next(c for c in pareto_choices(request(LLAMA_1B, THREE_CPUS)) if kind in c.best_at)
    plan = make_plan(request(LLAMA_1B, THREE_CPUS, objective=Objective(kind=kind)))
    match kind:
        case "latency":
            assert best.time_per_token_s <= plan.predicted.time_per_token_s
        case "ttft":
            assert best.ttft_s <= plan.predicted.ttft_s
        case "throughput":
            assert best.tokens_per_s >= plan.predicted.tokens_per_s * (1 - 1e-5)
        case _:
            assert all(
                best.joules_per_token <= c.joules_per_token for c in pareto_choices(request(LLAMA_1B, THREE_CPUS))
            )


def test_the_context_of_a_choice_is_one_that_fits_and_the_next_does_not() -> None:
    choice = next(c for c in pareto_choices(request(LLAMA_70B, MIXED_GPUS)) if "context" in c.best_at)
    plan = make_plan(request(LLAMA_70B, MIXED_GPUS, objective=Objective(kind="context")))
    assert 2048 <= choice.context <= plan.serving.context


def test_choices_keep_the_slos() -> None:
    free = pareto_choices(request(LLAMA_70B, MIXED_GPUS))
    bound = sorted(choice.time_per_token_s for choice in free)[0] * 1.01
    held = pareto_choices(request(LLAMA_70B, MIXED_GPUS, max_time_per_token_s=bound))
    assert held
    assert all(choice.time_per_token_s <= bound for choice in held)
    assert pareto_choices(request(LLAMA_70B, MIXED_GPUS, max_time_per_token_s=1e-9)) == ()
