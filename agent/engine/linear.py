"""The seam behind which matrix kernels may change: weight in, callable out. Nothing else holds the weight."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


class Linear:
    """`y = x W^T + b` with `weight` as Hugging Face stores it (output dimension first)."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._weight = weight
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self._weight, self._bias)
