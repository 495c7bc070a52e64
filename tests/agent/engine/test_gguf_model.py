"""GGUF models of every quantisation and family, whole and sharded, against transformers reading the same file."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from agent.models.fetch import fetch_shard, shard_path
from agent.models.manifest import read_manifest
from agent.models.sources import DirectorySource
from agent.models.spec import read_spec
from tests.agent.engine.models import stage
from tests.agent.engine.threads import Stages, run_threads
from tests.gguf_files import K_QUANTS, QUANTISABLE, ROPE_LLAMA3, SIZES, random_model, reference_of, write_gguf

MAX_DIFFERENCE = 1e-3
TOKENS = random.Random(3).choices(range(SIZES["vocab_size"]), k=24)
CHUNKS = [15, 1, 8]
ENDS = torch.tensor(CHUNKS).cumsum(0) - 1
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"head_dim": 64}),
    "llama-linear": (
        "llama",
        {"head_dim": 64, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "gemma2": (
        "gemma2",
        {"head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 8, "tie_word_embeddings": True},
    ),
    "gemma3": (
        "gemma3_text",
        {
            "head_dim": 64,
            "query_pre_attn_scalar": 64,
            "sliding_window": 8,
            "num_hidden_layers": 6,
            "tie_word_embeddings": True,
        },
    ),
    "phi3": ("phi3", {"original_max_position_embeddings": 512, "sliding_window": None}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 64}),
    "qwen3moe": (
        "qwen3_moe",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 256,
            "head_dim": 64,
            "norm_topk_prob": True,
        },
    ),
}


def logits_of(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return torch.as_tensor(model(torch.tensor([TOKENS])).logits[0])[ENDS]


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1))


@pytest.mark.parametrize("quantisation", [*QUANTISABLE, *K_QUANTS])
def test_every_quantisation_has_transformers_logits(quantisation: str, tmp_path: Path) -> None:
    path = tmp_path / f"m-{quantisation}.gguf"
    write_gguf(random_model("llama", head_dim=64), path, quantisation)
    spec = read_spec(path)
    assert spec.stored_as == quantisation
    stages: Stages = [stage(spec, (0, 1)), stage(spec, (1, 2), (1, 1))]
    with run_threads(spec, stages, model_dir=path, folder=tmp_path) as replica:
        ours = replica.logits(TOKENS, CHUNKS)
    assert difference(ours, logits_of(reference_of(path))) < MAX_DIFFERENCE


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_transformers_logits(name: str, tmp_path: Path) -> None:
    family, choices = FAMILIES[name]
    model = random_model(family, **choices)
    path = tmp_path / f"{name}.gguf"
    write_gguf(model, path, "F32")
    spec = read_spec(path)
    half = spec.num_layers // 2
    stages: Stages = [stage(spec, (0, half), (1, 1)), stage(spec, (half, spec.num_layers))]
    with run_threads(spec, stages, model_dir=path, folder=tmp_path) as replica:
        ours = replica.logits(TOKENS, CHUNKS)
    assert difference(ours, logits_of(model)) < MAX_DIFFERENCE


def test_the_divisors_of_llama_3s_frequencies_count(tmp_path: Path) -> None:
    model = random_model("llama", head_dim=64, rope_parameters=ROPE_LLAMA3)
    path = tmp_path / "llama3.gguf"
    write_gguf(model, path, "F32")
    spec = read_spec(path)
    with run_threads(spec, [stage(spec, (0, 2))], model_dir=path, folder=tmp_path) as replica:
        ours = replica.logits(TOKENS, CHUNKS)
    assert difference(ours, logits_of(model)) < MAX_DIFFERENCE
    plain = random_model("llama", head_dim=64, rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    assert difference(ours, logits_of(plain)) > 10 * MAX_DIFFERENCE


@pytest.mark.parametrize("quantisation", ["Q4_K", "Q8_0"])
async def test_fetched_shards_hold_blocks_and_compute_the_same(quantisation: str, tmp_path: Path) -> None:
    model = random_model("llama", head_dim=64)
    files = write_gguf(model, tmp_path / "m.gguf", quantisation, split_max_tensors=9)
    assert len(files) > 1, "a split set was asked for"
    manifest = read_manifest(files[0], cache_dir=tmp_path / "cache")
    spec = manifest.spec
    # the two shares of 512 columns meet on a block's border, the heads of o_proj inside a block of 256
    stages: Stages = [stage(spec, (0, 2), (1, 1))]
    shards = []
    for extent in stages[0]:
        sources = [DirectorySource(files[0])]
        await fetch_shard(spec, manifest.digest, extent, target_dir=tmp_path / "there", sources=sources)
        shards.append(shard_path(tmp_path / "there", spec, extent))
    stored = sum(file.stat().st_size for file in files)
    assert sum(shard.stat().st_size for shard in shards) < 1.3 * stored
    names = [str(shard) for shard in shards]
    with run_threads(spec, stages, model_dir=tmp_path, folder=tmp_path, shard_files=names) as replica:
        fetched = replica.logits(TOKENS, CHUNKS)
    with run_threads(spec, [stage(spec, (0, 2))], model_dir=files[0], folder=tmp_path) as replica:
        unsharded = replica.logits(TOKENS, CHUNKS)
    assert difference(fetched, unsharded) < 1e-4
