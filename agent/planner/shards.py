"""Which slice of which tensor a rank owns. Pure; the planner sizes with it, fetch and engine load with it.

One function decides, so that planned bytes, fetched bytes and resident bytes cannot drift apart.
"""

from __future__ import annotations

import math
from typing import assert_never

import msgspec

from agent.facts.families import TensorRule, rules_of
from agent.facts.model import DTYPE_BYTES, Dtype, ModelSpec, Quantisation
from agent.planner.plan import Range

INT4_GROUP = 32
"""Weights of a row that share a scale and a zero in int4. Rows that cannot be divided by it are kept in int8."""
SCALE_BYTES = 4
"""Of the float32 scale of each row, one output, in int8 and fp8."""
_MATRIX_ROLES = ("head", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""What quantisation is about. A router decides between experts: it is small, and keeps the dtype."""


class ShardExtent(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a model that one rank owns, free of hosts and bytes. Ranges are half-open."""

    layers: Range
    heads: Range
    kv_heads: Range
    columns: Range
    vocab: Range
    is_first_stage: bool
    is_last_stage: bool


def whole_extent(spec: ModelSpec) -> ShardExtent:
    """All of a model, as one rank owns it: the only stage of one."""
    return ShardExtent(
        layers=(0, spec.num_layers),
        heads=(0, spec.num_heads),
        kv_heads=(0, spec.num_kv_heads),
        columns=(0, spec.mlp_columns),
        vocab=(0, spec.vocab_size),
        is_first_stage=True,
        is_last_stage=True,
    )


class TensorSlice(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor of a shard: `shape` is the full tensor's, cut along `dim` to `[begin, end)`.

    `dim` is None when the rank owns the whole tensor.
    """

    role: str
    name: str
    layer: int | None
    expert: int | None = None
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
    columns = spec.expert_size if rule.scope == "expert" else spec.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "embedding": (spec.vocab_size, hidden),
        "head": (spec.vocab_size, hidden),
        "final_norm": (hidden,),
        "input_norm": (hidden,),
        "attention_out_norm": (hidden,),
        "mlp_norm": (hidden,),
        "mlp_out_norm": (hidden,),
        "q_proj": (spec.num_heads * head, hidden),
        "k_proj": (spec.num_kv_heads * head, hidden),
        "v_proj": (spec.num_kv_heads * head, hidden),
        "o_proj": (hidden, spec.num_heads * head),
        "router": (spec.num_experts, hidden),
        "gate_proj": (columns, hidden),
        "up_proj": (columns, hidden),
        "down_proj": (hidden, columns),
        "q_bias": (spec.num_heads * head,),
        "k_bias": (spec.num_kv_heads * head,),
        "v_bias": (spec.num_kv_heads * head,),
        "q_norm": (head,),
        "k_norm": (head,),
    }
    return shapes[rule.role]


def rules_of_layer(
    spec: ModelSpec, rules: tuple[TensorRule, ...], layer: int
) -> tuple[tuple[TensorRule, int | None], ...]:
    """The rules that hold in a layer, those of experts once for each, expert by expert."""
    is_sparse = spec.is_sparse(layer)
    scopes = ("layer", "sparse" if is_sparse else "dense")
    held: list[tuple[TensorRule, int | None]] = [(rule, None) for rule in rules if rule.scope in scopes]
    if is_sparse:
        of_experts = [rule for rule in rules if rule.scope == "expert"]
        held += [(rule, expert) for expert in range(spec.num_experts) for rule in of_experts]
    return tuple(held)


def slice_shard(spec: ModelSpec, extent: ShardExtent) -> tuple[TensorSlice, ...]:
    """Every tensor slice that a rank with this extent holds, each once, in a stable order.

    A tied model's embedding is held once by a stage that is both first and last.
    """
    rules = rules_of(spec.family, is_tied=spec.tie_word_embeddings)
    slices: list[TensorSlice] = []
    is_needed = {
        "embedding": extent.is_first_stage or (extent.is_last_stage and spec.tie_word_embeddings),
        "final_norm": extent.is_last_stage,
        "head": extent.is_last_stage,
    }
    for rule in rules:
        if is_needed.get(rule.scope):
            slices.append(_slice(spec, rule, extent, layer=None, expert=None))
    for layer in range(*extent.layers):
        for rule, expert in rules_of_layer(spec, rules, layer):
            slices.append(_slice(spec, rule, extent, layer=layer, expert=expert))
    return tuple(slices)


def shard_weight_bytes(
    spec: ModelSpec, extent: ShardExtent, dtype: Dtype, quantisation: Quantisation = "none"
) -> int:
    """Bytes of weights that the rank keeps resident when it serves in `dtype`, its matrices quantised.

    A quantised head that is tied to the embedding is a copy, next to the embedding where that is held too.
    """
    pieces = slice_shard(spec, extent)
    if quantisation == "none":
        return sum(piece.num_elements for piece in pieces) * DTYPE_BYTES[dtype]
    total = 0
    for piece in pieces:
        is_tied_head = piece.role == "embedding" and spec.tie_word_embeddings and extent.is_last_stage
        if piece.role in _MATRIX_ROLES or is_tied_head:
            rows, columns = piece.sliced_shape
            total += matrix_bytes(rows, columns, dtype, quantisation)
        if piece.role not in _MATRIX_ROLES and (extent.is_first_stage or not is_tied_head):
            total += piece.num_elements * DTYPE_BYTES[dtype]
    return total


def matrix_bytes(rows: int, columns: int, dtype: Dtype, quantisation: Quantisation) -> int:
    """Bytes of one matrix of `rows` outputs and `columns` inputs with its scales."""
    match quantisation:
        case "none":
            return rows * columns * DTYPE_BYTES[dtype]
        case "int4" if columns % INT4_GROUP == 0:
            return rows * (columns // 2 + columns // INT4_GROUP * 2 * DTYPE_BYTES[dtype])
        case "int8" | "fp8" | "int4":
            return rows * (columns + SCALE_BYTES)
        case _:
            assert_never(quantisation)


def weight_bytes(dtype: Dtype, quantisation: Quantisation) -> float:
    """Bytes of a matrix element, scales left out where they are one to a row."""
    match quantisation:
        case "none":
            return DTYPE_BYTES[dtype]
        case "int8" | "fp8":
            return 1.0
        case "int4":
            return matrix_bytes(1, INT4_GROUP, dtype, "int4") / INT4_GROUP
        case _:
            assert_never(quantisation)


def _slice(
    spec: ModelSpec, rule: TensorRule, extent: ShardExtent, *, layer: int | None, expert: int | None
) -> TensorSlice:
    shape = full_shape(spec, rule)
    dim, (begin, end) = _cut(rule, spec, extent)
    if dim is None:
        begin, end = 0, shape[0]
    return TensorSlice(
        role=rule.role,
        name=rule.name.format(layer=layer, expert=expert),
        layer=layer,
        expert=expert,
        shape=shape,
        dim=dim,
        begin=begin,
        end=end,
    )


def _cut(rule: TensorRule, spec: ModelSpec, extent: ShardExtent) -> tuple[int | None, Range]:
    match rule.sharding:
        case "heads" | "heads_in":
            first, end = extent.heads
            return (0 if rule.sharding == "heads" else 1), (first * spec.head_size, end * spec.head_size)
        case "kv_heads":
            first, end = extent.kv_heads
            return 0, (first * spec.head_size, end * spec.head_size)
        case "columns" | "columns_in":
            dim = 0 if rule.sharding == "columns" else 1
            return dim, extent.columns if rule.scope == "expert" else dense_columns(spec, extent.columns)
        case "vocab":
            return 0, extent.vocab
        case "whole":
            return None, (0, 0)
        case _:
            assert_never(rule.sharding)


def dense_columns(spec: ModelSpec, columns: Range) -> Range:
    """The share of a dense layer's MLP: `columns` itself, or as large a part of it in a model of experts.

    Boundaries are rounded to the nearest column, so that neighbours always meet.
    """
    of, total = spec.mlp_columns, spec.intermediate_size
    begin, end = ((2 * total * edge + of) // (2 * of) for edge in columns)
    return begin, end
