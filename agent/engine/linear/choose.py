"""Which kernel multiplies with a weight: the fastest for its device, dtype and quantisation that passes its trial.

The fast ones are private to torch or to this CPU, so each is tried once in a process against the plain product, and
left out, with a word in the log, when it is missing, wrong or slow.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import assert_never

import torch
from torch import Tensor
from torch.nn import functional

from agent.engine.linear.int4 import Int4Kernel
from agent.engine.linear.int8 import Int8Kernel
from agent.engine.linear.kernel import Kernel, PlainKernel
from agent.engine.linear.packed import PackedKernel
from agent.engine.linear.weight_only import WeightOnlyInt4Kernel, WeightOnlyKernel
from agent.facts.model import Quantisation
from agent.planner.shards import INT4_GROUP

log = logging.getLogger(__name__)

FastKernel = type[PackedKernel | Int8Kernel | Int4Kernel]

KERNELS: dict[str, type[Kernel]] = {
    "plain": PlainKernel,
    "packed": PackedKernel,
    "int8": Int8Kernel,
    "int4": Int4Kernel,
    "int8_weights": WeightOnlyKernel,
    "fp8_weights": WeightOnlyKernel,
    "int4_weights": WeightOnlyInt4Kernel,
}
"""By the name in their shape."""

_TRIAL_SIZE = 1024
_TRIAL_ROWS = (1, 5, 32)
_TRIAL_REPEATS = 5
_SLOWEST = 8.0
"""Times the plain product's own: a kernel without code for this CPU is slower by hundreds."""
_TOLERANCES: dict[str, float] = {"PackedKernel": 0.01, "Int8Kernel": 0.02, "Int4Kernel": 0.15}
"""Relative error of a product (Frobenius norm), by what quantisation costs random weights."""


def make_kernel(
    weight_NK: Tensor, bias_N: Tensor | None, *, quantisation: Quantisation = "none", is_shared: bool = False
) -> Kernel:
    """A kernel over the weight. A shared weight is left as it is; of any other the caller must let go."""
    match quantisation:
        case "none":
            if not is_shared and _is_usable(PackedKernel, weight_NK):
                return PackedKernel.pack(weight_NK, bias_N)
            return PlainKernel(weight_NK, bias_N)
        case "int8":
            return _make_int8(weight_NK, bias_N)
        case "int4":
            if weight_NK.shape[1] % INT4_GROUP:
                return _make_int8(weight_NK, bias_N)
            if _is_usable(Int4Kernel, weight_NK):
                return Int4Kernel.pack(weight_NK, bias_N)
            return WeightOnlyInt4Kernel.pack(weight_NK, bias_N)
        case "fp8":
            return WeightOnlyKernel.pack_fp8(weight_NK, bias_N)
        case _:
            assert_never(quantisation)


def kernel_names(quantisation: Quantisation, dtype: torch.dtype) -> tuple[str, ...]:
    """The kernels that matrices get on this CPU; a matrix that int4 cannot group gets the last one."""
    int8 = "int8" if is_sound(Int8Kernel, dtype) else "int8_weights"
    match quantisation:
        case "none":
            return ("packed" if is_sound(PackedKernel, dtype) else "plain",)
        case "int8":
            return (int8,)
        case "int4":
            return ("int4" if is_sound(Int4Kernel, dtype) else "int4_weights", int8)
        case "fp8":
            return ("fp8_weights",)
        case _:
            assert_never(quantisation)


def _make_int8(weight_NK: Tensor, bias_N: Tensor | None) -> Kernel:
    if _is_usable(Int8Kernel, weight_NK):
        return Int8Kernel.pack(weight_NK, bias_N)
    return WeightOnlyKernel.pack_int8(weight_NK, bias_N)


def _is_usable(kernel: FastKernel, weight_NK: Tensor) -> bool:
    if weight_NK.device.type != "cpu":
        return False
    return is_sound(kernel, weight_NK.dtype)


_verdicts: dict[tuple[str, torch.dtype], bool] = {}


def is_sound(kernel: FastKernel, dtype: torch.dtype) -> bool:
    """Whether this build and CPU have the kernel, and it multiplies rightly and no slower than the plain way."""
    name = kernel.__name__
    if (name, dtype) in _verdicts:
        return _verdicts[name, dtype]
    try:
        problem = _try_kernel(kernel, dtype)
    except (RuntimeError, AttributeError) as error:  # torch's missing operators are one or the other
        problem = str(error).splitlines()[0] if str(error) else type(error).__name__
    if problem:
        log.warning("matrix kernel left out", extra={"kernel": name, "dtype": str(dtype), "why": problem})
    else:
        log.info("matrix kernel chosen", extra={"kernel": name, "dtype": str(dtype)})
    _verdicts[name, dtype] = not problem
    return not problem


def _try_kernel(kernel: FastKernel, dtype: torch.dtype) -> str:
    """What speaks against it; empty when nothing does."""
    if not kernel.supports(torch.device("cpu"), dtype):
        return "not for this CPU and dtype"
    generator = torch.Generator().manual_seed(0)
    weight_NK = torch.randn(_TRIAL_SIZE, _TRIAL_SIZE, generator=generator).to(dtype)
    packed = kernel.pack(weight_NK, None)
    for count in _TRIAL_ROWS:
        rows_RK = torch.randn(count, _TRIAL_SIZE, generator=generator).to(dtype)
        right = rows_RK.float() @ weight_NK.float().T
        error = float((packed(rows_RK).float() - right).norm() / right.norm())
        if not error <= _TOLERANCES[kernel.__name__]:
            return f"a product is off by {error:.3g}"
    row_1K = torch.randn(1, _TRIAL_SIZE, generator=generator).to(dtype)
    own_s = _seconds(lambda: packed(row_1K))
    plain_s = _seconds(lambda: functional.linear(row_1K, weight_NK))
    if own_s > _SLOWEST * plain_s:
        return f"one row takes {own_s * 1e6:.0f} us, the plain product {plain_s * 1e6:.0f} us"
    return ""


def _seconds(call: Callable[[], Tensor]) -> float:
    """The shortest of a few runs."""
    shortest = float("inf")
    for _ in range(_TRIAL_REPEATS):
        begun = time.perf_counter()
        call()
        shortest = min(shortest, time.perf_counter() - begun)
    return shortest
