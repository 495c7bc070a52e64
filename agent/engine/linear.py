"""The seam behind which matrix kernels may change: weight in, callable out. Nothing else holds the weight."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

_PACK_ROWS = 1
"""Rows that the packed layout is chosen for. Decoding is bound by reading the weight; more rows lose nothing."""


class Linear:
    """`y = x W^T + b` with `weight` as Hugging Face stores it (output dimension first).

    On a CPU a bfloat16 weight is packed into oneDNN's own layout: as many bytes, but a row is multiplied in half
    the time. The caller must let go of a weight that is not `is_shared`, or it is held twice.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, is_shared: bool = False) -> None:
        self._bias = bias
        self._is_packed = (
            not is_shared and weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and can_pack()
        )
        self._weight = _pack(weight) if self._is_packed else weight

    def __call__(self, x: Tensor) -> Tensor:
        if self._is_packed:
            return _multiply_packed(x, self._weight, self._bias)
        return functional.linear(x, self._weight, self._bias)


@cache
def can_pack() -> bool:
    """Whether this build and this CPU multiply packed bfloat16 weights, and rightly. The operators are private."""
    weight = torch.linspace(-1, 1, 48 * 40).view(48, 40).bfloat16()
    rows = torch.linspace(-2, 1, 3 * 40).view(3, 40).bfloat16()
    try:
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        product = _multiply_packed(rows, _pack(weight), None)
    except (RuntimeError, AttributeError):
        return False
    return torch.allclose(product.float(), functional.linear(rows, weight).float(), rtol=0.02, atol=0.02)


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _PACK_ROWS)
    return packed


def _multiply_packed(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return product
