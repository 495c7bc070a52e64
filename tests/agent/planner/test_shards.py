"""Slices of families whose tensors are no plain matrices of one layer."""

from __future__ import annotations

from itertools import pairwise

import pytest

from agent.facts.model import ModelSpec
from agent.planner.layout import StageLayout, cut_shares, stage_extents
from agent.planner.memory import StageSizes, shard_bytes
from agent.planner.plan import Serving
from agent.planner.shards import dense_columns, shard_weight_bytes, slice_shard
from tests.agent.planner.clusters import LLAMA_1B, MIXED_MOE, MIXTRAL, cluster, cpu, host, places_of


def stage_of(spec: ModelSpec, units: tuple[int, ...]) -> StageLayout:
    places = places_of(cluster(*(host(f"h{index}", cpu(64)) for index in range(len(units)))))
    return StageLayout(layers=(0, spec.num_layers), places=places, units=units)


@pytest.mark.parametrize("spec", [MIXTRAL, MIXED_MOE], ids=lambda spec: spec.name)
@pytest.mark.parametrize("units", [(1, 1), (3, 1), (1, 2, 1)])
def test_shards_of_a_stage_meet_in_every_tensor(spec: ModelSpec, units: tuple[int, ...]) -> None:
    units = tuple(unit * spec.num_kv_heads // sum(units) for unit in units)
    held = [
        {piece.name: piece for piece in slice_shard(spec, extent)}
        for extent in stage_extents(spec, stage_of(spec, units))
    ]
    assert all(shard.keys() == held[0].keys() for shard in held)
    for name in held[0]:
        pieces = [shard[name] for shard in held]
        if pieces[0].dim is None:
            assert pieces[0].role in ("router", "q_norm", "k_norm", "input_norm", "mlp_norm", "final_norm")
            continue
        assert pieces[0].begin == 0
        assert pieces[-1].end == pieces[0].shape[pieces[0].dim]
        assert all(a.end == b.begin for a, b in pairwise(pieces))


def test_mixtral_has_the_parameters_that_it_is_known_for() -> None:
    (extent,) = stage_extents(MIXTRAL, stage_of(MIXTRAL, (8,)))
    assert shard_weight_bytes(MIXTRAL, extent, "bfloat16") == 2 * 46_702_792_704
    assert MIXTRAL.num_active_parameters == 12_879_925_248


def test_experts_are_where_dense_layers_are_not() -> None:
    (extent,) = stage_extents(MIXED_MOE, stage_of(MIXED_MOE, (4,)))
    slices = slice_shard(MIXED_MOE, extent)
    assert {piece.layer for piece in slices if piece.role == "router"} == {1, 2, 4, 5}
    dense = [piece for piece in slices if piece.role == "up_proj" and piece.expert is None]
    assert {piece.layer: piece.shape for piece in dense} == {0: (160, 64), 3: (160, 64)}
    names = [piece.name for piece in slices if piece.layer == 1 and piece.role == "up_proj"]
    assert names == [f"model.layers.1.mlp.experts.{expert}.up_proj.weight" for expert in range(16)]


def test_a_dense_layer_is_cut_where_its_experts_are() -> None:
    first, second = (share.columns for share in cut_shares(MIXED_MOE, (3, 1)))
    assert (first, second) == ((0, 30), (30, 40))
    assert (dense_columns(MIXED_MOE, first), dense_columns(MIXED_MOE, second)) == ((0, 120), (120, 160))
    assert dense_columns(LLAMA_1B, (5, 77)) == (5, 77)


def test_memory_by_layers_never_promises_more_than_there_is() -> None:
    """A line through the heaviest kind of layer lies above what stages of mixed layers need."""
    serving = Serving(context=128, batch=2)
    (share,) = cut_shares(MIXED_MOE, (4,))
    memory = StageSizes(MIXED_MOE, serving).memory(share, "cpu", first=True, last=True)
    (extent,) = stage_extents(MIXED_MOE, stage_of(MIXED_MOE, (4,)))
    needed = shard_bytes(MIXED_MOE, extent, serving, "cpu").total
    assert memory.max_layers(needed) <= 6 <= memory.max_layers(memory.fixed_bytes + 6 * memory.layer_bytes)
    assert memory.fixed_bytes + 6 * memory.layer_bytes >= needed
