"""The structural part of a spec, from `config.json`. What we do not do is refused, never ignored. No I/O."""

from __future__ import annotations

from typing import Any

import msgspec

from agent.errors import FleetError
from agent.facts.families import FAMILIES, family_of
from agent.facts.model import FamilySpec, ModelSpec
from agent.models.problems import Problems, positive, positive_number
from agent.models.rope_config import RopeDefaults, read_ropes

_ACTIVATIONS = {"silu": ("silu", "swish"), "gelu_tanh": ("gelu_pytorch_tanh", "gelu_new")}
"""transformers' names for the one function that a family computes."""
_LAYER_TYPES = ("full_attention", "sliding_attention")


class _Defaults(msgspec.Struct, frozen=True, kw_only=True):
    """What a family's configuration in transformers assumes where the file is silent."""

    sizes: dict[str, int] = msgspec.field(default_factory=dict)
    rope: RopeDefaults = RopeDefaults()
    rms_norm_eps: float = 1e-6
    head_size: int | None = None
    """None: hidden_size / num_attention_heads."""
    sliding_window: int | None = None
    is_tied: bool = False
    query_scalar: int | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    num_experts: int | None = None
    experts_per_token: int | None = None
    expert_size: int | None = None
    normalises_experts: bool | None = None
    """None: the config says it."""


_DEFAULTS: dict[str, _Defaults] = {
    "llama": _Defaults(),
    "mistral": _Defaults(sliding_window=4096),
    "qwen2": _Defaults(sliding_window=4096),
    "qwen3": _Defaults(head_size=128, sliding_window=4096),
    "gemma2": _Defaults(
        head_size=256,
        sliding_window=4096,
        is_tied=True,
        query_scalar=256,
        attention_softcap=50.0,
        logit_softcap=30.0,
    ),
    "gemma3": _Defaults(
        sizes={  # its larger models' files say only what differs from the 4B one
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "vocab_size": 262_208,
            "max_position_embeddings": 131_072,
        },
        rope=RopeDefaults(theta=1_000_000.0, local_theta=10_000.0),
        head_size=256,
        sliding_window=4096,
        is_tied=True,
        query_scalar=256,
    ),
    "phi3": _Defaults(rope=RopeDefaults(original_context=4096), rms_norm_eps=1e-5),
    "mixtral": _Defaults(
        rope=RopeDefaults(theta=1_000_000.0),
        rms_norm_eps=1e-5,
        num_experts=8,
        experts_per_token=2,
        normalises_experts=True,
    ),
    "qwen3moe": _Defaults(sliding_window=4096, num_experts=128, experts_per_token=8, expert_size=768),
}


def spec_of_config(config: dict[str, Any], *, where: str, name: str) -> ModelSpec:
    """A spec without tensors. Raises E702 for an unknown architecture, E703 for all other problems at once."""
    family = _family(config, where)
    defaults = _DEFAULTS[family.name]
    problems = Problems(where, "E703")
    _refuse_unsupported(config, family, problems)
    required = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    config = {**defaults.sizes, **config}
    sizes = {key: positive(config, key, problems) for key in (*required, "max_position_embeddings")}
    hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    kv_heads = (
        heads if config.get("num_key_value_heads") is None else positive(config, "num_key_value_heads", problems)
    )
    problems.raise_if_any()
    head_size = _head_size(config, defaults, hidden, heads, problems)
    if heads % kv_heads:
        problems.add(f"num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}")
    max_context, num_layers = sizes["max_position_embeddings"], sizes["num_hidden_layers"]
    rope, local_rope = read_ropes(
        config, family, defaults.rope, head_size=head_size, max_context=max_context, problems=problems
    )
    if rope.kind == "yarn":  # files often keep the context from before it was stretched
        max_context = max(max_context, int(rope.factor * rope.original_context))
    spec = ModelSpec(
        name=name,
        family=family,
        num_layers=num_layers,
        hidden_size=hidden,
        intermediate_size=sizes["intermediate_size"],
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_size=head_size,
        vocab_size=sizes["vocab_size"],
        max_context=max_context,
        rms_norm_eps=positive_number(config, "rms_norm_eps", problems, default=defaults.rms_norm_eps),
        rope=rope,
        local_rope=local_rope,
        tie_word_embeddings=bool(config.get("tie_word_embeddings", defaults.is_tied)),
        dtype="float32",
        num_parameters=0,
        **_attention(config, defaults, problems),
        **_windows(config, family, defaults, num_layers=num_layers, max_context=max_context, problems=problems),
        **_experts(config, family, defaults, num_layers=num_layers, problems=problems),
    )
    problems.raise_if_any()
    return spec


def _family(config: dict[str, Any], where: str) -> FamilySpec:
    named = config.get("architectures")
    architecture = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else ""
    family = family_of(architecture)
    if family is None:
        known = ", ".join(family.architecture for family in FAMILIES)
        what = f"architecture {architecture} cannot be run" if architecture else "it names no architecture"
        raise FleetError("E702", f"{where}: {what}", hint=f"known architectures: {known}")
    return family


def _refuse_unsupported(config: dict[str, Any], family: FamilySpec, problems: Problems) -> None:
    known = _ACTIVATIONS[family.activation]
    # Gemma's files have both keys, and the older one may say what the model does not compute
    key = "hidden_activation" if family.activation == "gelu_tanh" else "hidden_act"
    activation = config.get(key) or known[0]
    if activation not in known:
        problems.add(f"{key} {activation!r} is not supported for {family.architecture}, only {known[0]!r}")
    for key in ("mlp_bias", "attention_bias", "lm_head_bias", "use_bidirectional_attention"):
        # Qwen 2 always has its biases and says so nowhere; a config that says it agrees
        if config.get(key) and not (key == "attention_bias" and family.qkv_bias):
            problems.add(f"{key} is not supported for {family.architecture}")
    if config.get("quantization_config"):
        method = config["quantization_config"]
        method = method.get("quant_method", "unknown") if isinstance(method, dict) else method
        problems.add(f"quantised weights ({method}) are not supported, only float32, bfloat16 and float16")


def _head_size(config: dict[str, Any], defaults: _Defaults, hidden: int, heads: int, problems: Problems) -> int:
    if config.get("head_dim") is not None:
        size = positive(config, "head_dim", problems)
    elif defaults.head_size is not None:
        size = defaults.head_size
    else:
        if hidden % heads:
            problems.add(
                f"hidden_size {hidden} is no multiple of num_attention_heads {heads}, and head_dim is missing"
            )
        size = hidden // heads
    if size % 2:
        problems.add(f"head_dim {size} is odd, which rotary embeddings cannot be")
    return size


def _attention(config: dict[str, Any], defaults: _Defaults, problems: Problems) -> dict[str, Any]:
    """How scores and logits are scaled and capped."""
    made: dict[str, Any] = {}
    if defaults.query_scalar is not None:
        scalar = positive_number(config, "query_pre_attn_scalar", problems, default=defaults.query_scalar)
        made["attention_scale"] = scalar**-0.5
        for field, key, default in (
            ("attention_softcap", "attn_logit_softcapping", defaults.attention_softcap),
            ("logit_softcap", "final_logit_softcapping", defaults.logit_softcap),
        ):
            if config.get(key, default) is not None:
                made[field] = positive_number(config, key, problems, default=default or 1.0)
    return made


def _windows(
    config: dict[str, Any],
    family: FamilySpec,
    defaults: _Defaults,
    *,
    num_layers: int,
    max_context: int,
    problems: Problems,
) -> dict[str, Any]:
    """The sliding window, and the layers that attend to everything all the same."""
    window = config.get("sliding_window", defaults.sliding_window)
    if window is None or not (family.uses_sliding_window or config.get("use_sliding_window")):
        is_named = "sliding_attention" in (config.get("layer_types") or ())
        if is_named and not family.uses_sliding_window:
            problems.add(f"layer_types name sliding attention, but no window of {family.name} is in use")
        return {}
    window = positive({"sliding_window": window}, "sliding_window", problems)
    if window >= max_context:
        return {}
    types = config.get("layer_types")
    if types is None:
        full = _full_layers(config, family, num_layers=num_layers, problems=problems)
    elif isinstance(types, list) and len(types) == num_layers and all(kind in _LAYER_TYPES for kind in types):
        full = tuple(layer for layer, kind in enumerate(types) if kind == "full_attention")
    else:
        problems.add(f"layer_types is {types!r}, {num_layers} of {' or '.join(_LAYER_TYPES)} expected")
        full = ()
    return {} if len(full) == num_layers else {"sliding_window": window, "full_layers": full}


def _full_layers(
    config: dict[str, Any], family: FamilySpec, *, num_layers: int, problems: Problems
) -> tuple[int, ...]:
    """Where the config does not name them: Gemma's every so many, Qwen's first ones, and none of the others."""
    if family.full_layer_period:
        period = positive(config, "sliding_window_pattern", problems, default=family.full_layer_period)
        return tuple(range(period - 1, num_layers, period))
    if family.uses_sliding_window or family.expert_names != "none":
        return ()
    first_windowed = config.get("max_window_layers", 28)
    if not isinstance(first_windowed, int) or first_windowed < 0:
        problems.add(f"max_window_layers is {first_windowed!r}, a whole number expected")
        return ()
    return tuple(range(min(first_windowed, num_layers)))


def _experts(
    config: dict[str, Any], family: FamilySpec, defaults: _Defaults, *, num_layers: int, problems: Problems
) -> dict[str, Any]:
    """How many experts there are, how large, how many a token takes, and which layers have none."""
    if family.expert_names == "none":
        return {}
    # transformers 5 writes Qwen's under Mixtral's name, and reads both
    key = "num_local_experts" if "num_local_experts" in config else "num_experts"
    num_experts = positive(config, key, problems, default=defaults.num_experts)
    per_token = positive(config, "num_experts_per_tok", problems, default=defaults.experts_per_token)
    if per_token > num_experts:
        problems.add(f"num_experts_per_tok {per_token} is more than {num_experts} experts")
    if family.expert_names == "mixtral":
        size = positive(config, "intermediate_size", problems)
        dense: tuple[int, ...] = ()
    else:
        size = positive(config, "moe_intermediate_size", problems, default=defaults.expert_size)
        dense = _dense_layers(config, num_layers=num_layers, problems=problems)
    normalises = defaults.normalises_experts
    return {
        "num_experts": num_experts,
        "experts_per_token": per_token,
        "expert_size": size,
        "normalises_experts": bool(config.get("norm_topk_prob")) if normalises is None else normalises,
        "dense_layers": dense,
    }


def _dense_layers(config: dict[str, Any], *, num_layers: int, problems: Problems) -> tuple[int, ...]:
    """Qwen's: all but every `decoder_sparse_step`-th, and those that `mlp_only_layers` names."""
    step = positive(config, "decoder_sparse_step", problems, default=1)
    named = config.get("mlp_only_layers") or []
    if not isinstance(named, list) or not all(isinstance(layer, int) for layer in named):
        problems.add(f"mlp_only_layers is {named!r}, a list of layers expected")
        return ()
    dense = tuple(layer for layer in range(num_layers) if layer in named or (layer + 1) % step)
    if len(dense) == num_layers:
        problems.add("no layer has experts: it is a dense model of another architecture")
    return dense
