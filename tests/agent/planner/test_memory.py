from __future__ import annotations

import msgspec
import pytest

from agent.facts.model import Quantisation
from agent.planner.layout import StageLayout, cut_shares, extent_of, stage_extents
from agent.planner.memory import (
    CPU_RUNTIME_BYTES,
    CUDA_RUNTIME_BYTES,
    GATHERED_POSITIONS,
    MIB,
    StageSizes,
    activation_bytes,
    held_bytes,
    kv_layer_bytes,
    shard_bytes,
    stage_bytes,
)
from agent.planner.plan import BLOCK_TOKENS, Range, Serving, ShardBytes
from agent.planner.shards import shard_weight_bytes, whole_extent
from tests.agent.planner.clusters import LLAMA_1B, LLAMA_70B, LLAMA_TINY, THREE_CPUS, model, places_of

SERVING = Serving(context=1000, batch=3, dtype="bfloat16", prefill_chunk=100)


def test_llama_70b_takes_320_kib_of_cache_per_token() -> None:
    one = Serving(context=1, batch=1, dtype="bfloat16")
    block = LLAMA_70B.num_layers * kv_layer_bytes(LLAMA_70B, LLAMA_70B.num_kv_heads, one)
    assert block == BLOCK_TOKENS * 327_680


def test_the_cache_is_what_the_running_sequences_share() -> None:
    shared = msgspec.structs.replace(SERVING, kv_cache_tokens=500)
    layer = kv_layer_bytes(LLAMA_1B, 8, shared)
    assert layer == 2 * 32 * BLOCK_TOKENS * 8 * LLAMA_1B.head_size * 2
    assert layer < kv_layer_bytes(LLAMA_1B, 8, SERVING)


def test_verifying_drafts_takes_logits_for_each_of_them() -> None:
    extent = extent_of(LLAMA_1B, (8, 16), cut_shares(LLAMA_1B, (8,))[0])
    drafting = msgspec.structs.replace(SERVING, speculation="prompt_lookup", max_drafts=4)
    held = [shard_bytes(LLAMA_1B, extent, serving, "cpu").activations for serving in (SERVING, drafting)]
    assert held[1] - held[0] == 2 * 4 * LLAMA_1B.vocab_size * 4


def test_a_whole_models_weights_are_its_parameters() -> None:
    spec = model(num_layers=2, hidden=8, intermediate=12, heads=4, kv_heads=2, head_size=2, vocab=10)
    whole = extent_of(spec, (0, 2), cut_shares(spec, (2,))[0])
    attention = 8 * 8 + 2 * 4 * 8 + 8 * 8
    layer = attention + 3 * 12 * 8 + 2 * 8
    assert shard_bytes(spec, whole, SERVING, "cpu").weights == 2 * (2 * layer + 2 * 10 * 8 + 8)


def test_a_tied_models_embedding_counts_once_where_first_and_last_stage_are_one() -> None:
    share = cut_shares(LLAMA_1B, (8,))[0]
    embedding = LLAMA_1B.vocab_size * LLAMA_1B.hidden_size * 2
    held = {
        layers: shard_bytes(LLAMA_1B, extent_of(LLAMA_1B, layers, share), SERVING, "cpu").weights
        for layers in ((0, 16), (0, 8), (8, 16))
    }
    assert held[0, 8] + held[8, 16] == held[0, 16] + embedding


def test_quantised_matrices_take_their_codes_and_scales() -> None:
    spec = model(num_layers=2, hidden=32, intermediate=64, heads=4, kv_heads=2, head_size=8, vocab=10)
    whole = extent_of(spec, (0, 2), cut_shares(spec, (2,))[0])
    rows = 2 * (32 + 16 + 16 + 32 + 64 + 64 + 32) + 10
    elements = 2 * (32 * 32 + 2 * 16 * 32 + 32 * 32 + 3 * 64 * 32) + 10 * 32
    kept = 2 * (10 * 32 + 2 * 2 * 32 + 32)  # embedding and norms

    def weights(quantisation: Quantisation) -> int:
        serving = msgspec.structs.replace(SERVING, quantisation=quantisation)
        return shard_bytes(spec, whole, serving, "cpu").weights

    assert weights("none") == kept + 2 * elements
    assert weights("int8") == weights("fp8") == kept + elements + 4 * rows
    assert weights("int4") == kept + elements // 2 + elements // 32 * 4


def test_a_tied_head_that_is_quantised_is_a_copy_of_its_own() -> None:
    share = cut_shares(LLAMA_1B, (8,))[0]
    int8 = msgspec.structs.replace(SERVING, quantisation="int8")
    held = {
        layers: shard_bytes(LLAMA_1B, extent_of(LLAMA_1B, layers, share), int8, "cpu").weights
        for layers in ((0, 16), (0, 8), (8, 16))
    }
    assert held[0, 8] + held[8, 16] == held[0, 16]


@pytest.mark.parametrize("units", [(4, 4), (6, 2), (3, 3, 2)])
def test_shards_of_a_group_hold_the_stage_together(units: tuple[int, ...]) -> None:
    places = places_of(THREE_CPUS)[: len(units)]
    whole = StageLayout(layers=(2, 9), places=places[:1], units=(8,))
    cut = StageLayout(layers=(2, 9), places=places, units=units)
    (alone,), parts = stage_bytes(LLAMA_1B, whole, SERVING), stage_bytes(LLAMA_1B, cut, SERVING)
    norms = 7 * 2 * LLAMA_1B.hidden_size * 2
    assert sum(part.weights for part in parts) == alone.weights + (len(units) - 1) * norms
    assert sum(part.kv_cache for part in parts) == alone.kv_cache


def test_only_the_last_stage_pays_for_logits() -> None:
    share = cut_shares(LLAMA_1B, (8,))[0]
    middle = shard_bytes(LLAMA_1B, extent_of(LLAMA_1B, (0, 8), share), SERVING, "cpu")
    last = shard_bytes(LLAMA_1B, extent_of(LLAMA_1B, (8, 16), share), SERVING, "cpu")
    assert last.activations - middle.activations == 2 * SERVING.batch * LLAMA_1B.vocab_size * 4


def test_a_gpu_gathers_the_keys_of_every_row_of_a_recorded_step() -> None:
    extent = extent_of(LLAMA_1B, (0, 8), cut_shares(LLAMA_1B, (8,))[0])
    cpu, cuda = (shard_bytes(LLAMA_1B, extent, SERVING, kind).activations for kind in ("cpu", "cuda"))
    per_position = 2 * 8 * LLAMA_1B.head_size * 2
    assert cuda - cpu == (4 - 3) * SERVING.context * per_position  # three rows fill up four
    long = msgspec.structs.replace(SERVING, context=3000)
    cpu, cuda = (shard_bytes(LLAMA_1B, extent, long, kind).activations for kind in ("cpu", "cuda"))
    assert cuda - cpu == (4 * 3000 - GATHERED_POSITIONS) * per_position  # not all at once on a CPU


@pytest.mark.parametrize("layers", [(0, 8), (8, 16)])
def test_the_leader_of_the_last_stage_holds_the_draft_model_too(layers: Range) -> None:
    serving = msgspec.structs.replace(SERVING, speculation="draft_model", kv_cache_tokens=500)
    stage = StageLayout(layers=layers, places=places_of(THREE_CPUS)[:2], units=(5, 3))
    plain, held = stage_bytes(LLAMA_1B, stage, serving), stage_bytes(LLAMA_1B, stage, serving, LLAMA_TINY)
    assert held[1] == plain[1]
    if layers == (0, 8):
        assert held[0] == plain[0]
        return
    whole = whole_extent(LLAMA_TINY)
    assert held[0].weights - plain[0].weights == shard_weight_bytes(LLAMA_TINY, whole, "bfloat16")
    assert held[0].kv_cache - plain[0].kv_cache == 4 * 2 * 32 * BLOCK_TOKENS * 4 * 64 * 2
    assert held[0].activations - plain[0].activations == activation_bytes(LLAMA_TINY, whole, serving, "cpu")
    assert held[0].headroom == plain[0].headroom


def test_the_runtime_depends_on_the_kind_of_device() -> None:
    extent = extent_of(LLAMA_1B, (0, 1), cut_shares(LLAMA_1B, (8,))[0])
    assert shard_bytes(LLAMA_1B, extent, SERVING, "cpu").headroom == CPU_RUNTIME_BYTES
    assert shard_bytes(LLAMA_1B, extent, SERVING, "cuda").headroom == CUDA_RUNTIME_BYTES


def test_memory_by_layers_is_the_shards_own_sum_to_the_byte() -> None:
    sizes = StageSizes(LLAMA_1B, SERVING)
    stage = StageLayout(layers=(0, 5), places=places_of(THREE_CPUS)[:2], units=(5, 3))
    for extent, share in zip(stage_extents(LLAMA_1B, stage), cut_shares(LLAMA_1B, (5, 3)), strict=True):
        memory = sizes.memory(share, "cpu", first=True, last=False)
        for count in (1, 4, 5):
            own = msgspec.structs.replace(extent, layers=(0, count))
            total = shard_bytes(LLAMA_1B, own, SERVING, "cpu").total
            assert total == memory.fixed_bytes + count * memory.layer_bytes
            assert memory.max_layers(total) == count
            assert memory.max_layers(total - 1) == count - 1


def test_weights_and_cache_are_exact_and_the_process_is_not() -> None:
    held = ShardBytes(weights=10 * MIB, kv_cache=5 * MIB, activations=4 * MIB, headroom=CPU_RUNTIME_BYTES)
    bytes_held = held_bytes(held, "cpu")
    assert bytes_held.expected == held.total
    assert bytes_held.low == pytest.approx(17 * MIB + 0.6 * CPU_RUNTIME_BYTES)
    assert bytes_held.high == pytest.approx(19 * MIB + 1.25 * CPU_RUNTIME_BYTES)
    assert held_bytes(held, "cuda").high > bytes_held.high
    certain = msgspec.structs.replace(held, activations=0, headroom=0)
    assert held_bytes(certain, "cpu").low == held_bytes(certain, "cpu").high == 15 * MIB
