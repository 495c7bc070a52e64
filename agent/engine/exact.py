"""Exact mode: what comes out for a row depends on nothing but the row and its keys, to the bit.

A kernel picks its loops, and so the order of its sums and which elements its vectors leave over, by the number of
rows, by strides, by alignment and by how threads share the work. So every query is a call of its own over keys that
are laid out in one way, and activations are taken row by row. Batch, chunks, drafts, the blocks of the cache and
a replay are then all the same. Matrix products see to it themselves (`linear.exact`); norms are row by row already.

Shapes: T tokens of the step, K local KV heads, G queries per KV head, S head size, C context, L keys.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from agent.engine.batch import SliceSpan
from agent.planner.plan import BLOCK_TOKENS

Mix = Callable[[Tensor, Tensor, Tensor], Tensor]
"""One query's heads, 1 x K x G x S, over keys and values of 1 x K x L x S."""


def attend_one_by_one(
    queries_TKGS: Tensor,
    stored: tuple[Tensor, Tensor],
    straight: tuple[Tensor, Tensor],
    spans: tuple[SliceSpan, ...],
    *,
    window: int | None,
    mix: Mix,
) -> Tensor:
    """T x K x G x S. `straight` is room for one sequence's keys and values in order, 1 x K x C x S each."""
    pieces: list[Tensor] = []
    for span in spans:
        # from the start of a block, so that a query finds its first key at the same alignment in every chunk
        first = span.key_begin(window) // BLOCK_TOKENS * BLOCK_TOKENS
        _lay_straight(stored, straight, span, first)
        keys_1KCS, values_1KCS = straight
        for row, position in enumerate(range(span.start, span.end), start=span.row):
            begin = max(0, position - window + 1) if window else 0
            length = position + 1 - begin
            pieces.append(
                mix(
                    queries_TKGS.narrow(0, row, 1).clone(),
                    keys_1KCS.narrow(2, begin - first, length),
                    values_1KCS.narrow(2, begin - first, length),
                )
            )
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def row_by_row(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """`function` of each row by itself: threads then never cut one in two at a place that others decide."""
    if rows.shape[0] == 1:
        return function(rows)
    return torch.cat([function(rows.narrow(0, row, 1)) for row in range(rows.shape[0])])


def _lay_straight(
    stored: tuple[Tensor, Tensor], straight: tuple[Tensor, Tensor], span: SliceSpan, first: int
) -> None:
    done = 0
    for begin, end in span.table.stretches(first, span.end):
        length = end - begin
        for source_1KPS, target_1KCS in zip(stored, straight, strict=True):
            target_1KCS.narrow(2, done, length).copy_(source_1KPS.narrow(2, begin, length))
        done += length
