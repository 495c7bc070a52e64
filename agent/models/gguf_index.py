"""A GGUF model's header -> ModelSpec with Hugging Face's names and shapes: planning and loading know one kind.

The metadata is put into the words of a `config.json`, and what a config may say is decided where configs are read.
What llama.cpp's converter changes in the weights (the order of rotary pairs, norms plus one) is marked on each
tensor and undone by who loads it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import FleetError
from agent.facts.model import ModelSpec, RopeSpec, StoredForm, TensorEntry
from agent.models.config import spec_of_config
from agent.models.gguf_header import GgufHeader, GgufTensor, read_gguf_header
from agent.models.spec import add_tensors

ARCHITECTURES: dict[str, str] = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3moe": "Qwen3MoeForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}
"""`general.architecture` to ours. Mistral and Mixtral are a `llama` there; the latter has experts."""

_PREFIXES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA_PARTS = {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_PHI_PARTS = {"ffn_up": "mlp.gate_up_proj"}
_EXPERTS = {
    "MixtralForCausalLM": {
        "ffn_gate_inp": "block_sparse_moe.gate",
        "ffn_gate_exps": "block_sparse_moe.experts.{expert}.w1",
        "ffn_up_exps": "block_sparse_moe.experts.{expert}.w3",
        "ffn_down_exps": "block_sparse_moe.experts.{expert}.w2",
    },
    "Qwen3MoeForCausalLM": {
        "ffn_gate_inp": "mlp.gate",
        "ffn_gate_exps": "mlp.experts.{expert}.gate_proj",
        "ffn_up_exps": "mlp.experts.{expert}.up_proj",
        "ffn_down_exps": "mlp.experts.{expert}.down_proj",
    },
}
_LAYER_NAME = re.compile(r"blk\.(\d+)\.([a-z0-9_]+)\.(weight|bias)")
_ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_OTHER_MODALITIES = ("v.", "mm.", "a.")
"""Vision and audio towers that Ollama keeps in the same file; the language model runs without them."""
_GEMMA_SWA_THETA = 10_000.0
_GEMMA3_WINDOW_PERIOD = 6
_SCALED_BY_WIDTH = {"gemma2": 46, "gemma3": 62}
"""The layers of each Gemma generation's 27B model, whose attention alone scales by hidden size and heads."""


def read_gguf_spec(files: dict[str, Path], *, name: str, where: str) -> ModelSpec:
    """Spec of the model in these files, by the names that its manifest gives them; the first has the metadata.

    Raises E702 for an architecture that we cannot run, E703 for metadata, E704 for a broken file, E705 for tensors.
    """
    headers = {file: read_gguf_header(path) for file, path in files.items()}
    metadata = next(iter(headers.values())).metadata
    tensors = [(file, tensor) for file, header in headers.items() for tensor in header.tensors]
    config = _config(metadata, tensors, headers=headers, where=where)
    spec = spec_of_config(config, where=where, name=name)
    rope = _rope_of_factors(metadata, spec, tensors, files)
    if rope is not None:
        spec = msgspec.structs.replace(spec, rope=rope)
    spec = msgspec.structs.replace(
        spec,
        bos_token_id=_token(metadata, "bos"),
        eos_token_ids=tuple(
            dict.fromkeys(token for key in ("eos", "eot", "eom") if (token := _token(metadata, key)) is not None)
        ),
    )
    return add_tensors(spec, tuple(_entries(spec, tensors)), where=where)


def _config(
    metadata: dict[str, Any],
    tensors: Sequence[tuple[str, GgufTensor]],
    *,
    headers: dict[str, GgufHeader],
    where: str,
) -> dict[str, Any]:
    """The metadata in the words of Hugging Face's `config.json`."""
    kind = metadata.get("general.architecture")
    architecture = ARCHITECTURES.get(kind) if isinstance(kind, str) else None
    if architecture is None:
        raise FleetError(
            "E702",
            f"{where}: GGUF architecture {kind!r} cannot be run",
            hint=f"known architectures: {', '.join(ARCHITECTURES)}",
        )
    expected = metadata.get("split.count", 1)
    if expected != len(headers):
        raise FleetError("E704", f"{where}: {len(headers)} of {expected} split files are here")
    shapes = {tensor.name: tensor.shape for _, tensor in tensors}
    if "token_embd.weight" not in shapes:
        raise FleetError("E705", f"{where}: tensor token_embd.weight is missing")

    def get(key: str, default: Any = None) -> Any:
        value = metadata.get(f"{kind}.{key}", default)
        if isinstance(value, list) and len(set(value)) == 1:
            return value[0]  # one value for each layer, all of them equal
        return value

    num_layers, hidden, heads = (
        get("block_count"), get("embedding_length"), get("attention.head_count"),
    )  # fmt: skip
    config: dict[str, Any] = {
        "architectures": [architecture],
        "num_hidden_layers": num_layers,
        "hidden_size": hidden,
        "intermediate_size": get("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv"),
        "max_position_embeddings": get("context_length"),
        "vocab_size": shapes["token_embd.weight"][0],
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
        "rope_theta": get("rope.freq_base", 10_000.0),
        "tie_word_embeddings": "output.weight" not in shapes,
        "sliding_window": get("attention.sliding_window"),
    }
    head_size = get("attention.key_length")
    if head_size is not None:
        config["head_dim"] = head_size
    elif isinstance(hidden, int) and isinstance(heads, int) and heads > 0 and hidden % heads == 0:
        head_size = config["head_dim"] = hidden // heads
    if get("attention.value_length", head_size) != head_size:
        raise FleetError("E703", f"{where}: keys of {head_size} and values of {get('attention.value_length')}")
    rotated = get("rope.dimension_count", head_size)
    if isinstance(rotated, int) and isinstance(head_size, int) and rotated != head_size:
        config["partial_rotary_factor"] = rotated / head_size
    config |= _rope_scaling(get)
    if get("expert_count"):
        config |= {
            "num_local_experts": get("expert_count"),
            "num_experts": get("expert_count"),
            "num_experts_per_tok": get("expert_used_count"),
            "moe_intermediate_size": get("expert_feed_forward_length", get("feed_forward_length")),
            "norm_topk_prob": True,
        }
        if kind == "llama":
            config["architectures"] = ["MixtralForCausalLM"]
    if kind in _SCALED_BY_WIDTH:
        config |= _gemma_words(kind, get, head_size=head_size)
    return config


def _rope_scaling(get: Any) -> dict[str, Any]:
    scaling = get("rope.scaling.type", "none")
    if scaling == "none" and get("rope.scale_linear"):  # what files before 2023-12 say
        scaling = "linear"
    factor = get("rope.scaling.factor", get("rope.scale_linear"))
    if scaling in ("none", "longrope") or (scaling == "linear" and factor in (None, 1.0)):
        return {}
    words = {"rope_type": scaling, "factor": factor}
    if scaling == "yarn":
        words |= {
            "original_max_position_embeddings": get("rope.scaling.original_context_length"),
            "beta_fast": get("rope.scaling.yarn_beta_fast", 32.0),
            "beta_slow": get("rope.scaling.yarn_beta_slow", 1.0),
        }
        attention = get("rope.scaling.attn_factor")
        if attention is not None:
            words["attention_factor"] = attention
    return {"rope_scaling": words}


def _gemma_words(kind: str, get: Any, *, head_size: Any) -> dict[str, Any]:
    """What Gemma's own files leave to the code that runs them, as llama.cpp has it."""
    num_layers, hidden, heads = get("block_count"), get("embedding_length"), get("attention.head_count")
    is_by_width = num_layers == _SCALED_BY_WIDTH[kind]
    words: dict[str, Any] = {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": hidden // heads if is_by_width else head_size,
        "attn_logit_softcapping": get("attn_logit_softcapping"),
        "final_logit_softcapping": get("final_logit_softcapping"),
    }
    period = 2 if kind == "gemma2" else get("attention.sliding_window_pattern", _GEMMA3_WINDOW_PERIOD)
    if isinstance(num_layers, int) and isinstance(period, int) and period > 0:
        words["layer_types"] = [
            "full_attention" if (layer + 1) % period == 0 else "sliding_attention" for layer in range(num_layers)
        ]
    if kind == "gemma3":
        words["rope_local_base_freq"] = get("rope.freq_base_swa", _GEMMA_SWA_THETA)
        words["rope_theta"] = get("rope.freq_base", 1_000_000.0)
    return words


def _rope_of_factors(
    metadata: dict[str, Any], spec: ModelSpec, tensors: Sequence[tuple[str, GgufTensor]], files: dict[str, Path]
) -> RopeSpec | None:
    """Rope of a file with a divisor for each rotary pair: Llama 3.1's, or the two sets of Phi's longrope."""
    found = {tensor.name: (files[file], tensor) for file, tensor in tensors if tensor.name in _ROPE_TENSORS}
    if not found:
        return None
    pairs = int(spec.head_size * spec.rope.rotary_share) // 2
    factors = {name: _read_factors(path, tensor, pairs) for name, (path, tensor) in found.items()}
    kind = metadata["general.architecture"]
    short = factors.get("rope_factors_short.weight", factors.get("rope_freqs.weight", ()))
    long = factors.get("rope_factors_long.weight", factors.get("rope_freqs.weight", ()))
    if not short or not long:
        raise FleetError("E705", f"{spec.name}: of {', '.join(_ROPE_TENSORS[1:])} there must be both")
    return RopeSpec(
        theta=spec.rope.theta,
        kind="longrope",
        original_context=int(metadata.get(f"{kind}.rope.scaling.original_context_length", spec.max_context)),
        rotary_share=spec.rope.rotary_share,
        magnitude=float(metadata.get(f"{kind}.rope.scaling.attn_factor", 1.0)),
        short_factors=short,
        long_factors=long,
    )


def _read_factors(path: Path, tensor: GgufTensor, pairs: int) -> tuple[float, ...]:
    if tensor.dtype != "F32" or tensor.shape != (pairs,):
        raise FleetError(
            "E705", f"{path}: {tensor.name} is {tensor.dtype} {list(tensor.shape)}, F32 [{pairs}] expected"
        )
    with path.open("rb") as file:
        file.seek(tensor.offset)
        factors: tuple[float, ...] = struct.unpack(f"<{pairs}f", file.read(tensor.length))
    if not all(0 < factor < float("inf") for factor in factors):
        raise FleetError("E705", f"{path}: {tensor.name} has a value that is no positive number")
    return factors


def _token(metadata: dict[str, Any], which: str) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{which}_token_id")
    return value if isinstance(value, int) and 0 <= value < 1 << 31 else None


def _entries(spec: ModelSpec, tensors: Sequence[tuple[str, GgufTensor]]) -> Iterator[TensorEntry]:
    for file, tensor in tensors:
        if tensor.name in _ROPE_TENSORS or tensor.name.startswith(_OTHER_MODALITIES):
            continue
        name = _hf_name(spec, tensor.name)
        if "{expert}" not in name:
            yield TensorEntry(
                name=name,
                file=file,
                dtype=tensor.dtype,
                shape=tensor.shape,
                offset=tensor.offset,
                length=tensor.length,
                form=_form(spec, tensor.name),
            )
            continue
        num_experts, *shape = tensor.shape
        length = tensor.length // num_experts
        for expert in range(num_experts):
            yield TensorEntry(
                name=name.format(expert=expert),
                file=file,
                dtype=tensor.dtype,
                shape=tuple(shape),
                offset=tensor.offset + expert * length,
                length=length,
            )


def _hf_name(spec: ModelSpec, name: str) -> str:
    """Hugging Face's name of a tensor; where there is none its own, which the check of all tensors refuses."""
    stem, _, suffix = name.rpartition(".")
    if stem in _PREFIXES:
        return f"{_PREFIXES[stem]}.{suffix}"
    match = _LAYER_NAME.fullmatch(name)
    if match is None:
        return name
    layer, part, suffix = match.groups()
    parts = _LAYER_PARTS | _EXPERTS.get(spec.family.architecture, {})
    if spec.family.has_output_norms:
        parts |= _GEMMA_PARTS
    if spec.family.fuses_projections:
        parts |= _PHI_PARTS
    return f"model.layers.{layer}.{parts[part]}.{suffix}" if part in parts else name


def _form(spec: ModelSpec, name: str) -> StoredForm:
    if spec.family.norm_adds_one and name.endswith("norm.weight"):
        return "plus_one"
    is_llama = spec.family.name in ("llama", "mixtral")
    match = _LAYER_NAME.fullmatch(name)
    if is_llama and match is not None and match[2] in ("attn_q", "attn_k"):
        return "paired_rows"
    return "plain"
