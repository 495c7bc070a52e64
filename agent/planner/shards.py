"""Which slice of which tensor a rank owns. Pure; the planner sizes with it, fetch and engine load with it.

One function decides, so that planned bytes, fetched bytes and resident bytes cannot drift apart.
"""

from __future__ import annotations

import math

import msgspec

from agent.facts.families import Sharding, TensorRule, rules_of
from agent.facts.model import DTYPE_BYTES, Dtype, ModelSpec
from agent.planner.plan import Range


class ShardExtent(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a model that one rank owns, free of hosts and bytes. Ranges are half-open."""

    layers: Range
    heads: Range
    kv_heads: Range
    columns: Range
    vocab: Range
    is_first_stage: bool
    is_last_stage: bool


class TensorSlice(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor of a shard: `shape` is the full tensor's, cut along `dim` to `[begin, end)`.

    `dim` is None when the rank owns the whole tensor.
    """

    role: str
    name: str
    layer: int | None
    shape: tuple[int, ...]
    dim: int | None
    begin: int
    end: int

    @property
    def sliced_shape(self) -> tuple[int, ...]:
        if self.dim is None:
            return self.shape
        return tuple(self.end - self.begin if dim == self.dim else size for dim, size in enumerate(self.shape))

    @property
    def num_elements(self) -> int:
        return math.prod(self.sliced_shape)


def full_shape(spec: ModelSpec, rule: TensorRule) -> tuple[int, ...]:
    """Shape of a rule's tensor in the unsharded model, as HF stores it (output dimension first)."""
    hidden, head = spec.hidden_size, spec.head_size
    shapes: dict[str, tuple[int, ...]] = {
        "embedding": (spec.vocab_size, hidden),
        "head": (spec.vocab_size, hidden),
        "final_norm": (hidden,),
        "input_norm": (hidden,),
        "post_norm": (hidden,),
        "q_proj": (spec.num_heads * head, hidden),
        "k_proj": (spec.num_kv_heads * head, hidden),
        "v_proj": (spec.num_kv_heads * head, hidden),
        "o_proj": (hidden, spec.num_heads * head),
        "gate_proj": (spec.intermediate_size, hidden),
        "up_proj": (spec.intermediate_size, hidden),
        "down_proj": (hidden, spec.intermediate_size),
        "q_bias": (spec.num_heads * head,),
        "k_bias": (spec.num_kv_heads * head,),
        "v_bias": (spec.num_kv_heads * head,),
        "q_norm": (head,),
        "k_norm": (head,),
    }
    return shapes[rule.role]


def slice_shard(spec: ModelSpec, extent: ShardExtent) -> tuple[TensorSlice, ...]:
    """Every tensor slice that a rank with this extent holds, each once, in a stable order.

    A tied model's embedding is held once by a stage that is both first and last.
    """
    rules = rules_of(spec.family, is_tied=spec.tie_word_embeddings)
    slices: list[TensorSlice] = []
    for rule in rules:
        if rule.scope == "layer":
            continue
        is_needed = {
            "embedding": extent.is_first_stage or (extent.is_last_stage and spec.tie_word_embeddings),
            "final_norm": extent.is_last_stage,
            "head": extent.is_last_stage,
        }[rule.scope]
        if is_needed:
            slices.append(_slice(spec, rule, extent, layer=None))
    for layer in range(*extent.layers):
        slices.extend(_slice(spec, rule, extent, layer=layer) for rule in rules if rule.scope == "layer")
    return tuple(slices)


def shard_weight_bytes(spec: ModelSpec, extent: ShardExtent, dtype: Dtype) -> int:
    """Bytes of weights that the rank keeps resident when it serves in `dtype`."""
    return sum(piece.num_elements for piece in slice_shard(spec, extent)) * DTYPE_BYTES[dtype]


def _slice(spec: ModelSpec, rule: TensorRule, extent: ShardExtent, *, layer: int | None) -> TensorSlice:
    shape = full_shape(spec, rule)
    dim, (begin, end) = _cut(rule.sharding, spec.head_size, extent)
    if dim is None:
        begin, end = 0, shape[0]
    name = rule.name.format(layer=layer) if layer is not None else rule.name
    return TensorSlice(role=rule.role, name=name, layer=layer, shape=shape, dim=dim, begin=begin, end=end)


def _cut(sharding: Sharding, head_size: int, extent: ShardExtent) -> tuple[int | None, Range]:
    match sharding:
        case "heads" | "heads_in":
            first, end = extent.heads
            return (0 if sharding == "heads" else 1), (first * head_size, end * head_size)
        case "kv_heads":
            first, end = extent.kv_heads
            return 0, (first * head_size, end * head_size)
        case "columns":
            return 0, extent.columns
        case "columns_in":
            return 1, extent.columns
        case "vocab":
            return 0, extent.vocab
        case "whole":
            return None, (0, 0)
