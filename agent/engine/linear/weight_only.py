"""Weights in fewer bits, products in the serving dtype: the quantised path of CUDA, and the fallback of a CPU.

A weight is widened block by block where torch has no kernel that reads its codes. Written for CUDA; the same code
runs on a CPU, where it is right but slow.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from agent.engine.linear.int4 import quantise_int4
from agent.engine.linear.int8 import quantise_int8
from agent.engine.linear.kernel import Kernel, KernelShape, named_parts
from agent.planner.shards import INT4_GROUP

log = logging.getLogger(__name__)

_FP8_MAX = 448.0
"""Of float8_e4m3fn."""
_WIDENED_OUTPUTS = 4096
"""Outputs that are widened at once: the head of a large vocabulary would need gigabytes."""
_FEW_ROWS = 16
"""Up to here reading the weight is the work, and a kernel that reads codes beats one that widens them."""


class WeightOnlyKernel(Kernel):
    """`codes_NK` are int8 or float8_e4m3fn, `scales_N` float32: weight = code x scale."""

    def __init__(self, codes_NK: Tensor, scales_N: Tensor, bias_N: Tensor | None, *, dtype: torch.dtype) -> None:
        self.parts = named_parts(bias_N, weight=codes_NK, scales=scales_N)
        self._codes_NK = codes_NK
        self._scales_N = scales_N
        self._bias_N = bias_N
        is_int8 = codes_NK.dtype == torch.int8
        self.shape = KernelShape(
            kernel="int8_weights" if is_int8 else "fp8_weights",
            outputs=codes_NK.shape[0],
            inputs=codes_NK.shape[1],
            dtype=dtype,
            device=codes_NK.device,
        )
        self._scales_in_dtype_N = scales_N.to(dtype)
        self._reads_codes = is_int8 and codes_NK.is_cuda and dtype == torch.bfloat16 and can_read_int8_on_cuda()

    @classmethod
    def of_parts(cls, parts: dict[str, Tensor], shape: KernelShape, /) -> WeightOnlyKernel:
        return cls(parts["weight"], parts["scales"], parts.get("bias"), dtype=shape.dtype)

    @classmethod
    def pack_int8(cls, weight_NK: Tensor, bias_N: Tensor | None) -> WeightOnlyKernel:
        return cls(*quantise_int8(weight_NK), bias_N, dtype=weight_NK.dtype)

    @classmethod
    def pack_fp8(cls, weight_NK: Tensor, bias_N: Tensor | None) -> WeightOnlyKernel:
        return cls(*quantise_fp8(weight_NK), bias_N, dtype=weight_NK.dtype)

    def __call__(self, rows_RK: Tensor) -> Tensor:
        if self._reads_codes and rows_RK.shape[0] <= _FEW_ROWS:
            product_RN = torch._weight_int8pack_mm(rows_RK, self._codes_NK, self._scales_in_dtype_N)
        else:
            blocks = torch.split(self._codes_NK, _WIDENED_OUTPUTS)
            products = [functional.linear(rows_RK, block.to(rows_RK.dtype)) for block in blocks]
            product_RN = products[0] if len(products) == 1 else torch.cat(products, dim=1)
            product_RN = (product_RN * self._scales_N).to(rows_RK.dtype)
        return product_RN if self._bias_N is None else product_RN + self._bias_N


class WeightOnlyInt4Kernel(Kernel):
    """`nibbles` (N x K / 2) hold two codes a byte, the even one below; `scales_zeros` as in `Int4Kernel`."""

    def __init__(self, nibbles: Tensor, scales_zeros: Tensor, bias_N: Tensor | None) -> None:
        self.parts = named_parts(bias_N, weight=nibbles, scales_zeros=scales_zeros)
        self._nibbles = nibbles
        self._scales_zeros = scales_zeros
        self._bias_N = bias_N
        self.shape = KernelShape(
            kernel="int4_weights",
            outputs=nibbles.shape[0],
            inputs=nibbles.shape[1] * 2,
            dtype=scales_zeros.dtype,
            device=nibbles.device,
        )

    @classmethod
    def pack(cls, weight_NK: Tensor, bias_N: Tensor | None) -> WeightOnlyInt4Kernel:
        codes_NK, scales_zeros = quantise_int4(weight_NK)
        codes = codes_NK.to(torch.uint8)
        return cls(codes[:, 0::2] | (codes[:, 1::2] << 4), scales_zeros, bias_N)

    @classmethod
    def of_parts(cls, parts: dict[str, Tensor], _shape: KernelShape, /) -> WeightOnlyInt4Kernel:
        return cls(parts["weight"], parts["scales_zeros"], parts.get("bias"))

    def __call__(self, rows_RK: Tensor) -> Tensor:
        begins = range(0, self.shape.outputs, _WIDENED_OUTPUTS)
        products = [functional.linear(rows_RK, self._widen(begin)) for begin in begins]
        product_RN = products[0] if len(products) == 1 else torch.cat(products, dim=1)
        return product_RN if self._bias_N is None else product_RN + self._bias_N

    def _widen(self, begin: int) -> Tensor:
        nibbles = self._nibbles[begin : begin + _WIDENED_OUTPUTS]
        scales_zeros = self._scales_zeros[:, begin : begin + _WIDENED_OUTPUTS].transpose(0, 1).unsqueeze(3)
        codes = torch.stack((nibbles & 15, nibbles >> 4), dim=2).flatten(1).to(scales_zeros.dtype).sub_(8)
        groups = codes.view(-1, self.shape.inputs // INT4_GROUP, INT4_GROUP)
        return groups.mul_(scales_zeros[:, :, 0]).add_(scales_zeros[:, :, 1]).flatten(1)


def quantise_fp8(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Codes in float8_e4m3fn and a float32 scale per output, the largest magnitude as 448."""
    peaks_N = weight_NK.abs().amax(dim=1).float()
    scales_N = peaks_N.div_(_FP8_MAX).clamp_min_(torch.finfo(torch.float32).tiny)
    codes_NK = torch.empty(weight_NK.shape, dtype=torch.float8_e4m3fn, device=weight_NK.device)
    for begin in range(0, weight_NK.shape[0], _WIDENED_OUTPUTS):
        rows = slice(begin, begin + _WIDENED_OUTPUTS)
        codes_NK[rows] = (weight_NK[rows].float() / scales_N[rows, None]).to(torch.float8_e4m3fn)
    return codes_NK, scales_N


@cache
def can_read_int8_on_cuda() -> bool:
    """Whether this build multiplies with int8 codes on the GPU, and rightly."""
    weight_NK = torch.linspace(-1, 1, 128 * 256, device="cuda").view(128, 256).bfloat16()
    rows_RK = torch.linspace(-2, 1, 2 * 256, device="cuda").view(2, 256).bfloat16()
    codes_NK, scales_N = quantise_int8(weight_NK)
    try:
        product_RN = torch._weight_int8pack_mm(rows_RK, codes_NK, scales_N.bfloat16())
    except RuntimeError as error:
        log.warning("int8 codes are widened on the GPU", extra={"why": str(error)})
        return False
    return torch.allclose(product_RN.float(), functional.linear(rows_RK, weight_NK).float(), rtol=0.05, atol=0.5)
