"""`config.json` and the headers of a model directory -> ModelSpec. What we do not do is refused, never ignored."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import FleetError
from agent.facts.families import rules_of
from agent.facts.model import Dtype, ModelSpec, TensorEntry
from agent.models.config import spec_of_config
from agent.models.files import gguf_weight_files, is_gguf_model
from agent.models.gguf_types import QUANTISED_TYPES
from agent.models.language_part import language_config, language_part_of, language_tensors
from agent.models.ollama_store import name_of_manifest, store_of
from agent.models.problems import Problems
from agent.models.safetensors_index import read_index
from agent.planner.shards import full_shape, rules_of_layer

PLAIN_DTYPES: dict[str, Dtype] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
STORED_DTYPES: dict[str, Dtype] = {**PLAIN_DTYPES, **dict.fromkeys(QUANTISED_TYPES, "bfloat16")}
"""What a tensor may be stored as, and what it is served in unless the plan says otherwise."""
_HARMLESS = re.compile(r"rotary_emb\.inv_freq$")
"""Buffers that old checkpoints carry along; they follow from the config."""


def read_spec(path: Path, *, name: str = "") -> ModelSpec:
    """Spec of the model at this path, its digest left empty. Reads headers, never weights.

    Raises FleetError E701 to E705, with every problem of its kind in one message.
    """
    if is_gguf_model(path):
        from agent.models.gguf_index import read_gguf_spec  # it takes configs apart with what is below

        return read_gguf_spec(gguf_weight_files(path), name=name or name_of(path), where=str(path))
    whole = read_config(path)
    part = language_part_of(whole)
    config = language_config(whole, part) if part is not None else whole
    spec = spec_of_config(config, where=str(path / "config.json"), name=name or name_of(path))
    generation = _read_json(path / "generation_config.json") if (path / "generation_config.json").is_file() else {}
    spec = msgspec.structs.replace(
        spec,
        bos_token_id=_first_id(config, generation, "bos_token_id"),
        eos_token_ids=_eos_ids(whole, config, generation),
    )
    index = read_index(path)
    return add_tensors(spec, index if part is None else language_tensors(index, part), where=str(path))


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


def add_tensors(spec: ModelSpec, index: tuple[TensorEntry, ...], *, where: str) -> ModelSpec:
    """The spec with those tensors of the index that its family uses. Raises E705 with all that is wrong.

    A tensor that our families do not know would mean that the model computes something else: refused, too.
    """
    problems = Problems(where, "E705")
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
    index: tuple[TensorEntry, ...], fused: dict[str, dict[str, tuple[int, ...]]], problems: Problems
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


def _first_id(config: dict[str, Any], generation: dict[str, Any], key: str) -> int | None:
    for source in (config, generation):
        if isinstance(source.get(key), int):
            return int(source[key])
    return None


def _eos_ids(*sources: dict[str, Any]) -> tuple[int, ...]:
    """Every end-of-sequence token of the files: chat models often name theirs in generation_config alone."""
    ids: dict[int, None] = {}
    for source in sources:
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
