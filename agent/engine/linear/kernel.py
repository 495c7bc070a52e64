"""What every matrix kernel is, and the one that always works: the product itself, in the weight's own dtype.

Shapes: R rows, N outputs, K inputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

import msgspec
import torch
from torch import Tensor
from torch.nn import functional

from agent.planner.step_cost import ROWS_AT_ONCE


class KernelShape(msgspec.Struct, frozen=True, kw_only=True):
    """What a kernel's choice of loops hangs on, next to the number of rows."""

    kernel: str
    outputs: int
    inputs: int
    dtype: torch.dtype
    """Of the rows that come in and of those that go out."""
    device: torch.device


class Kernel(ABC):
    """`y = x W^T + b` for R x K rows; no row looks at another.

    `parts` are the tensors that a kernel consists of, by name; `of_parts` makes an equal kernel of them.
    """

    shape: KernelShape
    parts: dict[str, Tensor]
    stands_on: object = None
    """Memory that its parts do not own, such as a mapped file; it stays as long as the kernel."""

    @classmethod
    @abstractmethod
    def of_parts(cls, parts: dict[str, Tensor], shape: KernelShape, /) -> Self: ...

    @abstractmethod
    def __call__(self, rows_RK: Tensor, /) -> Tensor: ...

    def multiply(self, rows_RK: Tensor, /) -> Tensor:
        """The same product in the one way that serves every number of rows: `__call__` may know a shorter one."""
        return self(rows_RK)

    @property
    def num_bytes(self) -> int:
        """Of its parts; what a layout fills up to round numbers is not counted."""
        return sum(part.numel() * part.itemsize for part in self.parts.values())

    def shares(self, tensor: Tensor) -> bool:
        """Whether the tensor itself is its weight."""
        return any(part is tensor for part in self.parts.values())


def fill_rows(rows_RK: Tensor) -> Tensor:
    """More than 16 rows filled up to a multiple of it with zeros; the caller drops theirs from the product.

    oneDNN compiles a kernel for every number of rows that it meets. Prompts come in any length, and each new one
    took 14 ms longer than the next of its length: a quarter of its first token's time (layers of 36 million
    weights).
    """
    num_rows = rows_RK.shape[0]
    missing = -num_rows % ROWS_AT_ONCE
    if num_rows <= ROWS_AT_ONCE or not missing:
        return rows_RK
    filled_RK = rows_RK.new_empty((num_rows + missing, rows_RK.shape[1]))
    filled_RK[:num_rows].copy_(rows_RK)
    filled_RK[num_rows:].zero_()
    return filled_RK


def named_parts(bias_N: Tensor | None, **parts: Tensor) -> dict[str, Tensor]:
    return parts if bias_N is None else {**parts, "bias": bias_N}


class PlainKernel(Kernel):
    """The weight as it is. The only kernel that may share its weight with an embedding."""

    def __init__(self, weight_NK: Tensor, bias_N: Tensor | None) -> None:
        self.parts = named_parts(bias_N, weight=weight_NK)
        self._weight_NK = weight_NK
        self._bias_N = bias_N
        self.shape = KernelShape(
            kernel="plain",
            outputs=weight_NK.shape[0],
            inputs=weight_NK.shape[1],
            dtype=weight_NK.dtype,
            device=weight_NK.device,
        )

    @classmethod
    def of_parts(cls, parts: dict[str, Tensor], _shape: KernelShape, /) -> PlainKernel:
        return cls(parts["weight"], parts.get("bias"))

    def __call__(self, rows_RK: Tensor) -> Tensor:
        return functional.linear(rows_RK, self._weight_NK, self._bias_N)
