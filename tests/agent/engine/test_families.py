"""The families beyond Llama's kin, sharded, against transformers in float32."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from agent.engine.weights import load_weights
from agent.facts.model import Quantisation
from agent.models.ranges import ranges_of, read_ranges
from agent.planner.shards import shard_weight_bytes, slice_shard
from tests.agent.engine.models import FURTHER_FAMILIES, Reference, stage
from tests.agent.engine.test_decoder import LAYOUTS, MAX_DIFFERENCE, random_tokens
from tests.agent.engine.threads import run_threads

CHUNKS = [19, 12, 1, 1, 7]


@pytest.mark.parametrize("layout", ["pipeline_3", "tensor_2_uneven", "hybrid_wide_last"])
@pytest.mark.parametrize("family", FURTHER_FAMILIES)
def test_logits_equal_transformers(
    family: str, layout: str, reference: Callable[[str], Reference], folder: Path
) -> None:
    model = reference(family)
    tokens = random_tokens(40, seed=7)  # five times as long as the windows
    with run_threads(model.spec, LAYOUTS[layout](model.spec), model_dir=model.path, folder=folder) as replica:
        for config in replica.configs:
            planned = shard_weight_bytes(model.spec, config.extent, "float32")
            assert replica.boards[config.rank_id].weight_bytes == planned
        ours = replica.logits(tokens, CHUNKS)
    ends = torch.tensor(CHUNKS).cumsum(0) - 1
    assert (ours - model.logits(tokens)[ends]).abs().max().item() < MAX_DIFFERENCE


@pytest.mark.parametrize("family", FURTHER_FAMILIES)
def test_greedy_tokens_of_an_unequal_batch_equal_transformers(
    family: str, reference: Callable[[str], Reference], folder: Path
) -> None:
    model = reference(family)
    prompts = {0: random_tokens(5, seed=1), 2: random_tokens(37, seed=2), 3: random_tokens(16, seed=3)}
    layout = LAYOUTS["unsharded"](model.spec)
    with run_threads(model.spec, layout, model_dir=model.path, folder=folder) as replica:
        made = replica.generate(prompts, 64, chunk=16)
    for slot, prompt in prompts.items():
        assert made[slot] == model.generate(prompt, 64), f"slot {slot}"


def test_long_factors_are_used_where_the_context_is_longer_than_the_original(
    reference: Callable[[str], Reference], folder: Path
) -> None:
    model = reference("phi4_long")
    tokens = random_tokens(40, seed=9)
    layout = LAYOUTS["unsharded"](model.spec)
    with run_threads(model.spec, layout, model_dir=model.path, folder=folder) as replica:
        ours = replica.logits(tokens, [30, 10])
    assert (ours - model.logits(tokens)[[29, 39]]).abs().max().item() < MAX_DIFFERENCE


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "phi4", "mixtral", "qwen3moe"])
def test_bfloat16_is_as_close_to_float32_as_transformers_is(
    family: str, reference: Callable[[str], Reference], folder: Path
) -> None:
    model = reference(family)
    tokens = random_tokens(24, seed=6)
    layout = LAYOUTS["unsharded"](model.spec)
    with run_threads(model.spec, layout, model_dir=model.path, folder=folder, dtype="bfloat16") as replica:
        ours = replica.logits(tokens, [16, 8])
    exact = model.logits(tokens)[[15, 23]]
    with torch.inference_mode():
        theirs = copy.deepcopy(model.model).bfloat16()(torch.tensor([tokens])).logits[0, [15, 23]].float()
    assert (ours - exact).norm().item() < 1.5 * (theirs - exact).norm().item()


@pytest.mark.parametrize("family", ["phi3", "qwen3moe"])
def test_a_fetched_shard_computes_the_same(
    family: str, reference: Callable[[str], Reference], folder: Path, tmp_path: Path
) -> None:
    """Fused tensors and experts by their byte ranges, as a host fetches them, in a file that has no others."""
    model = reference(family)
    tokens = random_tokens(20, seed=8)
    layout = [stage(model.spec, (0, 4), (3, 1))]
    files = []
    for index, extent in enumerate(layout[0]):
        slices = slice_shard(model.spec, extent)
        tensors = {}
        for piece, place in zip(slices, ranges_of(model.spec, slices), strict=True):
            content = bytearray(b"".join(read_ranges(model.path, [place])))
            tensors[piece.name] = torch.frombuffer(content, dtype=torch.float32).view(piece.sliced_shape)
        assert sum(tensor.nbytes for tensor in tensors.values()) == shard_weight_bytes(
            model.spec, extent, "float32"
        )
        files.append(tmp_path / f"{index}.safetensors")
        save_file(tensors, files[-1])
    with run_threads(
        model.spec, layout, model_dir=tmp_path, folder=folder, shard_files=[str(file) for file in files]
    ) as replica:
        ours = replica.logits(tokens, [12, 8])
    assert (ours - model.logits(tokens)[[11, 19]]).abs().max().item() < MAX_DIFFERENCE


@pytest.mark.parametrize("quantisation", ["int8", "int4"])
@pytest.mark.parametrize("family", ["gemma2", "phi4", "qwen3moe"])
def test_quantised_bytes_are_those_planned(
    family: str, quantisation: Quantisation, reference: Callable[[str], Reference]
) -> None:
    """Experts one by one, the router in its dtype, a tied head as a copy."""
    model = reference(family)
    for extent in stage(model.spec, (0, 4), (3, 1)):
        held = load_weights(
            model.spec,
            extent,
            shard_file="",
            model_dir=str(model.path),
            kind=torch.bfloat16,
            device=torch.device("cpu"),
            on_read=lambda _: None,
            quantisation=quantisation,
        )
        assert held.num_bytes == shard_weight_bytes(model.spec, extent, "bfloat16", quantisation)
