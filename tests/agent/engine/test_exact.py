"""Exact mode: one prompt gives one answer, whoever shares its batch, however it is cut, and again after a fault."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from agent.engine.exact import row_by_row
from agent.facts.model import Dtype, ModelSpec
from agent.wire.rank import SamplingParams
from tests.agent.engine.models import VOCAB_SIZE, Reference, stage
from tests.agent.engine.threads import Stages, ThreadReplica, plan_links, run_threads

BATCH = 16
NEW_TOKENS = 16
CASES: dict[str, tuple[str, Callable[[ModelSpec], Stages], int]] = {
    "whole": ("llama3", lambda spec: [stage(spec, (0, 4))], 6),
    "windows_softcaps": ("gemma2", lambda spec: [stage(spec, (0, 4))], 2),
    "experts": ("qwen3moe", lambda spec: [stage(spec, (0, 4))], 2),
    "tensor_2": ("llama3", lambda spec: [stage(spec, (0, 4), (3, 1))], 2),
}
"""Family, layout, and how many prompts a quick run takes: sums over a group are slow."""
WAYS = {"greedy": SamplingParams(), "seeded": SamplingParams(seed=17, temperature=1.0, top_p=0.98)}


def make_prompts(count: int) -> list[list[int]]:
    chance = random.Random(count)
    return [chance.choices(range(VOCAB_SIZE), k=chance.randrange(4, 60)) for _ in range(count)]


def answer_alone(
    replica: ThreadReplica, prompts: Sequence[list[int]], params: SamplingParams, *, chunk: int
) -> list[list[int]]:
    return [replica.generate({0: prompt}, NEW_TOKENS, chunk=chunk, params=params)[0] for prompt in prompts]


def answer_together(
    replica: ThreadReplica, prompts: Sequence[list[int]], params: SamplingParams
) -> list[list[int]]:
    answers: list[list[int]] = []
    for first in range(0, len(prompts), BATCH):
        batch = dict(enumerate(prompts[first : first + BATCH]))
        answers.extend(replica.generate(batch, NEW_TOKENS, chunk=13, params=params).values())
    return answers


def answer_after_replay(
    replica: ThreadReplica, prompts: Sequence[list[int]], answers: Sequence[list[int]], params: SamplingParams
) -> list[list[int]]:
    """The second half of each answer, from its first half and the prompt fed again at once."""
    found = []
    half = NEW_TOKENS // 2
    for prompt, answer in zip(prompts, answers, strict=True):
        whole = prompt + answer[:half]
        found.append(
            answer[:half] + replica.generate({3: whole}, NEW_TOKENS - half, chunk=len(whole), params=params)[3]
        )
    return found


def count_equal(
    model: Reference, stages: Stages, *, folder: Path, dtype: Dtype, params: SamplingParams, count: int
) -> int:
    """How many of `count` prompts give the same answer in all five ways."""
    prompts = make_prompts(count)
    with run_threads(
        model.spec, stages, model_dir=model.path, folder=folder, dtype=dtype, batch=BATCH, is_exact=True
    ) as replica:
        alone = answer_alone(replica, prompts, params, chunk=64)
        others = [
            answer_alone(replica, prompts, params, chunk=7),
            answer_alone(replica, prompts, params, chunk=16),
            answer_together(replica, prompts, params),
        ]
        replica.link(plan_links(stages, generation=2))
        others.append(answer_after_replay(replica, prompts, alone, params))
    return sum(all(other[index] == alone[index] for other in others) for index in range(count))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_a_prompt_has_one_answer(
    case: str, dtype: Dtype, way: str, reference: Callable[[str], Reference], folder: Path
) -> None:
    family, cut, count = CASES[case]
    model = reference(family)
    stages = cut(model.spec)
    assert count_equal(model, stages, folder=folder, dtype=dtype, params=WAYS[way], count=count) == count


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_a_hundred_prompts_have_one_answer_each(
    case: str, dtype: Dtype, way: str, reference: Callable[[str], Reference], folder: Path
) -> None:
    family, cut, _ = CASES[case]
    model = reference(family)
    stages = cut(model.spec)
    equal = count_equal(model, stages, folder=folder, dtype=dtype, params=WAYS[way], count=100)
    print(f"{case} {dtype} {way}: {equal} of 100")
    assert equal == 100


@pytest.mark.parametrize("function", [functional.silu, partial(functional.gelu, approximate="tanh")])
def test_rows_taken_one_by_one_do_not_depend_on_the_others(function: Callable[[Tensor], Tensor]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        rows = torch.randn(37, 1000)
        together = row_by_row(function, rows)
        assert torch.equal(together[5:20], row_by_row(function, rows[5:20]))
        assert torch.equal(together[36:], row_by_row(function, rows[36:]))
    finally:
        torch.set_num_threads(threads)
