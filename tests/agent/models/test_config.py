"""What the configurations of the families say, in today's keys and in those of the files on the hub."""

from __future__ import annotations

import math
from typing import Any

import pytest

from agent.errors import FleetError
from agent.facts.model import ModelSpec, RopeSpec
from agent.models.config import spec_of_config

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 8192,
}


def read(architecture: str, **keys: Any) -> ModelSpec:
    return spec_of_config({"architectures": [architecture], **SIZES, **keys}, where="config.json", name="m")


def test_gemma2_is_read_from_what_its_file_says_and_leaves_out() -> None:
    spec = read("Gemma2ForCausalLM", hidden_act="gelu", hidden_activation="gelu_pytorch_tanh")
    assert spec.tie_word_embeddings
    assert (spec.head_size, spec.attention_scale) == (256, 256**-0.5)
    assert (spec.attention_softcap, spec.logit_softcap) == (50.0, 30.0)
    assert [spec.window_of(layer) for layer in range(4)] == [4096, None, 4096, None]
    spec = read("Gemma2ForCausalLM", query_pre_attn_scalar=144, attn_logit_softcapping=None, head_dim=32)
    assert (spec.head_size, spec.attention_scale, spec.attention_softcap) == (32, 144**-0.5, None)


def test_gemma3_has_a_rope_for_its_windowed_layers() -> None:
    old = read(
        "Gemma3ForCausalLM",
        rope_theta=1e6,
        rope_local_base_freq=1e4,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
        sliding_window=512,
        sliding_window_pattern=6,
    )
    new = read(
        "Gemma3ForCausalLM",
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
        sliding_window=512,
        layer_types=["sliding_attention"] * 5 + ["full_attention", "sliding_attention"],
    )
    assert old == new
    assert old.rope_of(5) == RopeSpec(theta=1e6, kind="linear", factor=8.0)
    assert old.rope_of(6) == RopeSpec(theta=1e4)
    assert (old.window_of(5), old.window_of(6)) == (None, 512)
    assert read("Gemma3ForCausalLM").rope == RopeSpec(theta=1e6)


def test_phi_rotates_part_of_its_heads_with_long_and_short_factors() -> None:
    factors = {"short_factor": [1.0] * 6, "long_factor": [2.5] * 6}
    keys = {
        "original_max_position_embeddings": 4096,
        "partial_rotary_factor": 0.75,
        "rope_theta": 1e4,
        "sliding_window": 262_144,
        "attention_bias": False,
    }
    spec = read("Phi3ForCausalLM", rope_scaling={"type": "longrope", **factors}, **keys)
    assert spec.sliding_window is None
    assert (spec.rope.kind, spec.rope.rotary_share, spec.rope.original_context) == ("longrope", 0.75, 4096)
    assert spec.rope.long_factors == (2.5,) * 6
    assert spec.rope.magnitude == math.sqrt(1 + math.log(2) / math.log(4096))
    assert read("Phi3ForCausalLM", rope_scaling={"type": "su", **factors}, **keys).rope == spec.rope
    short = {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0] * 5, "long_factor": [2.5] * 8}}
    with pytest.raises(FleetError, match="short_factor has 5 numbers, 8 pairs are rotated"):
        read("Phi3ForCausalLM", **short)


def test_yarn_keeps_its_numbers_or_follows_from_the_context() -> None:
    stated = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048, "beta_fast": 16}
    rope = read("Qwen3ForCausalLM", rope_scaling=stated, rope_theta=1e6).rope
    assert (rope.factor, rope.original_context, rope.beta_fast, rope.beta_slow) == (4.0, 2048, 16.0, 1.0)
    assert rope.magnitude == 0.1 * math.log(4) + 1
    assert read("Qwen3ForCausalLM", rope_scaling=stated, max_position_embeddings=2048).max_context == 8192
    own = read("LlamaForCausalLM", rope_scaling={**stated, "attention_factor": 1.5, "truncate": False}).rope
    assert (own.magnitude, own.truncates) == (1.5, False)
    derived = read(
        "LlamaForCausalLM", rope_scaling={**stated, "factor": None, "mscale": 1.0, "mscale_all_dim": 1.0}
    )
    assert (derived.rope.factor, derived.rope.magnitude) == (4.0, 1.0)


def test_mixtral_s_experts_have_the_mlp_s_size() -> None:
    spec = read(
        "MixtralForCausalLM", num_local_experts=4, num_experts_per_tok=3, sliding_window=None, head_dim=None
    )
    assert (spec.num_experts, spec.experts_per_token, spec.expert_size) == (4, 3, 96)
    assert spec.normalises_experts
    assert spec.mlp_columns == 96
    assert spec.rope.theta == 1e6
    assert all(spec.is_sparse(layer) for layer in range(7))


def test_qwen3_moe_s_dense_layers_are_found_by_step_and_by_name() -> None:
    keys = {"moe_intermediate_size": 24, "num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": True}
    spec = read("Qwen3MoeForCausalLM", **keys, decoder_sparse_step=2, mlp_only_layers=[3])
    assert spec.dense_layers == (0, 2, 3, 4, 6)
    assert (spec.mlp_columns, spec.intermediate_size, spec.normalises_experts) == (24, 96, True)
    assert spec.sliding_window is None
    assert not read("Qwen3MoeForCausalLM", **{**keys, "norm_topk_prob": False}).normalises_experts
    written = {"moe_intermediate_size": 24, "num_local_experts": 8, "num_experts_per_tok": 2}
    assert read("Qwen3MoeForCausalLM", **written).num_experts == 8


@pytest.mark.parametrize(
    ("architecture", "keys", "said"),
    [
        ("Gemma2ForCausalLM", {"hidden_activation": "silu"}, "hidden_activation 'silu' is not supported"),
        ("Gemma3ForCausalLM", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("Gemma2ForCausalLM", {"layer_types": ["full_attention"]}, "7 of full_attention or sliding_attention"),
        ("Phi3ForCausalLM", {"partial_rotary_factor": 0.3, "head_dim": 10}, "0.3 of heads of 10 makes no pairs"),
        ("MixtralForCausalLM", {"num_local_experts": 2, "num_experts_per_tok": 3}, "3 is more than 2 experts"),
        ("Qwen3MoeForCausalLM", {"decoder_sparse_step": 9}, "no layer has experts"),
        ("Qwen3MoeForCausalLM", {"mlp_only_layers": "all"}, "a list of layers expected"),
        ("Qwen2ForCausalLM", {"use_sliding_window": True, "max_window_layers": "x"}, "max_window_layers is 'x'"),
    ],
)
def test_what_a_family_cannot_be_is_refused(architecture: str, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(FleetError, match=said) as caught:
        read(architecture, **keys)
    assert caught.value.code == "E703"
