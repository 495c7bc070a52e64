"""Real small models of every family, written by transformers once a session."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.facts.model import ModelSpec
from agent.models.safetensors_index import DTYPE_SIZES
from agent.planner.shards import ShardExtent, slice_shard

HIDDEN = 64
SIZES: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 512,
}
PLAIN = ("llama", "llama-sharded", "mistral", "qwen2", "qwen3")
QWEN3_MOE = {"moe_intermediate_size": 40, "decoder_sparse_step": 2}


def save_model(target: Path, family: str, *, dtype: str, shard_bytes: int | None = None, **choices: Any) -> None:
    """A random model of this family in transformers' own layout."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZES, **choices})
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(target, max_shard_size=shard_bytes or "5GB")


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    root = tmp_path_factory.mktemp("originals")
    save_model(root / "llama", "llama", dtype="float32", head_dim=16)
    save_model(root / "llama-sharded", "llama", dtype="bfloat16", shard_bytes=60_000, tie_word_embeddings=True)
    save_model(root / "mistral", "mistral", dtype="float16", sliding_window=128)
    save_model(root / "qwen2", "qwen2", dtype="bfloat16", eos_token_id=[3, 4])
    save_model(root / "qwen3", "qwen3", dtype="float32", head_dim=32)
    save_model(root / "phi3", "phi3", dtype="bfloat16", eos_token_id=3, pad_token_id=0)
    save_model(root / "gemma2", "gemma2", dtype="float32", head_dim=16, sliding_window=64)
    save_model(root / "gemma3", "gemma3_text", dtype="bfloat16", head_dim=16, sliding_window=64)
    save_model(root / "mixtral", "mixtral", dtype="bfloat16", num_local_experts=4)
    save_model(
        root / "qwen3moe",
        "qwen3_moe",
        dtype="float32",
        **QWEN3_MOE,
        head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
    )
    yield {path.name: path for path in root.iterdir()}
    shutil.rmtree(root)


@pytest.fixture
def models(originals: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of one of the originals that a test may break."""

    def copy(name: str) -> Path:
        target = tmp_path / "models" / name
        shutil.copytree(originals[name], target)
        return target

    return copy


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; a change to `...` removes the key."""
    content = msgspec.json.decode(path.read_bytes()) if path.is_file() else {}
    content |= changes
    path.write_bytes(msgspec.json.encode({key: value for key, value in content.items() if value is not ...}))


def extent_of(
    spec: ModelSpec,
    *,
    layers: tuple[int, int],
    share: tuple[int, int] = (0, 1),
    stages: tuple[bool, bool] = (True, True),
) -> ShardExtent:
    """Shard `share[0]` of `share[1]` equal ones of these layers; `stages`: is it the first, is it the last?"""

    def cut(size: int) -> tuple[int, int]:
        return size * share[0] // share[1], size * (share[0] + 1) // share[1]

    return ShardExtent(
        layers=layers,
        heads=cut(spec.num_heads),
        kv_heads=cut(spec.num_kv_heads),
        columns=cut(spec.mlp_columns),
        vocab=cut(spec.vocab_size),
        is_first_stage=stages[0],
        is_last_stage=stages[1],
    )


def stored_bytes(spec: ModelSpec, extent: ShardExtent) -> int:
    """Bytes of an extent's slices in the dtypes they are stored in."""
    sizes = {entry.name: DTYPE_SIZES[entry.dtype] for entry in spec.tensors}
    return sum(piece.num_elements * sizes[piece.name] for piece in slice_shard(spec, extent))


def reference_slices(path: Path, spec: ModelSpec, extent: ShardExtent) -> dict[str, Any]:
    """The extent's tensors, cut by torch out of what safetensors loads."""
    from safetensors.torch import load_file

    tensors: dict[str, Any] = {}
    for file in path.glob("*.safetensors"):
        tensors |= split_fused(load_file(file), spec)
    return {
        piece.name: tensors[piece.name]
        if piece.dim is None
        else tensors[piece.name].narrow(piece.dim, piece.begin, piece.end - piece.begin).contiguous()
        for piece in slice_shard(spec, extent)
    }


def split_fused(tensors: dict[str, Any], spec: ModelSpec) -> dict[str, Any]:
    """Phi's queries, keys, values, gate and up as tensors of their own, cut as transformers cuts activations."""
    heads, kv_heads = spec.num_heads * spec.head_size, spec.num_kv_heads * spec.head_size
    split: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if name.endswith("qkv_proj.weight"):
            for part, rows in zip("qkv", tensor.split([heads, kv_heads, kv_heads]), strict=True):
                split[name.replace("qkv_proj", f"{part}_proj")] = rows
        elif name.endswith("gate_up_proj.weight"):
            for part, rows in zip(("gate", "up"), tensor.chunk(2), strict=True):
                split[name.replace("gate_up_proj", f"{part}_proj")] = rows
        else:
            split[name] = tensor
    return split
