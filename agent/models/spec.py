"""`config.json` and the headers of a model directory -> ModelSpec. What we do not do is refused, never ignored."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast

import msgspec

from agent.errors import FleetError
from agent.facts.families import FAMILIES, family_of, rules_of
from agent.facts.model import Dtype, FamilySpec, ModelSpec, RopeSpec, TensorEntry
from agent.models.files import gguf_weight_files, is_gguf_model
from agent.models.gguf_types import QUANTISED_TYPES
from agent.models.ollama_store import name_of_manifest, store_of
from agent.models.safetensors_index import read_index
from agent.planner.shards import full_shape, rules_of_layer

PLAIN_DTYPES: dict[str, Dtype] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
STORED_DTYPES: dict[str, Dtype] = {**PLAIN_DTYPES, **dict.fromkeys(QUANTISED_TYPES, "bfloat16")}
"""What a tensor may be stored as, and what it is served in unless the plan says otherwise."""
MAX_PROBLEMS_SHOWN = 6
_DEFAULT_ROPE_THETA = 10_000.0  # of all our families in transformers
_DEFAULT_RMS_NORM_EPS = 1e-6
_QWEN3_HEAD_SIZE = 128
_MISTRAL_SLIDING_WINDOW = 4096
RopeKind = Literal["default", "linear", "llama3"]
_ROPE_KEYS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
_HARMLESS = re.compile(r"rotary_emb\.inv_freq$")
"""Buffers that old checkpoints carry along; they follow from the config."""


class _Problems:
    """Collects all that is wrong, so that it is told at once."""

    def __init__(self, where: str, code: str) -> None:
        self.where = where
        self.code = code
        self.found: list[str] = []

    def add(self, text: str) -> None:
        self.found.append(text)

    def raise_if_any(self, *, hint: str = "") -> None:
        if not self.found:
            return
        shown = "; ".join(self.found[:MAX_PROBLEMS_SHOWN])
        more = len(self.found) - MAX_PROBLEMS_SHOWN
        tail = f"; and {more} more" if more > 0 else ""
        raise FleetError(self.code, f"{self.where}: {shown}{tail}", hint=hint)


def read_spec(path: Path, *, name: str = "") -> ModelSpec:
    """Spec of the model at this path, its digest left empty. Reads headers, never weights.

    Raises FleetError E701 to E705, with every problem of its kind in one message.
    """
    if is_gguf_model(path):
        from agent.models.gguf_index import read_gguf_spec  # it takes configs apart with what is below

        return read_gguf_spec(gguf_weight_files(path), name=name or name_of(path), where=str(path))
    config = read_config(path)
    spec = spec_of_config(config, where=str(path / "config.json"), name=name or name_of(path))
    generation = _read_json(path / "generation_config.json") if (path / "generation_config.json").is_file() else {}
    spec = msgspec.structs.replace(
        spec,
        bos_token_id=_first_id(config, generation, "bos_token_id"),
        eos_token_ids=_eos_ids(config, generation),
    )
    return add_tensors(spec, read_index(path), where=str(path))


def read_config(path: Path) -> dict[str, Any]:
    """The parsed `config.json`. Raises E701 when there is none and E703 when it is no JSON object."""
    if not (path / "config.json").is_file():
        raise FleetError(
            "E701", f"{path} has no config.json", hint="give a model directory in Hugging Face's layout"
        )
    return _read_json(path / "config.json")


def name_of(path: Path) -> str:
    """What people call the model at this path; the hub cache's `models--org--NAME/snapshots/HASH` is known."""
    if store_of(path) is not None:
        return name_of_manifest(path)
    path = path.resolve()
    if path.suffix == ".gguf":
        return path.stem
    if path.parent.name == "snapshots":
        return path.parent.parent.name.rsplit("--", 1)[-1]
    return path.name


def spec_of_config(config: dict[str, Any], *, where: str, name: str) -> ModelSpec:
    """The structural part of a spec. Raises E702 for an unknown architecture, E703 for all other problems."""
    family = _family(config, where)
    problems = _Problems(where, "E703")
    _refuse_unsupported(config, family, problems)
    required = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    sizes = {key: _positive(config, key, problems) for key in (*required, "max_position_embeddings")}
    hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    kv_heads = (
        heads if config.get("num_key_value_heads") is None else _positive(config, "num_key_value_heads", problems)
    )
    problems.raise_if_any()
    head_size = _head_size(config, family, hidden, heads, problems)
    if heads % kv_heads:
        problems.add(f"num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}")
    window = _sliding_window(config, family, sizes["max_position_embeddings"], problems)
    rope = _rope(config, problems)
    eps = config.get("rms_norm_eps", _DEFAULT_RMS_NORM_EPS)
    if not _is_positive(eps):
        problems.add(f"rms_norm_eps is {eps!r}, a positive number expected")
    problems.raise_if_any()
    return ModelSpec(
        name=name,
        family=family,
        num_layers=sizes["num_hidden_layers"],
        hidden_size=hidden,
        intermediate_size=sizes["intermediate_size"],
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_size=head_size,
        vocab_size=sizes["vocab_size"],
        max_context=sizes["max_position_embeddings"],
        rms_norm_eps=float(eps),
        rope=rope,
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        dtype="float32",
        num_parameters=0,
        sliding_window=window,
    )


def add_tensors(spec: ModelSpec, index: tuple[TensorEntry, ...], *, where: str) -> ModelSpec:
    """The spec with those tensors of the index that its family uses. Raises E705 with all that is wrong.

    A tensor that our families do not know would mean that the model computes something else: refused, too.
    """
    problems = _Problems(where, "E705")
    rules = rules_of(spec.family, is_tied=spec.tie_word_embeddings)
    wanted: dict[str, tuple[int, ...]] = {}
    fused: dict[str, dict[str, tuple[int, ...]]] = {}
    for rule in rules:
        if rule.scope in ("embedding", "final_norm", "head"):
            wanted[rule.name] = full_shape(spec, rule)
    for layer in range(spec.num_layers):
        for rule, expert in rules_of_layer(spec, rules, layer):
            name = rule.name.format(layer=layer, expert=expert)
            wanted[name] = full_shape(spec, rule)
            if rule.stored_in:
                fused.setdefault(rule.stored_in.format(layer=layer), {})[name] = wanted[name]
    entries = {entry.name: entry for entry in _split_fused(index, fused, problems)}
    stored_in = {part: name for name, parts in fused.items() for part in parts}
    for name in dict.fromkeys(stored_in.get(name, name) for name in wanted if name not in entries):
        problems.add(f"tensor {name} is missing")
    for name, shape in wanted.items():
        entry = entries.get(name)
        if entry is None:
            continue
        if entry.shape != shape:
            problems.add(f"{name} has shape {list(entry.shape)}, {list(shape)} expected from config.json")
        elif entry.dtype not in STORED_DTYPES:
            problems.add(f"{name} is {entry.dtype}; only {', '.join(STORED_DTYPES)} can be run")
    allowed = {"lm_head.weight"} if spec.tie_word_embeddings else set()
    for name in sorted(entries.keys() - wanted.keys() - allowed):
        if not _HARMLESS.search(name):
            problems.add(f"tensor {name} is unknown to {spec.family.architecture}")
    problems.raise_if_any(
        hint="the weights and config.json do not belong together, or the model is of another kind"
    )
    used = tuple(entries[name] for name in sorted(wanted))
    return msgspec.structs.replace(
        spec,
        tensors=used,
        dtype=_main_dtype(used),
        num_parameters=sum(math.prod(entry.shape) for entry in used),
    )


def _split_fused(
    index: tuple[TensorEntry, ...], fused: dict[str, dict[str, tuple[int, ...]]], problems: _Problems
) -> Iterator[TensorEntry]:
    """The index with an entry for each part of a fused tensor: its rows are where the parts before it end."""
    for entry in index:
        parts = fused.get(entry.name)
        if parts is None:
            yield entry
            continue
        rows = sum(shape[0] for shape in parts.values())
        columns = next(iter(parts.values()))[1:]
        if entry.shape != (rows, *columns):
            expected = [rows, *columns]
            problems.add(f"{entry.name} has shape {list(entry.shape)}, {expected} expected from config.json")
        row_bytes, begin = entry.length // entry.shape[0], 0
        for name, shape in parts.items():
            yield msgspec.structs.replace(
                entry,
                name=name,
                shape=shape,
                offset=entry.offset + begin * row_bytes,
                length=shape[0] * row_bytes,
            )
            begin += shape[0]


def _family(config: dict[str, Any], where: str) -> FamilySpec:
    named = config.get("architectures")
    architecture = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else ""
    family = family_of(architecture)
    if family is None:
        known = ", ".join(family.architecture for family in FAMILIES)
        what = f"architecture {architecture} cannot be run" if architecture else "it names no architecture"
        raise FleetError("E702", f"{where}: {what}", hint=f"known architectures: {known}")
    return family


def _refuse_unsupported(config: dict[str, Any], family: FamilySpec, problems: _Problems) -> None:
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):  # two names for one function
        problems.add(f"hidden_act {activation!r} is not supported, only 'silu'")
    for key in ("mlp_bias", "attention_bias"):
        # Qwen 2 always has its biases and says so nowhere; a config that says it agrees
        if config.get(key) and not (key == "attention_bias" and family.qkv_bias):
            problems.add(f"{key} is not supported for {family.architecture}")
    if config.get("quantization_config"):
        method = config["quantization_config"]
        method = method.get("quant_method", "unknown") if isinstance(method, dict) else method
        problems.add(f"quantised weights ({method}) are not supported, only float32, bfloat16 and float16")


def _positive(config: dict[str, Any], key: str, problems: _Problems) -> int:
    value = config.get(key)
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    problems.add(f"{key} is missing" if value is None else f"{key} is {value!r}, a positive whole number expected")
    return 1  # never used: the problem raises once all others are found


def _head_size(config: dict[str, Any], family: FamilySpec, hidden: int, heads: int, problems: _Problems) -> int:
    if config.get("head_dim") is not None:
        size = _positive(config, "head_dim", problems)
    elif family.name == "qwen3":
        size = _QWEN3_HEAD_SIZE
    else:
        if hidden % heads:
            problems.add(
                f"hidden_size {hidden} is no multiple of num_attention_heads {heads}, and head_dim is missing"
            )
        size = hidden // heads
    if size % 2:
        problems.add(f"head_dim {size} is odd, which rotary embeddings cannot be")
    return size


def _sliding_window(
    config: dict[str, Any], family: FamilySpec, max_context: int, problems: _Problems
) -> int | None:
    """Positions that attention looks back, or None for all. Mistral has one window for all layers, or none."""
    if family.uses_sliding_window:
        window = config.get("sliding_window", _MISTRAL_SLIDING_WINDOW)
        if window is None:
            return None
        return _positive({"sliding_window": window}, "sliding_window", problems)
    layer_types = config.get("layer_types") or []
    if not isinstance(layer_types, list):
        problems.add(f"layer_types is {layer_types!r}, a list expected")
        return None
    is_used = any(kind != "full_attention" for kind in layer_types)
    if not layer_types and config.get("use_sliding_window"):
        first_windowed = config.get("max_window_layers")
        num_layers = config.get("num_hidden_layers")
        is_used = not (
            isinstance(first_windowed, int) and isinstance(num_layers, int) and first_windowed >= num_layers
        )
    window = config.get("sliding_window")
    if is_used and isinstance(window, int) and window >= max_context:
        return None
    if is_used:
        problems.add(
            f"attention that differs between layers (sliding_window {window}) is not supported for {family.name}"
        )
    return None


def _rope(config: dict[str, Any], problems: _Problems) -> RopeSpec:
    """From `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    unread = RopeSpec(theta=_DEFAULT_ROPE_THETA)
    merged: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        if not isinstance(config.get(key), dict | None):
            problems.add(f"{key} is {config[key]!r}, an object expected")
            return unread
        merged |= config.get(key) or {}
    share = merged.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if share not in (None, 1, 1.0):
        problems.add(f"partial_rotary_factor {share} is not supported, only 1")
    if any(isinstance(value, dict) for value in merged.values()):
        problems.add("rotary embeddings that differ between layers are not supported")
        return unread
    kind: str = merged.get("rope_type") or merged.get("type") or "default"
    if kind not in _ROPE_KEYS:
        problems.add(f"rope type {kind!r} is not supported, only {', '.join(_ROPE_KEYS)}")
        return unread
    theta = merged.get("rope_theta") or config.get("rope_theta") or _DEFAULT_ROPE_THETA
    values = {key: merged.get(key) for key in _ROPE_KEYS[kind]} | {"rope_theta": theta}
    for key, value in values.items():
        if not _is_positive(value):
            problems.add(f"{key} of the {kind} rope is {value!r}, a positive number expected")
            return unread
    return RopeSpec(
        theta=float(theta),
        kind=cast(RopeKind, kind),
        factor=float(values.get("factor") or 1.0),
        low_freq_factor=float(values.get("low_freq_factor") or 1.0),
        high_freq_factor=float(values.get("high_freq_factor") or 4.0),
        original_context=int(values.get("original_max_position_embeddings") or 8192),
    )


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _first_id(config: dict[str, Any], generation: dict[str, Any], key: str) -> int | None:
    for source in (config, generation):
        if isinstance(source.get(key), int):
            return int(source[key])
    return None


def _eos_ids(config: dict[str, Any], generation: dict[str, Any]) -> tuple[int, ...]:
    """Every end-of-sequence token of either file: chat models often name theirs in generation_config alone."""
    ids: dict[int, None] = {}
    for source in (config, generation):
        value = source.get("eos_token_id")
        for token in value if isinstance(value, list) else [value]:
            if isinstance(token, int):
                ids[token] = None
    return tuple(ids)


def _main_dtype(entries: tuple[TensorEntry, ...]) -> Dtype:
    """Dtype of most bytes: some checkpoints keep their norms in float32 beside bfloat16 matrices."""
    lengths: dict[Dtype, int] = {}
    for entry in entries:
        dtype = STORED_DTYPES[entry.dtype]
        lengths[dtype] = lengths.get(dtype, 0) + entry.length
    return max(lengths, key=lambda dtype: lengths[dtype])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise FleetError("E703", f"{path} is not a JSON object: {error}") from error
    return content
