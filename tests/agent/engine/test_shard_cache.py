"""A packed shard is made once, mapped afterwards, made anew when damaged, and cleared away when nobody needs it."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch

from agent.engine import shard_cache
from agent.engine.linear.choose import is_sound
from agent.engine.linear.opaque import can_wrap
from agent.engine.linear.packed import PackedKernel
from agent.engine.shard_cache import ShardCache, shard_key
from agent.engine.weights import ShardWeights, load_weights
from agent.facts.model import Dtype, ModelSpec, Quantisation
from agent.planner.shards import ShardExtent, shard_weight_bytes, whole_extent
from tests.agent.engine.models import Reference, stage

CPU = torch.device("cpu")
pytestmark = [
    pytest.mark.skipif(not can_wrap(), reason="this build does not map packed weights"),
    pytest.mark.skipif(not is_sound(PackedKernel, torch.bfloat16), reason="this CPU does not pack bfloat16"),
]


@pytest.fixture
def reference(reference: Callable[[str], Reference]) -> Callable[[str], Reference]:
    """Models whose files have been hashed: what is not known to be the same is not kept."""

    def hashed(family: str) -> Reference:
        model = reference(family)
        digest = hashlib.sha256((model.path / "model.safetensors").read_bytes()).hexdigest()
        return dataclasses.replace(model, spec=msgspec.structs.replace(model.spec, digest=digest))

    return hashed


def load(
    model: Reference,
    extent: ShardExtent,
    cache: ShardCache | None,
    *,
    dtype: Dtype = "bfloat16",
    quantisation: Quantisation = "int8",
    model_dir: Path | None = None,
) -> ShardWeights:
    return load_weights(
        model.spec,
        extent,
        shard_file="",
        model_dir=str(model_dir or model.path),
        kind=torch.bfloat16 if dtype == "bfloat16" else torch.float32,
        device=CPU,
        on_read=lambda _: None,
        quantisation=quantisation,
        cache=cache,
    )


def products(held: ShardWeights, spec: ModelSpec, extent: ShardExtent, dtype: Dtype) -> list[torch.Tensor]:
    torch.manual_seed(1)
    rows = torch.randn(3, spec.hidden_size).to(torch.bfloat16 if dtype == "bfloat16" else torch.float32)
    made = [held.linear(role, layer)(rows) for layer in range(*extent.layers) for role in ("qkv", "gate_up")]
    made += [held.linear("head")(rows)] if extent.is_last_stage else []
    return [*made, held["input_norm", extent.layers[0]]]


@pytest.mark.parametrize(
    ("quantisation", "dtype"),
    [("none", "bfloat16"), ("int8", "bfloat16"), ("int8", "float32"), ("int4", "bfloat16"), ("fp8", "bfloat16")],
)
@pytest.mark.parametrize("family", ["llama3", "qwen2"])
def test_a_mapped_shard_computes_what_was_packed(
    quantisation: Quantisation, dtype: Dtype, family: str, reference: Callable[[str], Reference], tmp_path: Path
) -> None:
    """1. without a cache  2. made and mapped  3. mapped by a start that does not even find the model."""
    model, cache = reference(family), ShardCache(tmp_path / "packed")
    for extent in (whole_extent(model.spec), *stage(model.spec, (2, 4), (3, 1))):
        plain = load(model, extent, None, dtype=dtype, quantisation=quantisation)
        for model_dir in (None, tmp_path / "gone"):
            held = load(model, extent, cache, dtype=dtype, quantisation=quantisation, model_dir=model_dir)
            assert held.num_bytes == shard_weight_bytes(model.spec, extent, dtype, quantisation)
            pairs = zip(
                products(held, model.spec, extent, dtype), products(plain, model.spec, extent, dtype), strict=True
            )
            # a tied head is packed where it is mapped: it sums in another order than the embedding it is made of
            assert all(torch.allclose(a, b, rtol=0.02, atol=0.02) for a, b in pairs)
            if extent.is_first_stage:
                plain_embedding = plain["embedding"]
                assert torch.equal(held["embedding"], plain_embedding)


def test_kernels_outlive_the_weights_they_came_with(reference: Callable[[str], Reference], tmp_path: Path) -> None:
    model = reference("llama2")
    extent = whole_extent(model.spec)
    linear = load(model, extent, ShardCache(tmp_path)).linear("qkv", 0)
    right = load(model, extent, None).linear("qkv", 0)
    gc.collect()
    rows = torch.randn(2, model.spec.hidden_size).bfloat16()
    assert torch.equal(linear(rows), right(rows))


@pytest.mark.parametrize("damage", ["cut", "header", "foreign", "empty"])
def test_a_damaged_file_is_made_anew_and_the_log_says_so(
    damage: str, reference: Callable[[str], Reference], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, cache = reference("llama2"), ShardCache(tmp_path)
    extent = whole_extent(model.spec)
    load(model, extent, cache)
    (path,) = tmp_path.glob("*.packed")
    whole_file = path.read_bytes()
    spoilt = {
        "cut": whole_file[:-4096],
        "header": whole_file[:-60] + bytes(10) + whole_file[-50:],
        "foreign": b"#!/bin/sh" + whole_file[9:],
        "empty": b"",
    }[damage]
    path.unlink()  # mapped files are replaced, never written to
    path.write_bytes(spoilt)
    with caplog.at_level(logging.WARNING):
        held = load(model, extent, cache)
    assert "damaged" in caplog.records[0].message
    assert path.read_bytes() == whole_file
    assert held.num_bytes == shard_weight_bytes(model.spec, extent, "bfloat16", "int8")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_what_a_shard_depends_on_is_in_its_key(reference: Callable[[str], Reference]) -> None:
    spec = reference("llama2").spec
    extents = (whole_extent(spec), *stage(spec, (0, 4), (3, 1)))
    keys = {
        shard_key(spec, extent, kind=kind, quantisation=quantisation)
        for extent in extents
        for kind in (torch.bfloat16, torch.float32)
        for quantisation in ("none", "int8", "int4")
    }
    assert len(keys) == 3 * 2 * 3
    assert all(key.startswith(spec.digest[:16]) for key in keys)


def fill(cache: ShardCache, key: str, num_bytes: int, *, used_s_ago: float, now: float) -> Path:
    tensor = torch.zeros(num_bytes, dtype=torch.uint8)
    made = cache.make(
        key, num_bytes=num_bytes, write=lambda writer: writer.add_tensor(("x", None), tensor, is_looked_up=False)
    )
    assert made is not None
    path = cache._path(key)
    os.utime(path, (now - used_s_ago, now - used_s_ago))
    return path


def test_only_what_nobody_has_mapped_is_cleared(
    reference: Callable[[str], Reference], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another layout of the model goes after a while, other models when they are too much, and none in use."""
    model, cache = reference("llama2"), ShardCache(tmp_path)
    in_use = load(model, whole_extent(model.spec), cache)
    (mapped,) = tmp_path.glob("*.packed")
    long_ago = mapped.stat().st_mtime - 10 * shard_cache.MAX_UNUSED_S
    os.utime(mapped, (long_ago, long_ago))
    digest = model.spec.digest[:16]
    now = tmp_path.stat().st_mtime
    over = fill(cache, f"{digest}-over", 5000, used_s_ago=2 * shard_cache.MAX_UNUSED_S, now=now)
    fresh = fill(cache, f"{digest}-fresh", 5000, used_s_ago=1, now=now)
    other = fill(cache, "other-old", 5000, used_s_ago=2 * shard_cache.MAX_UNUSED_S, now=now)
    remains = tmp_path / f".{digest}-x.packed.1.part"
    remains.write_bytes(b"a start that was killed")
    gc.collect()
    cache.clear(model=digest, needed_bytes=0)
    assert set(tmp_path.iterdir()) == {mapped, fresh, other}

    monkeypatch.setattr(shard_cache, "MAX_UNUSED_BYTES", fresh.stat().st_size)
    cache.clear(model="", needed_bytes=0)
    assert set(tmp_path.iterdir()) == {mapped, fresh}
    assert not over.exists()
    rows = torch.randn(1, model.spec.hidden_size).bfloat16()
    assert in_use.linear("qkv", 0)(rows).isfinite().all()


def test_a_full_disk_costs_the_cache_and_not_the_start(
    reference: Callable[[str], Reference],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(shard_cache, "MIN_FREE_BYTES", 1 << 60)
    model = reference("llama2")
    extent = whole_extent(model.spec)
    with caplog.at_level(logging.WARNING):
        held = load(model, extent, ShardCache(tmp_path))
    assert held.num_bytes == shard_weight_bytes(model.spec, extent, "bfloat16", "int8")
    assert list(tmp_path.iterdir()) == []
    assert caplog.records[0].__dict__["why"] == "the disk is full"
