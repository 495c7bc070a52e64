"""What a rank holds is what was planned, wherever it is read from, and damage is named."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from agent.engine import stored_tensors
from agent.engine.linear.choose import make_kernel
from agent.engine.linear.kernel import Kernel
from agent.engine.stored_tensors import TensorKey, read_tensors
from agent.engine.weights import ShardWeights, load_weights
from agent.errors import FleetError
from agent.facts.model import Dtype, ModelSpec, Quantisation
from agent.planner.shards import ShardExtent, shard_weight_bytes, slice_shard, whole_extent
from tests.agent.engine.models import FAMILIES, Reference, stage

CPU = torch.device("cpu")


def load(
    spec: ModelSpec,
    extent: ShardExtent,
    *,
    model_dir: Path | None = None,
    shard_file: Path | None = None,
    kind: torch.dtype = torch.float32,
    quantisation: Quantisation = "none",
) -> tuple[ShardWeights, int]:
    """The weights, and the bytes read for them."""
    read: list[int] = []
    held = load_weights(
        spec,
        extent,
        shard_file=str(shard_file or ""),
        model_dir=str(model_dir or ""),
        kind=kind,
        device=CPU,
        on_read=read.append,
        quantisation=quantisation,
    )
    return held, sum(read)


def read_all(
    spec: ModelSpec, extent: ShardExtent, *, model_dir: Path | None = None, shard_file: Path | None = None
) -> dict[TensorKey, torch.Tensor]:
    return dict(
        read_tensors(
            spec,
            extent,
            shard_file=str(shard_file or ""),
            model_dir=str(model_dir or ""),
            kind=torch.float32,
            device=CPU,
            on_read=lambda _: None,
        )
    )


def cut_shard(model: Reference, extent: ShardExtent) -> dict[str, torch.Tensor]:
    """The shard's tensors under their own names, cut with torch."""
    stored = load_file(model.path / "model.safetensors")
    tensors = {}
    for piece in slice_shard(model.spec, extent):
        tensor = stored[piece.name]
        if piece.dim is not None:
            tensor = tensor.narrow(piece.dim, piece.begin, piece.end - piece.begin)
        tensors[piece.name] = tensor.contiguous()
    return tensors


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shard_reads_its_own_bytes_and_no_others(
    family: str, reference: Callable[[str], Reference], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_tensors, "BLOCK_BYTES", 700)  # so that tensors are read in many blocks
    model = reference(family)
    for extent in (
        whole_extent(model.spec),
        *stage(model.spec, (1, 3), (3, 1)),
        *stage(model.spec, (2, 4), (1, 1)),
    ):
        held, read = load(model.spec, extent, model_dir=model.path)
        assert held.num_bytes == read == shard_weight_bytes(model.spec, extent, "float32")
        stored = read_all(model.spec, extent, model_dir=model.path)
        tensors = cut_shard(model, extent)
        layer = extent.layers[0]
        names = [f"model.layers.{layer}.self_attn.{name}_proj.weight" for name in "qkv"]
        assert torch.equal(stored["qkv", layer], torch.cat([tensors[name] for name in names]))
        assert torch.equal(stored["o_proj", layer], tensors[f"model.layers.{layer}.self_attn.o_proj.weight"])
        assert torch.equal(stored["down_proj", layer], tensors[f"model.layers.{layer}.mlp.down_proj.weight"])


def test_a_shard_file_gives_the_same_weights(reference: Callable[[str], Reference], tmp_path: Path) -> None:
    model = reference("qwen2")
    for index, extent in enumerate(stage(model.spec, (0, 4), (3, 1))):
        path = tmp_path / f"{index}.safetensors"
        save_file(cut_shard(model, extent), path)
        _, read = load(model.spec, extent, shard_file=path)
        from_file = read_all(model.spec, extent, shard_file=path)
        from_model = read_all(model.spec, extent, model_dir=model.path)
        assert read == shard_weight_bytes(model.spec, extent, "float32")
        for role, layer in (("embedding", None), ("qkv", 3), ("qkv_bias", 0), ("gate_up", 2), ("down_proj", 1)):
            assert torch.equal(from_file[role, layer], from_model[role, layer]), role


def test_weights_are_converted_to_the_serving_dtype(reference: Callable[[str], Reference]) -> None:
    model = reference("llama2")
    extent = whole_extent(model.spec)
    held, read = load(model.spec, extent, model_dir=model.path, kind=torch.bfloat16)
    assert held.num_bytes == shard_weight_bytes(model.spec, extent, "bfloat16") == read // 2
    stored = load_file(model.path / "model.safetensors")
    assert torch.equal(held["final_norm"], stored["model.norm.weight"].bfloat16())


@pytest.mark.parametrize("quantisation", ["none", "int8", "int4", "fp8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama3", "qwen2"])  # one is tied, the other has biases
def test_what_is_held_is_what_was_planned(
    quantisation: Quantisation, dtype: Dtype, family: str, reference: Callable[[str], Reference]
) -> None:
    model = reference(family)
    kind = torch.float32 if dtype == "float32" else torch.bfloat16
    for extent in (
        whole_extent(model.spec),
        *stage(model.spec, (0, 2), (3, 1)),
        *stage(model.spec, (2, 4), (1, 1)),
    ):
        held, _ = load(model.spec, extent, model_dir=model.path, kind=kind, quantisation=quantisation)
        assert held.num_bytes == shard_weight_bytes(model.spec, extent, dtype, quantisation)


def test_a_tied_embedding_is_held_once(reference: Callable[[str], Reference]) -> None:
    model = reference("llama3")
    both = load(model.spec, whole_extent(model.spec), model_dir=model.path)[0]
    assert both.linear("head").kernel.shares(both["embedding"])
    first, last = stage(model.spec, (0, 2))[0], stage(model.spec, (2, 4))[0]
    assert load(model.spec, first, model_dir=model.path)[0].get("final_norm") is None
    assert load(model.spec, last, model_dir=model.path)[0].get("embedding") is None


def test_at_most_one_matrix_is_held_twice_while_loading(
    reference: Callable[[str], Reference], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = reference("llama2")
    alive: list[weakref.ref[torch.Tensor]] = []

    def watch(weight: torch.Tensor, bias: torch.Tensor | None, *, quantisation: Quantisation) -> Kernel:
        assert not any(seen() is not None for seen in alive)
        alive.append(weakref.ref(weight))
        return make_kernel(weight, bias, quantisation=quantisation)

    monkeypatch.setattr("agent.engine.weights.make_kernel", watch)
    load(model.spec, whole_extent(model.spec), model_dir=model.path, quantisation="int8")
    assert len(alive) == 4 * model.spec.num_layers + 1


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("missing", r"tensor model.layers.2.mlp.up_proj.weight is missing"),
        ("dtype", r"model.layers.2.mlp.up_proj.weight .* has dtype I64"),
        ("shape", r"model.layers.2.mlp.up_proj.weight .* has shape \[3, 64\], planned was \[88, 64\]"),
        ("cut", r"cut off"),
        ("absent", r"cannot be read"),
    ],
)
def test_damage_is_named(damage: str, says: str, reference: Callable[[str], Reference], tmp_path: Path) -> None:
    model = reference("llama2")
    extent = whole_extent(model.spec)
    tensors = cut_shard(model, extent)
    name = "model.layers.2.mlp.up_proj.weight"
    path = tmp_path / "shard.safetensors"
    if damage == "missing":
        del tensors[name]
    if damage == "dtype":
        tensors[name] = tensors[name].long()
    if damage == "shape":
        tensors[name] = tensors[name][:3].contiguous()
    if damage != "absent":
        save_file(tensors, path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FleetError, match=says) as caught:
        load(model.spec, extent, shard_file=path)
    assert caught.value.code == "E704"


def test_a_model_file_that_was_cut_since_planning_is_named(
    reference: Callable[[str], Reference], tmp_path: Path
) -> None:
    model = reference("llama2")
    (tmp_path / "model.safetensors").write_bytes((model.path / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(FleetError, match="cut off") as caught:
        load(model.spec, whole_extent(model.spec), model_dir=tmp_path)
    assert caught.value.code == "E704"
