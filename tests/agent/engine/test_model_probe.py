from __future__ import annotations

import math

import msgspec
import pytest
import torch

from agent.engine.model_probe import DECODING_SEQUENCES, measure_model
from agent.engine.random_weights import random_weights
from agent.errors import FleetError
from agent.facts.families import FAMILIES
from agent.facts.model import Dtype, ModelSpec, Quantisation, RopeSpec
from agent.planner.shards import shard_weight_bytes, whole_extent
from agent.wire.probe import ModelProbeConfig, ProbeModel
from tests.agent.engine.test_device_probe import TINY

BY_ARCHITECTURE = {family.architecture: family for family in FAMILIES}


def spec_of(architecture: str, *, num_layers: int = 3, num_kv_heads: int = 2) -> ModelSpec:
    """Widths that leave out nothing of a family: windows, soft caps and experts where it has them."""
    family = BY_ARCHITECTURE[architecture]
    has_experts = family.expert_names != "none"
    return ModelSpec(
        name="it",
        family=family,
        num_layers=num_layers,
        hidden_size=64,
        intermediate_size=96,
        num_heads=4,
        num_kv_heads=num_kv_heads,
        head_size=16,
        vocab_size=128,
        max_context=512,
        rms_norm_eps=1e-5,
        rope=RopeSpec(theta=1e4),
        tie_word_embeddings=False,
        dtype="float32",
        num_parameters=0,
        sliding_window=32 if family.uses_sliding_window else None,
        attention_softcap=50.0 if architecture == "Gemma2ForCausalLM" else None,
        num_experts=4 if has_experts else 0,
        experts_per_token=2 if has_experts else 0,
        expert_size=32 if has_experts else 0,
    )


def config(
    spec: ModelSpec, *, dtype: Dtype = "float32", quantisation: Quantisation = "none", device: str = "cpu"
) -> ModelProbeConfig:
    order = ProbeModel(model=spec, dtype=dtype, quantisation=quantisation, prefill_chunk=48, sizes=TINY)
    return ModelProbeConfig(host="h", device=device, threads=1, order=order, limit_s=30)


@pytest.mark.parametrize("architecture", sorted(BY_ARCHITECTURE))
def test_every_family_is_rehearsed_whole_and_in_halves(architecture: str) -> None:
    spec = spec_of(architecture)
    models = measure_model(config(spec)).models
    assert [model.parts for model in models] == [1, 2]
    for model in models:
        assert model.widths == spec.widths
        assert model.num_layers == spec.num_layers, "fewer than fill a cache: all of them"
        decodes = [(sequences, sequences) for sequences in DECODING_SEQUENCES]
        assert [(step.rows, step.sequences) for step in model.steps] == [*decodes, (31, 1), (48, 1), (55, 8)]
        assert [head.rows for head in model.heads] == list(DECODING_SEQUENCES)
        assert all(0 < step.seconds < 1 for step in model.steps)
        assert all(0 < head.seconds < 1 for head in model.heads)
        assert [rest.idle_s for rest in model.rests] == [0.002, 0.01, 0.05]
        assert all(0 <= rest.seconds < 1 for rest in model.rests)


def test_only_what_can_be_halved_is() -> None:
    [whole] = measure_model(config(spec_of("LlamaForCausalLM", num_kv_heads=1))).models
    assert whole.parts == 1


def test_no_more_layers_than_leave_no_cache_warm() -> None:
    spec = spec_of("LlamaForCausalLM", num_layers=1000)
    [whole, _] = measure_model(config(spec)).models
    layer_bytes = 4 * (64 * 64 * 2 + 2 * 64 * 32 + 3 * 64 * 96)
    assert whole.num_layers == math.ceil(TINY.weights_bytes / layer_bytes)


@pytest.mark.parametrize("quantisation", ["none", "int8", "int4"])
def test_random_weights_take_what_a_shard_takes(quantisation: Quantisation) -> None:
    spec = spec_of("LlamaForCausalLM")
    extent = msgspec.structs.replace(whole_extent(spec), layers=(1, 3), is_first_stage=False)
    weights = random_weights(
        spec, extent, kind=torch.bfloat16, device=torch.device("cpu"), quantisation=quantisation
    )
    assert weights.num_bytes == pytest.approx(shard_weight_bytes(spec, extent, "bfloat16", quantisation), rel=0.01)
    assert weights.get("embedding") is None


def test_a_model_that_has_no_room_is_refused_with_its_size() -> None:
    spec = msgspec.structs.replace(spec_of("LlamaForCausalLM"), hidden_size=1 << 20, intermediate_size=1 << 20)
    with pytest.raises(FleetError, match=r"a probe of cpu needs \d+\.\d GB") as caught:
        measure_model(config(spec))
    assert (caught.value.code, caught.value.host) == ("E804", "h")
