"""Products whose rows do not depend on how many share the call: always in blocks of `BLOCK_TOKENS` rows.

A matrix kernel picks its loops, and so the order of its sums, by the number of rows. Blocks of one size make that
choice once; a last block is filled up with zeros. Other counts are used where a trial shows that their rows come
out equal to the bit: one row alone spares decoding the padding, many at once spare prefill reading the weight.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec
import torch
from torch import Tensor

from agent.engine.linear.kernel import Kernel, KernelShape
from agent.planner.plan import BLOCK_TOKENS

log = logging.getLogger(__name__)

_WIDE_ROWS = (256, 128, 64)
_TRIAL_OUTPUTS = 200_000
"""Outputs that are compared before two ways count as equal. Of those that bfloat16 rounds, one in about a thousand
shows that its sum was taken in another order."""
_MAX_TRIAL_OUTPUTS = 8_000_000
"""Of one product: a head over a large vocabulary is not tried at many rows, it never sees them."""
_MAX_TRIALS = 16


class RowCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of rows of one call that give the same rows, descending; anything else is cut and filled to fit."""

    block: int
    """`BLOCK_TOKENS`, or 1 for a kernel whose rows depend on their place in a block."""
    is_single_equal: bool
    wide: tuple[int, ...]


class ExactRows:
    """Calls a kernel in row counts that are equal to the bit."""

    def __init__(self, kernel: Kernel) -> None:
        self._multiply = kernel.multiply
        self.counts = row_counts(kernel)

    def __call__(self, rows_RK: Tensor) -> Tensor:
        num_rows = rows_RK.shape[0]
        if num_rows == 1 and self.counts.is_single_equal:
            return self._multiply(rows_RK)
        products: list[Tensor] = []
        begin = 0
        for count in (*self.counts.wide, self.counts.block):
            while num_rows - begin >= count:
                products.append(self._multiply(rows_RK[begin : begin + count]))
                begin += count
        if begin < num_rows:
            filled_BK = rows_RK.new_zeros((self.counts.block, rows_RK.shape[1]))
            filled_BK[: num_rows - begin] = rows_RK[begin:]
            products.append(self._multiply(filled_BK)[: num_rows - begin])
        return products[0] if len(products) == 1 else torch.cat(products)


_known: dict[tuple[KernelShape, int], RowCounts] = {}


def row_counts(kernel: Kernel) -> RowCounts:
    """Tried once for each shape and number of threads: layers repeat them."""
    key = (kernel.shape, torch.get_num_threads())
    if key not in _known:
        _known[key] = _try_counts(kernel)
        log.info(
            "exact rows",
            extra={
                "kernel": kernel.shape.kernel,
                "outputs": kernel.shape.outputs,
                "inputs": kernel.shape.inputs,
                "counts": msgspec.structs.asdict(_known[key]),
            },
        )
    return _known[key]


def _try_counts(kernel: Kernel) -> RowCounts:
    most_rows = max(BLOCK_TOKENS, _MAX_TRIAL_OUTPUTS // kernel.shape.outputs)
    wide = tuple(count for count in _WIDE_ROWS if count <= most_rows and _agree(kernel, count, _at_once))
    if _agree(kernel, BLOCK_TOKENS, _upside_down):
        single = _agree(kernel, BLOCK_TOKENS, _one_by_one)
        return RowCounts(block=BLOCK_TOKENS, is_single_equal=single, wide=wide)
    return RowCounts(block=1, is_single_equal=True, wide=())


def _agree(kernel: Kernel, count: int, way: Callable[[Kernel, Tensor], Tensor]) -> bool:
    """Whether `count` rows come out of `way` as they do in blocks."""
    shape = kernel.shape
    generator = torch.Generator().manual_seed(count)
    trials = min(_MAX_TRIALS, -(-_TRIAL_OUTPUTS // (shape.outputs * count)))
    for _ in range(trials):
        rows_RK = torch.randn(count, shape.inputs, generator=generator).to(shape.device, shape.dtype)
        in_blocks = torch.cat([kernel.multiply(block) for block in torch.split(rows_RK, BLOCK_TOKENS)])
        if not torch.equal(way(kernel, rows_RK), in_blocks):
            return False
    return True


def _at_once(kernel: Kernel, rows_RK: Tensor) -> Tensor:
    return kernel.multiply(rows_RK)


def _one_by_one(kernel: Kernel, rows_RK: Tensor) -> Tensor:
    return torch.cat([kernel.multiply(row) for row in torch.split(rows_RK, 1)])


def _upside_down(kernel: Kernel, rows_RK: Tensor) -> Tensor:
    return kernel.multiply(rows_RK.flip(0)).flip(0)
