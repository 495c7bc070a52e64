"""int8 times int8 on a CPU: a weight scale per output, an activation scale per row, exact integer sums.

oneDNN multiplies unsigned by signed bytes, so a row is shifted by 128; its scale is its largest magnitude, which
the row's own dtype holds exactly. Sums of integers have no order: a row's product minds none of its neighbours.
One row alone takes a shorter way, in which oneDNN applies the scale before the product is rounded, not after.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agent.engine.linear.kernel import Kernel, KernelShape, fill_rows, named_parts

_LEVELS = 127
_ZERO_POINT = 128
_SMALLEST_PEAK = 1e-7
"""A row of zeros has no scale of its own; float16 still holds this one."""


class Int8Kernel(Kernel):
    """`packed_KN` is opaque; `scales_N` are float32: what the weight is worth per code."""

    def __init__(self, packed_KN: Tensor, scales_N: Tensor, bias_N: Tensor | None, *, dtype: torch.dtype) -> None:
        self.parts = named_parts(bias_N, weight=packed_KN, scales=scales_N)
        self._packed_KN = packed_KN
        self._scales_N = scales_N
        self._bias_N = bias_N
        self.shape = KernelShape(
            kernel="int8",
            outputs=packed_KN.shape[1],
            inputs=packed_KN.shape[0],
            dtype=dtype,
            device=torch.device("cpu"),
        )
        self._zero_point_1 = torch.zeros(1, dtype=torch.int32)
        self._qlinear = torch.ops.onednn.qlinear_pointwise.default
        self._shift_1 = torch.tensor([_ZERO_POINT + 0.5])

    @classmethod
    def pack(cls, weight_NK: Tensor, bias_N: Tensor | None) -> Int8Kernel:
        codes_NK, scales_N = quantise_int8(weight_NK)
        packed_KN = torch.ops.onednn.qlinear_prepack(codes_NK, None)
        return cls(packed_KN, scales_N, bias_N, dtype=weight_NK.dtype)

    @classmethod
    def of_parts(cls, parts: dict[str, Tensor], shape: KernelShape, /) -> Int8Kernel:
        return cls(parts["weight"], parts["scales"], parts.get("bias"), dtype=shape.dtype)

    @staticmethod
    def supports(device: torch.device, dtype: torch.dtype) -> bool:
        return device.type == "cpu" and dtype in (torch.bfloat16, torch.float32)

    def __call__(self, rows_RK: Tensor) -> Tensor:
        if rows_RK.shape[0] != 1:
            return self.multiply(rows_RK)
        # While a model streams through the caches every operation finds its code and operands cold: few are quick.
        peak = max(rows_RK.abs().amax().item(), _SMALLEST_PEAK)
        codes_1K = torch.add(self._shift_1, rows_RK.float(), alpha=_LEVELS / peak).to(torch.uint8)
        product_1N = self._multiply_codes(codes_1K, peak / _LEVELS, rows_RK.dtype)
        return product_1N if self._bias_N is None else product_1N.add_(self._bias_N)

    def multiply(self, rows_RK: Tensor) -> Tensor:
        peaks_R1 = rows_RK.abs().amax(-1, True).clamp_min_(_SMALLEST_PEAK)  # torch's norms are no vector loops
        codes_RK = (rows_RK * (_LEVELS / peaks_R1.float())).add_(_ZERO_POINT + 0.5).to(torch.uint8)
        product_RN = self._multiply_codes(fill_rows(codes_RK), 1 / _LEVELS, rows_RK.dtype)
        product_RN = product_RN[: rows_RK.shape[0]].mul_(peaks_R1)
        return product_RN if self._bias_N is None else product_RN.add_(self._bias_N)

    def _multiply_codes(self, codes_RK: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
        product_RN: Tensor = self._qlinear(
            codes_RK,
            scale,
            _ZERO_POINT,
            self._packed_KN,
            self._scales_N,
            self._zero_point_1,
            None,
            1.0,
            0,
            dtype,
            "none",
            [],
            "",
        )
        return product_RN


def quantise_int8(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Codes from -127 to 127 and a float32 scale per output, the largest magnitude as 127."""
    scales_N = weight_NK.abs().amax(dim=1).float().div_(_LEVELS).clamp_min_(torch.finfo(torch.float32).tiny)
    codes_NK = torch.empty(weight_NK.shape, dtype=torch.int8, device=weight_NK.device)
    for begin in range(0, weight_NK.shape[0], _ROWS_AT_ONCE):
        rows = slice(begin, begin + _ROWS_AT_ONCE)
        scaled = weight_NK[rows].float().div_(scales_N[rows, None])
        codes_NK[rows] = scaled.round_().clamp_(-_LEVELS, _LEVELS).to(torch.int8)
    return codes_NK, scales_N


_ROWS_AT_ONCE = 1024
"""Of a weight, in float32 on the way to its codes: the head of a large model has gigabytes of rows."""
