"""The families we can run, as data. Adding one that differs only in these choices is adding a row here."""

from __future__ import annotations

from typing import Literal

import msgspec

from agent.facts.model import FamilySpec

Sharding = Literal["heads", "kv_heads", "columns", "heads_in", "columns_in", "vocab", "whole"]
Scope = Literal["layer", "dense", "sparse", "expert", "embedding", "final_norm", "head"]


class TensorRule(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor of a family: its HF name (`{layer}`, `{expert}` filled in) and how tensor parallelism cuts it.

    `heads`, `kv_heads`, `columns` and `vocab` cut dimension 0; `heads_in` and `columns_in` cut dimension 1;
    `whole` is kept by every rank of the stage. Of the scopes within a layer, `layer` is in each of them, `dense` in
    those with one MLP, `sparse` once in those with experts, and `expert` in each of their experts.
    """

    role: str
    """Our name for it: `q_proj`, `input_norm` …"""
    name: str
    sharding: Sharding
    scope: Scope
    stored_in: str = ""
    """HF name of the tensor whose rows it is on disk, behind those of the rules before it that name the same one.

    `name` is then ours alone, and `models.spec.add_tensors` gives it an entry with the place of these rows.
    """


_LAYER = "model.layers.{layer}."


def _norm(role: str, name: str) -> TensorRule:
    return TensorRule(role=role, name=f"{_LAYER}{name}.weight", sharding="whole", scope="layer")


def _gated(
    gate: str, up: str, down: str, *, scope: Literal["dense", "expert"], stored_in: str = ""
) -> tuple[TensorRule, ...]:
    """The three matrices of a gated MLP; `stored_in` names the one that holds gate and up."""
    fused = _LAYER + stored_in if stored_in else ""
    return (
        TensorRule(role="gate_proj", name=_LAYER + gate, sharding="columns", scope=scope, stored_in=fused),
        TensorRule(role="up_proj", name=_LAYER + up, sharding="columns", scope=scope, stored_in=fused),
        TensorRule(role="down_proj", name=_LAYER + down, sharding="columns_in", scope=scope),
    )


def _attention(*, stored_in: str = "") -> tuple[TensorRule, ...]:
    """Queries, keys and values, each in a tensor of its own or all in one, and the output."""
    at = _LAYER + "self_attn."
    fused = at + stored_in if stored_in else ""
    return (
        TensorRule(role="q_proj", name=at + "q_proj.weight", sharding="heads", scope="layer", stored_in=fused),
        TensorRule(role="k_proj", name=at + "k_proj.weight", sharding="kv_heads", scope="layer", stored_in=fused),
        TensorRule(role="v_proj", name=at + "v_proj.weight", sharding="kv_heads", scope="layer", stored_in=fused),
        TensorRule(role="o_proj", name=at + "o_proj.weight", sharding="heads_in", scope="layer"),
    )


OUTER_RULES: tuple[TensorRule, ...] = (
    TensorRule(role="embedding", name="model.embed_tokens.weight", sharding="vocab", scope="embedding"),
    TensorRule(role="final_norm", name="model.norm.weight", sharding="whole", scope="final_norm"),
    TensorRule(role="head", name="lm_head.weight", sharding="vocab", scope="head"),
)

ATTENTION_RULES = _attention()
FUSED_ATTENTION_RULES = _attention(stored_in="qkv_proj.weight")

QKV_BIAS_RULES: tuple[TensorRule, ...] = (
    TensorRule(role="q_bias", name=_LAYER + "self_attn.q_proj.bias", sharding="heads", scope="layer"),
    TensorRule(role="k_bias", name=_LAYER + "self_attn.k_proj.bias", sharding="kv_heads", scope="layer"),
    TensorRule(role="v_bias", name=_LAYER + "self_attn.v_proj.bias", sharding="kv_heads", scope="layer"),
)

QK_NORM_RULES = (_norm("q_norm", "self_attn.q_norm"), _norm("k_norm", "self_attn.k_norm"))

NORM_RULES = (_norm("input_norm", "input_layernorm"), _norm("mlp_norm", "post_attention_layernorm"))
OUTPUT_NORM_RULES = (
    _norm("input_norm", "input_layernorm"),
    _norm("attention_out_norm", "post_attention_layernorm"),
    _norm("mlp_norm", "pre_feedforward_layernorm"),
    _norm("mlp_out_norm", "post_feedforward_layernorm"),
)

MLP_RULES = _gated("mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight", scope="dense")
FUSED_MLP_RULES = _gated(
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
    scope="dense",
    stored_in="mlp.gate_up_proj.weight",
)

EXPERT_RULES: dict[str, tuple[TensorRule, ...]] = {
    "none": (),
    "mixtral": (
        TensorRule(role="router", name=_LAYER + "block_sparse_moe.gate.weight", sharding="whole", scope="sparse"),
        *_gated(
            "block_sparse_moe.experts.{expert}.w1.weight",
            "block_sparse_moe.experts.{expert}.w3.weight",
            "block_sparse_moe.experts.{expert}.w2.weight",
            scope="expert",
        ),
    ),
    "qwen": (
        TensorRule(role="router", name=_LAYER + "mlp.gate.weight", sharding="whole", scope="sparse"),
        *_gated(
            "mlp.experts.{expert}.gate_proj.weight",
            "mlp.experts.{expert}.up_proj.weight",
            "mlp.experts.{expert}.down_proj.weight",
            scope="expert",
        ),
    ),
}
"""The router's logits decide, so every rank holds it whole."""

FAMILIES: tuple[FamilySpec, ...] = (
    FamilySpec(name="llama", architecture="LlamaForCausalLM"),
    FamilySpec(name="mistral", architecture="MistralForCausalLM", uses_sliding_window=True),
    FamilySpec(name="qwen2", architecture="Qwen2ForCausalLM", qkv_bias=True),
    FamilySpec(name="qwen3", architecture="Qwen3ForCausalLM", qk_norm=True),
    FamilySpec(
        name="gemma2",
        architecture="Gemma2ForCausalLM",
        uses_sliding_window=True,
        full_layer_period=2,
        norm_adds_one=True,
        has_output_norms=True,
        scales_embedding=True,
        activation="gelu_tanh",
    ),
    FamilySpec(
        name="gemma3",
        architecture="Gemma3ForCausalLM",
        qk_norm=True,
        uses_sliding_window=True,
        full_layer_period=6,
        norm_adds_one=True,
        has_output_norms=True,
        scales_embedding=True,
        activation="gelu_tanh",
    ),
    FamilySpec(name="phi3", architecture="Phi3ForCausalLM", uses_sliding_window=True, fuses_projections=True),
    FamilySpec(name="mixtral", architecture="MixtralForCausalLM", uses_sliding_window=True, expert_names="mixtral"),
    FamilySpec(name="qwen3moe", architecture="Qwen3MoeForCausalLM", qk_norm=True, expert_names="qwen"),
)


def family_of(architecture: str) -> FamilySpec | None:
    """The family with this HF architecture name, or None when we cannot run it."""
    return next((family for family in FAMILIES if family.architecture == architecture), None)


def rules_of(family: FamilySpec, *, is_tied: bool) -> tuple[TensorRule, ...]:
    """Every tensor rule of a family, in a stable order. A tied model has no `head` tensor of its own."""
    rules = OUTER_RULES
    rules += OUTPUT_NORM_RULES if family.has_output_norms else NORM_RULES
    rules += FUSED_ATTENTION_RULES if family.fuses_projections else ATTENTION_RULES
    if family.qkv_bias:
        rules += QKV_BIAS_RULES
    if family.qk_norm:
        rules += QK_NORM_RULES
    rules += FUSED_MLP_RULES if family.fuses_projections else MLP_RULES
    rules += EXPERT_RULES[family.expert_names]
    return tuple(rule for rule in rules if not (is_tied and rule.scope == "head"))
