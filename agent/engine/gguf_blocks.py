"""Quantised GGUF blocks -> float32, a few rows at a time.

Shapes: R rows, B blocks in a row, W weights in a block. Layouts and arithmetic: ggml's `ggml-common.h` and
`ggml-quants.c`; scales are float16, and each product is taken in float32 as there, so values are equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from agent.models.gguf_types import QUANTISED_TYPES


def dequantise(raw_RX: Tensor, dtype: str) -> Tensor:
    """Float32 values of rows of blocks, given as bytes (uint8, contiguous). R x (B W)."""
    block = QUANTISED_TYPES[dtype]
    rows, row_bytes = raw_RX.shape
    blocks = raw_RX.view(rows * (row_bytes // block.num_bytes), block.num_bytes)
    values: Tensor = _READERS[dtype](blocks)
    return values.reshape(rows, -1)


def unpair_rows(paired: Tensor, head_size: int) -> Tensor:
    """Rows of whole heads, rotary pairs side by side -> halves of the pairs apart, as Hugging Face has them."""
    rows = paired.shape[0]
    assert rows % head_size == 0, f"{rows} rows are no whole heads of {head_size}"
    by_pair = paired.view(rows // head_size, head_size // 2, 2, *paired.shape[1:])
    return by_pair.transpose(1, 2).reshape(paired.shape)


def _half(blocks: Tensor, at: int) -> Tensor:
    """The float16 at this byte of each block, as float32. Blocks x 1."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _nibbles(packed: Tensor, group: int) -> Tensor:
    """Low and high halves of each byte: of every `group` bytes first all the low ones, then all the high ones."""
    grouped = packed.reshape(packed.shape[0], -1, 1, group)
    return torch.cat((grouped & 0x0F, grouped >> 4), dim=2).flatten(1)


def _fifth_bits(packed: Tensor) -> Tensor:
    """32 bits of each block, lowest first, each as the value 16 or 0."""
    shifts = torch.arange(8, dtype=torch.uint8)
    return ((packed[:, :, None] >> shifts) & 1).flatten(1) << 4


def _q4_0(blocks: Tensor) -> Tensor:
    return (_nibbles(blocks[:, 2:], 16).float() - 8) * _half(blocks, 0)


def _q4_1(blocks: Tensor) -> Tensor:
    return _nibbles(blocks[:, 4:], 16).float() * _half(blocks, 0) + _half(blocks, 2)


def _q5_0(blocks: Tensor) -> Tensor:
    values = _nibbles(blocks[:, 6:], 16) | _fifth_bits(blocks[:, 2:6])
    return (values.float() - 16) * _half(blocks, 0)


def _q5_1(blocks: Tensor) -> Tensor:
    values = _nibbles(blocks[:, 8:], 16) | _fifth_bits(blocks[:, 4:8])
    return values.float() * _half(blocks, 0) + _half(blocks, 2)


def _q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].contiguous().view(torch.int8).float() * _half(blocks, 0)


def _scales_and_mins(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Eight scales and eight minima of six bits each from twelve bytes (`get_scale_min_k4`). Blocks x 8."""
    low, middle, high = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = torch.cat((low & 0x3F, (high & 0x0F) | ((low >> 2) & 0x30)), dim=1)
    mins = torch.cat((middle & 0x3F, (high >> 4) | ((middle >> 2) & 0x30)), dim=1)
    return scales.float(), mins.float()


def _scaled(blocks: Tensor, values: Tensor) -> Tensor:
    """d * scale * value - dmin * min, for eight groups of 32 values in each block."""
    scales, mins = _scales_and_mins(blocks[:, 4:16])
    factors, offsets = scales * _half(blocks, 0), mins * _half(blocks, 2)
    grouped = values.view(-1, 8, 32).float()
    return (grouped.mul_(factors[:, :, None]).sub_(offsets[:, :, None])).flatten(1)


def _q4_k(blocks: Tensor) -> Tensor:
    return _scaled(blocks, _nibbles(blocks[:, 16:], 32))


def _q5_k(blocks: Tensor) -> Tensor:
    shifts = torch.arange(8, dtype=torch.uint8)
    fifth = ((blocks[:, None, 16:48] >> shifts[:, None]) & 1) << 4
    return _scaled(blocks, _nibbles(blocks[:, 48:], 32) | fifth.flatten(1))


def _q6_k(blocks: Tensor) -> Tensor:
    shifts = torch.tensor((0, 2, 4, 6), dtype=torch.uint8)
    low = _nibbles(blocks[:, :128], 64)
    high = ((blocks[:, 128:192].view(-1, 2, 1, 32) >> shifts[:, None]) & 0x03).flatten(1) << 4
    values = (low | high).float() - 32
    scales = blocks[:, 192:208].contiguous().view(torch.int8).float() * _half(blocks, 208)
    return (values.view(-1, 16, 16) * scales[:, :, None]).flatten(1)


_READERS: dict[str, Callable[[Tensor], Tensor]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
