"""Every family, sharded in every way, against transformers in float32."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from agent.facts.model import ModelSpec
from agent.planner.shards import shard_weight_bytes
from agent.wire.rank import SequenceSlice, StepFailed
from tests.agent.engine.models import FAMILIES, VOCAB_SIZE, Reference, stage
from tests.agent.engine.threads import Stages, run_threads

MAX_DIFFERENCE = 1e-4
LAYOUTS: dict[str, Callable[[ModelSpec], Stages]] = {
    "unsharded": lambda spec: [stage(spec, (0, 4))],
    "pipeline_2": lambda spec: [stage(spec, (0, 3)), stage(spec, (3, 4))],
    "pipeline_3": lambda spec: [stage(spec, (0, 1)), stage(spec, (1, 3)), stage(spec, (3, 4))],
    "tensor_2": lambda spec: [stage(spec, (0, 4), (1, 1))],
    "tensor_2_uneven": lambda spec: [stage(spec, (0, 4), (3, 1))],
    "tensor_3_uneven": lambda spec: [stage(spec, (0, 4), (2, 1, 1))],
    "hybrid_wide_first": lambda spec: [stage(spec, (0, 2), (3, 1)), stage(spec, (2, 4))],
    "hybrid_wide_last": lambda spec: [stage(spec, (0, 2)), stage(spec, (2, 4), (1, 3))],
}


def random_tokens(count: int, *, seed: int) -> list[int]:
    return random.Random(seed).choices(range(VOCAB_SIZE), k=count)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers(
    family: str, layout: str, reference: Callable[[str], Reference], folder: Path
) -> None:
    model = reference(family)
    stages = LAYOUTS[layout](model.spec)
    tokens = random_tokens(40, seed=7)
    chunks = [19, 12, 1, 1, 7]  # prefill in chunks, decode, and a chunk again
    with run_threads(model.spec, stages, model_dir=model.path, folder=folder) as replica:
        for config in replica.configs:
            planned = shard_weight_bytes(model.spec, config.extent, "float32")
            assert replica.boards[config.rank_id].weight_bytes == planned
        ours = replica.logits(tokens, chunks)
    ends = torch.tensor(chunks).cumsum(0) - 1
    assert (ours - model.logits(tokens)[ends]).abs().max().item() < MAX_DIFFERENCE


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        *((family, "unsharded") for family in FAMILIES),
        *(("llama3", layout) for layout in LAYOUTS if layout != "unsharded"),
        ("mistral", "hybrid_wide_first"),
    ],
)
def test_greedy_tokens_of_an_unequal_batch_equal_transformers(
    family: str, layout: str, reference: Callable[[str], Reference], folder: Path
) -> None:
    model = reference(family)
    prompts = {0: random_tokens(5, seed=1), 2: random_tokens(37, seed=2), 3: random_tokens(16, seed=3)}
    with run_threads(model.spec, LAYOUTS[layout](model.spec), model_dir=model.path, folder=folder) as replica:
        made = replica.generate(prompts, 64, chunk=16)
    for slot, prompt in prompts.items():
        assert made[slot] == model.generate(prompt, 64), f"slot {slot}"


def test_a_slot_can_go_back_and_be_used_again(reference: Callable[[str], Reference], folder: Path) -> None:
    model = reference("qwen3")
    first, second = random_tokens(20, seed=4), random_tokens(12, seed=5)
    with run_threads(model.spec, LAYOUTS["pipeline_2"](model.spec), model_dir=model.path, folder=folder) as replica:
        replica.logits(first, [20])
        back = replica.step([SequenceSlice(slot=0, start=8, tokens=second, samples=True)])
        replica.logits(second, [12])
        again = replica.sampler.seen[-1][1]
    joined = first[:8] + second
    assert back[0].token == int(model.logits(joined)[-1].argmax())
    assert (again - model.logits(second)[-1]).abs().max().item() < MAX_DIFFERENCE


def test_bfloat16_is_close_to_float32(reference: Callable[[str], Reference], folder: Path) -> None:
    model = reference("llama3")
    tokens = random_tokens(24, seed=6)
    layout = LAYOUTS["hybrid_wide_first"](model.spec)
    with run_threads(model.spec, layout, model_dir=model.path, folder=folder, dtype="bfloat16") as replica:
        ours = replica.logits(tokens, [16, 8])
        assert replica.boards["r0s1t0"].kv_cache_bytes == 2 * 2 * 4 * 128 * 4 * 8 * 2
    theirs = model.logits(tokens)[[15, 23]]
    assert (ours - theirs).abs().max().item() < 0.05 * theirs.abs().max().item()


def test_a_step_that_leaves_a_gap_is_refused(reference: Callable[[str], Reference], folder: Path) -> None:
    model = reference("llama2")
    with run_threads(model.spec, LAYOUTS["unsharded"](model.spec), model_dir=model.path, folder=folder) as replica:
        replica.step([SequenceSlice(slot=1, start=0, tokens=[3, 4], samples=True)])
        replica.put([SequenceSlice(slot=1, start=3, tokens=[5], samples=True)])
        failed = replica.answers.queue.get(timeout=10)
    assert isinstance(failed, StepFailed)
    assert failed.error.code == "E806"
    assert "goes on at 3, its cache holds 2" in failed.error.message
