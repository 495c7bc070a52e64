"""The element types of tensor files, ours to read: names, block sizes, and how slices fall on blocks.

A GGUF row is a sequence of blocks: 32 or 256 weights that share scales. Safetensors' plain types are blocks of one.
Layouts: ggml's `ggml-common.h`.
"""

from __future__ import annotations

import math

import msgspec

from agent.facts.model import ModelSpec, TensorEntry
from agent.models.safetensors_index import DTYPE_SIZES
from agent.planner.shards import TensorSlice


class BlockType(msgspec.Struct, frozen=True):
    """`weights` elements in `num_bytes` bytes."""

    weights: int
    num_bytes: int


QUANTISED_TYPES: dict[str, BlockType] = {
    "Q4_0": BlockType(32, 18),
    "Q4_1": BlockType(32, 20),
    "Q5_0": BlockType(32, 22),
    "Q5_1": BlockType(32, 24),
    "Q8_0": BlockType(32, 34),
    "Q4_K": BlockType(256, 144),
    "Q5_K": BlockType(256, 176),
    "Q6_K": BlockType(256, 210),
}
"""All that can be run. Q4_1, Q5_0 and Q5_1 are what llama.cpp takes for rows that are no multiple of 256."""

GGUF_TYPE_NAMES: dict[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip
"""ggml's type numbers, those that we refuse among them: a refusal names what it found."""


def block_of(dtype: str) -> BlockType:
    """The block of a type that we know: a plain one's has one element."""
    return QUANTISED_TYPES.get(dtype) or BlockType(1, DTYPE_SIZES[dtype])


def is_known_type(dtype: str) -> bool:
    return dtype in QUANTISED_TYPES or dtype in DTYPE_SIZES


def num_stored_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a whole tensor. Its rows must be whole blocks."""
    block = block_of(dtype)
    assert not shape or shape[-1] % block.weights == 0, f"rows of {shape} are no whole {dtype} blocks"
    return math.prod(shape) // block.weights * block.num_bytes


class StoredSlice(msgspec.Struct, frozen=True, kw_only=True):
    """What is read for a slice: `count` pieces of `length` bytes, `stride` apart from `offset` on, row-major.

    They are rows of `row_bytes`, whole blocks that may reach beyond a slice of columns at both ends: of the
    `columns` elements in each row, those from `skip` on are the slice's.
    """

    offset: int
    length: int
    stride: int
    count: int
    row_bytes: int
    columns: int
    skip: int


def stored_slice(entry: TensorEntry, piece: TensorSlice) -> StoredSlice:
    """Where a slice's blocks lie in the file that has the whole tensor. Fetch and engine both go by it."""
    assert entry.shape == piece.shape, f"{entry.name}: {entry.shape} on disk, {piece.shape} planned"
    block = block_of(entry.dtype)
    *outer, width = entry.shape
    row_bytes = width // block.weights * block.num_bytes
    if piece.dim is None or piece.dim < len(outer):
        dim = piece.dim or 0
        begin, end = (piece.begin, piece.end) if piece.dim is not None else (0, entry.shape[0])
        inner = math.prod(outer[dim + 1 :]) * row_bytes
        if not outer:  # a vector, whole: its one row is all there is
            begin, end, inner = 0, 1, row_bytes
        return StoredSlice(
            offset=entry.offset + begin * inner,
            length=(end - begin) * inner,
            stride=max(entry.shape[dim], 1) * inner if outer else row_bytes,
            count=math.prod(outer[:dim]),
            row_bytes=row_bytes,
            columns=width,
            skip=0,
        )
    first, end = piece.begin // block.weights, -(-piece.end // block.weights)
    return StoredSlice(
        offset=entry.offset + first * block.num_bytes,
        length=(end - first) * block.num_bytes,
        stride=row_bytes,
        count=math.prod(outer),
        row_bytes=(end - first) * block.num_bytes,
        columns=(end - first) * block.weights,
        skip=piece.begin - first * block.weights,
    )


def stored_quantisation(spec: ModelSpec) -> str:
    """GGUF's name of the type that most of the model's bytes have, when it is a quantised one; else ""."""
    return spec.stored_as if spec.stored_as in QUANTISED_TYPES else ""
