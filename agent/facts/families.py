"""The families we can run, as data. Adding one that differs only in these choices is adding a row here."""

from __future__ import annotations

from typing import Literal

import msgspec

from agent.facts.model import FamilySpec

Sharding = Literal["heads", "kv_heads", "columns", "heads_in", "columns_in", "vocab", "whole"]


class TensorRule(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor of a family: its HF name (`{layer}` filled in) and how tensor parallelism cuts it.

    `heads`, `kv_heads`, `columns` and `vocab` cut dimension 0; `heads_in` and `columns_in` cut dimension 1;
    `whole` is kept by every rank of the stage.
    """

    role: str
    """Our name for it: `q_proj`, `input_norm` …"""
    name: str
    sharding: Sharding
    scope: Literal["layer", "embedding", "final_norm", "head"]


_LAYER = "model.layers.{layer}."

DENSE_RULES: tuple[TensorRule, ...] = (
    TensorRule(role="embedding", name="model.embed_tokens.weight", sharding="vocab", scope="embedding"),
    TensorRule(role="input_norm", name=_LAYER + "input_layernorm.weight", sharding="whole", scope="layer"),
    TensorRule(role="q_proj", name=_LAYER + "self_attn.q_proj.weight", sharding="heads", scope="layer"),
    TensorRule(role="k_proj", name=_LAYER + "self_attn.k_proj.weight", sharding="kv_heads", scope="layer"),
    TensorRule(role="v_proj", name=_LAYER + "self_attn.v_proj.weight", sharding="kv_heads", scope="layer"),
    TensorRule(role="o_proj", name=_LAYER + "self_attn.o_proj.weight", sharding="heads_in", scope="layer"),
    TensorRule(role="post_norm", name=_LAYER + "post_attention_layernorm.weight", sharding="whole", scope="layer"),
    TensorRule(role="gate_proj", name=_LAYER + "mlp.gate_proj.weight", sharding="columns", scope="layer"),
    TensorRule(role="up_proj", name=_LAYER + "mlp.up_proj.weight", sharding="columns", scope="layer"),
    TensorRule(role="down_proj", name=_LAYER + "mlp.down_proj.weight", sharding="columns_in", scope="layer"),
    TensorRule(role="final_norm", name="model.norm.weight", sharding="whole", scope="final_norm"),
    TensorRule(role="head", name="lm_head.weight", sharding="vocab", scope="head"),
)

QKV_BIAS_RULES: tuple[TensorRule, ...] = (
    TensorRule(role="q_bias", name=_LAYER + "self_attn.q_proj.bias", sharding="heads", scope="layer"),
    TensorRule(role="k_bias", name=_LAYER + "self_attn.k_proj.bias", sharding="kv_heads", scope="layer"),
    TensorRule(role="v_bias", name=_LAYER + "self_attn.v_proj.bias", sharding="kv_heads", scope="layer"),
)

QK_NORM_RULES: tuple[TensorRule, ...] = (
    TensorRule(role="q_norm", name=_LAYER + "self_attn.q_norm.weight", sharding="whole", scope="layer"),
    TensorRule(role="k_norm", name=_LAYER + "self_attn.k_norm.weight", sharding="whole", scope="layer"),
)

FAMILIES: tuple[FamilySpec, ...] = (
    FamilySpec(name="llama", architecture="LlamaForCausalLM"),
    FamilySpec(name="mistral", architecture="MistralForCausalLM", uses_sliding_window=True),
    FamilySpec(name="qwen2", architecture="Qwen2ForCausalLM", qkv_bias=True),
    FamilySpec(name="qwen3", architecture="Qwen3ForCausalLM", qk_norm=True),
)


def family_of(architecture: str) -> FamilySpec | None:
    """The family with this HF architecture name, or None when we cannot run it."""
    return next((family for family in FAMILIES if family.architecture == architecture), None)


def rules_of(family: FamilySpec, *, is_tied: bool) -> tuple[TensorRule, ...]:
    """Every tensor rule of a family, in a stable order. A tied model has no `head` tensor of its own."""
    rules = DENSE_RULES
    if family.qkv_bias:
        rules += QKV_BIAS_RULES
    if family.qk_norm:
        rules += QK_NORM_RULES
    return tuple(rule for rule in rules if not (is_tied and rule.scope == "head"))
