"""bfloat16 on a CPU: oneDNN's own layout of the weight. As many bytes, but one row is multiplied in half the time.

The operators are private to torch: `is_sound` tries them before anything relies on them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agent.engine.linear.kernel import Kernel, KernelShape, fill_rows, named_parts

_WIDE_BYTES = 8 << 20
_WIDE_ROWS = 64
"""Rows that the layout of a weight of `_WIDE_BYTES` and more is chosen for, of a smaller one it is one row.

Measured with AMX: large weights multiply one row as fast in either layout and 256 rows a fifth faster in the wide
one; small ones multiply 256 rows a third faster in it, but one row, of which small models live, 5% slower."""


class PackedKernel(Kernel):
    """`packed_NK` is opaque: only its shape and its bytes can be read."""

    def __init__(self, packed_NK: Tensor, bias_N: Tensor | None) -> None:
        self.parts = named_parts(bias_N, weight=packed_NK)
        self._packed_NK = packed_NK
        self._bias_N = bias_N
        self.shape = KernelShape(
            kernel="packed",
            outputs=packed_NK.shape[0],
            inputs=packed_NK.shape[1],
            dtype=torch.bfloat16,
            device=torch.device("cpu"),
        )
        self._multiply = torch.ops.mkldnn._linear_pointwise.default

    @classmethod
    def pack(cls, weight_NK: Tensor, bias_N: Tensor | None) -> PackedKernel:
        rows = _WIDE_ROWS if weight_NK.nbytes >= _WIDE_BYTES else 1
        return cls(torch.ops.mkldnn._reorder_linear_weight(weight_NK, rows), bias_N)

    @classmethod
    def of_parts(cls, parts: dict[str, Tensor], _shape: KernelShape, /) -> PackedKernel:
        return cls(parts["weight"], parts.get("bias"))

    @staticmethod
    def supports(device: torch.device, dtype: torch.dtype) -> bool:
        return (
            device.type == "cpu" and dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        )

    def __call__(self, rows_RK: Tensor) -> Tensor:
        filled_RK = fill_rows(rows_RK)
        product_RN: Tensor = self._multiply(filled_RK, self._packed_NK, self._bias_N, "none", [], "")
        return product_RN if filled_RK is rows_RK else product_RN[: rows_RK.shape[0]]
