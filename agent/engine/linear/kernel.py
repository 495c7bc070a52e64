"""What every matrix kernel is, and the two that always work: the product itself, in the weight's own dtype.

Shapes: R rows, N outputs, K inputs.
"""

from __future__ import annotations

from typing import Protocol

import msgspec
import torch
from torch import Tensor
from torch.nn import functional


class KernelShape(msgspec.Struct, frozen=True, kw_only=True):
    """What a kernel's choice of loops hangs on, next to the number of rows."""

    kernel: str
    outputs: int
    inputs: int
    dtype: torch.dtype
    """Of the rows that come in and of those that go out."""
    device: torch.device


class Kernel(Protocol):
    """`y = x W^T + b` for R x K rows; no row looks at another."""

    shape: KernelShape

    def __call__(self, rows_RK: Tensor, /) -> Tensor: ...


class PlainKernel:
    """The weight as it is. The only kernel that may share its weight with an embedding."""

    def __init__(self, weight_NK: Tensor, bias_N: Tensor | None) -> None:
        self.weight_NK = weight_NK
        self.bias_N = bias_N
        self.shape = KernelShape(
            kernel="plain",
            outputs=weight_NK.shape[0],
            inputs=weight_NK.shape[1],
            dtype=weight_NK.dtype,
            device=weight_NK.device,
        )

    def __call__(self, rows_RK: Tensor) -> Tensor:
        return functional.linear(rows_RK, self.weight_NK, self.bias_N)
