"""Four bits a weight in groups along a row, on a CPU: the least memory, not the most speed.

A group of `INT4_GROUP` weights w becomes codes c of 0 to 15 with `w = (c - 8) x scale + zero`, scale and zero in
the serving dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from agent.engine.linear.kernel import Kernel, KernelShape, named_parts
from agent.planner.shards import INT4_GROUP

_LEVELS = 15
_MIDDLE = 8
_OUTPUTS_MULTIPLE = 16
"""What the packed layout of torch divides outputs by; missing ones are filled up with zeros."""
_OUTPUTS_AT_ONCE = 1024


class Int4Kernel(Kernel):
    """`packed` is torch's layout for its CPU kernel; `scales_zeros` is K / group x N x 2."""

    def __init__(self, packed: Tensor, scales_zeros: Tensor, bias_N: Tensor | None, *, outputs: int) -> None:
        self.parts = named_parts(bias_N, weight=packed, scales_zeros=scales_zeros)
        self._packed = packed
        self._scales_zeros = scales_zeros
        self._bias_N = bias_N
        self.shape = KernelShape(
            kernel="int4",
            outputs=outputs,
            inputs=scales_zeros.shape[0] * INT4_GROUP,
            dtype=scales_zeros.dtype,
            device=torch.device("cpu"),
        )
        self._filled_outputs = scales_zeros.shape[1] - outputs

    @classmethod
    def pack(cls, weight_NK: Tensor, bias_N: Tensor | None) -> Int4Kernel:
        outputs = weight_NK.shape[0]
        missing = -outputs % _OUTPUTS_MULTIPLE
        if missing:
            weight_NK = functional.pad(weight_NK, (0, 0, 0, missing))
        codes_NK, scales_zeros = quantise_int4(weight_NK)
        packed = torch._convert_weight_to_int4pack_for_cpu(codes_NK, 2)
        return cls(packed, scales_zeros, bias_N, outputs=outputs)

    @classmethod
    def of_parts(cls, parts: dict[str, Tensor], shape: KernelShape, /) -> Int4Kernel:
        return cls(parts["weight"], parts["scales_zeros"], parts.get("bias"), outputs=shape.outputs)

    @staticmethod
    def supports(device: torch.device, dtype: torch.dtype) -> bool:
        return device.type == "cpu" and dtype in (torch.bfloat16, torch.float32, torch.float16)

    def __call__(self, rows_RK: Tensor) -> Tensor:
        product_RN = torch._weight_int4pack_mm_for_cpu(
            rows_RK.contiguous(), self._packed, INT4_GROUP, self._scales_zeros
        )
        if self._filled_outputs:
            product_RN = product_RN[:, : self.shape.outputs]
        return product_RN if self._bias_N is None else product_RN + self._bias_N

    @property
    def num_bytes(self) -> int:
        bytes_per_output = self.shape.inputs // 2 + self._scales_zeros[:, 0].nbytes
        return super().num_bytes - self._filled_outputs * bytes_per_output


def quantise_int4(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (int32, N x K) and scales with zeros (K / group x N x 2); codes 0 and 15 are a group's extremes."""
    outputs, inputs = weight_NK.shape
    codes_NK = torch.empty((outputs, inputs), dtype=torch.int32, device=weight_NK.device)
    scales_zeros = weight_NK.new_empty((inputs // INT4_GROUP, outputs, 2))
    for begin in range(0, outputs, _OUTPUTS_AT_ONCE):
        rows = slice(begin, begin + _OUTPUTS_AT_ONCE)
        groups_NGg = weight_NK[rows].float().view(-1, inputs // INT4_GROUP, INT4_GROUP)
        least_NG, greatest_NG = groups_NGg.aminmax(dim=2)
        scales_NG = (greatest_NG - least_NG).div_(_LEVELS).clamp_min_(1e-6).to(weight_NK.dtype)
        zeros_NG = (least_NG + scales_NG.float() * _MIDDLE).to(weight_NK.dtype)
        codes = (groups_NGg - zeros_NG.float()[..., None]).div_(scales_NG.float()[..., None]).add_(_MIDDLE)
        codes_NK[rows] = codes.round_().clamp_(0, _LEVELS).flatten(1).to(torch.int32)
        scales_zeros[:, rows, 0] = scales_NG.t()
        scales_zeros[:, rows, 1] = zeros_NG.t()
    return codes_NK, scales_zeros
