"""Attention of one step against the KV cache.

Shapes: T tokens of the step, N of a slice, H local query heads, K local KV heads, G = H / K, S head size, L keys,
P places of the cache.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from agent.engine.batch import Batch, Gathered, Reads
from agent.engine.exact import attend_one_by_one
from agent.engine.kv_cache import KvCache
from agent.planner.plan import BLOCK_TOKENS, Range

COPIED_BYTES = 1 << 20
"""Keys and values of a layer that are copied behind each other sooner than read run by run. With 1 KB a position,
256 positions in two runs take 46 us copied and 102 us read, 2,048 take 424 and 365; with 4 KB, 256 are even."""


def attend(
    queries_THS: Tensor,
    cache: KvCache,
    layer: int,
    batch: Batch,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Scaled dot-product attention, T x (H x S). The cache must hold the step's own keys already.

    `scale` multiplies the scores (None: 1 / sqrt(S)), `softcap` c makes c x tanh(score / c) of them (Gemma 2), and
    `window` is how many positions a query sees, its own among them (None: all before it).

    The queries that share a KV head stand behind each other as one long query, so that keys and values are read
    in place and never repeated.
    """
    stored = cache.layer(layer)
    num_tokens, num_heads, head_size = queries_THS.shape
    num_kv_heads = stored[0].shape[1]
    queries_TKGS = queries_THS.view(num_tokens, num_kv_heads, num_heads // num_kv_heads, head_size)
    if batch.tables is not None:
        keys_TKLS, values_TKLS = _gather_blocks(stored[0], batch.tables), _gather_blocks(stored[1], batch.tables)
        mask_T11L = batch.visible(window)[:, None, None]
        attended_TKGS = _weigh(queries_TKGS, keys_TKLS, values_TKLS, mask=mask_T11L, scale=scale, softcap=softcap)
    elif cache.straight is not None:
        mix = partial(_mix, mask=None, scale=scale, softcap=softcap)
        attended_TKGS = attend_one_by_one(queries_TKGS, stored, cache.straight, batch.spans, window=window, mix=mix)
    else:
        attended_TKGS = _attend_in_place(queries_TKGS, stored, batch, scale=scale, softcap=softcap, window=window)
    return attended_TKGS.reshape(num_tokens, num_heads * head_size)


def _attend_in_place(
    queries_TKGS: Tensor,
    stored: tuple[Tensor, Tensor],
    batch: Batch,
    *,
    scale: float | None,
    softcap: float | None,
    window: int | None,
) -> Tensor:
    """Rows that decode together at once; the others slice by slice over views of the cache, or run by run."""
    # the operator that tells a part's share of the softmax is the CPU's own, and knows no softcap
    may_split = softcap is None and queries_TKGS.device.type == "cpu"
    reads = batch.reads(window, split_from=split_from(stored) if may_split else None)
    if reads.gathered and reads.gathered[0].rows is None:
        return _mix_gathered(queries_TKGS, stored, reads.gathered[0], scale=scale)
    pieces: list[Tensor] = []
    for read in reads.whole:
        span = read.span
        mask = batch.mask(span, window, queries_TKGS.shape[2])
        is_all = span.num_rows == queries_TKGS.shape[0]
        queries_NKGS = queries_TKGS if is_all else queries_TKGS.narrow(0, span.row, span.num_rows)
        keys_1KLS, values_1KLS = _gather(stored[0], read.stretches), _gather(stored[1], read.stretches)
        pieces.append(_mix(queries_NKGS, keys_1KLS, values_1KLS, mask=mask, scale=scale, softcap=softcap))
    if not reads.parts and not reads.gathered:
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    if not pieces and not reads.gathered:
        return _mix_parts(queries_TKGS, stored, reads, scale=scale)
    attended_TKGS = torch.empty_like(queries_TKGS)
    for read, piece in zip(reads.whole, pieces, strict=True):
        attended_TKGS.narrow(0, read.span.row, read.span.num_rows).copy_(piece)
    for group in reads.gathered:
        assert group.rows is not None, "a group of all rows is alone"
        queries_NKGS = queries_TKGS.index_select(0, group.rows)
        attended_TKGS.index_copy_(0, group.rows, _mix_gathered(queries_NKGS, stored, group, scale=scale))
    if not reads.parts:
        return attended_TKGS
    assert reads.split_rows is not None, "others are read in one piece"
    split_TKGS = queries_TKGS.index_select(0, reads.split_rows)
    attended_TKGS.index_copy_(0, reads.split_rows, _mix_parts(split_TKGS, stored, reads, scale=scale))
    return attended_TKGS


def split_from(stored: tuple[Tensor, Tensor]) -> int:
    """Positions from which on a row that lies in several runs is read run by run."""
    keys_1KPS, _ = stored
    _, num_kv_heads, _, head_size = keys_1KPS.shape
    return COPIED_BYTES // (2 * num_kv_heads * head_size * keys_1KPS.element_size())


def _gather(layer_1KPS: Tensor, stretches: list[Range]) -> Tensor:
    """The keys of a sequence, 1 x K x L x S: a view when they lie in one stretch."""
    if len(stretches) == 1:
        begin, end = stretches[0]
        return layer_1KPS.narrow(2, begin, end - begin)
    return torch.cat([layer_1KPS.narrow(2, begin, end - begin) for begin, end in stretches], dim=2)


def _mix_gathered(
    queries_NKGS: Tensor, stored: tuple[Tensor, Tensor], group: Gathered, *, scale: float | None
) -> Tensor:
    keys_NKLS, values_NKLS = (_gather_rows(each, group.blocks, group.num_blocks) for each in stored)
    return _weigh(queries_NKGS, keys_NKLS, values_NKLS, mask=group.mask, scale=scale, softcap=None)


def _gather_blocks(layer_1KPS: Tensor, tables_TM: Tensor) -> Tensor:
    """The keys of every row's blocks by index, T x K x L x S: one shape of work wherever the blocks lie."""
    return _gather_rows(layer_1KPS, tables_TM.flatten(), tables_TM.shape[1])


def _gather_rows(layer_1KPS: Tensor, blocks: Tensor, num_blocks: int) -> Tensor:
    """`num_blocks` blocks for each row, behind each other in `blocks`."""
    _, num_kv_heads, _, head_size = layer_1KPS.shape
    num_rows = blocks.shape[0] // num_blocks
    blocks_KBPS = layer_1KPS.view(num_kv_heads, -1, BLOCK_TOKENS, head_size)
    found = blocks_KBPS.index_select(1, blocks)
    return found.view(num_kv_heads, num_rows, num_blocks * BLOCK_TOKENS, head_size).transpose(0, 1)


def _mix(
    queries_NKGS: Tensor,
    keys_1KLS: Tensor,
    values_1KLS: Tensor,
    *,
    mask: Tensor | None,
    scale: float | None,
    softcap: float | None,
) -> Tensor:
    """The values that N queries of one sequence see, mixed: N x K x G x S."""
    num_tokens, num_kv_heads, group, head_size = queries_NKGS.shape
    if num_tokens == 1:
        queries_1KQS = queries_NKGS
    else:
        queries_1KQS = queries_NKGS.transpose(0, 1).reshape(1, num_kv_heads, num_tokens * group, head_size)
    mixed_1KQS = _weigh(queries_1KQS, keys_1KLS, values_1KLS, mask=mask, scale=scale, softcap=softcap)
    if num_tokens == 1:
        return mixed_1KQS
    return mixed_1KQS.view(num_kv_heads, num_tokens, group, head_size).transpose(0, 1)


def _weigh(
    queries_BKQS: Tensor,
    keys_BKLS: Tensor,
    values_BKLS: Tensor,
    *,
    mask: Tensor | None,
    scale: float | None,
    softcap: float | None,
) -> Tensor:
    """Softmax of the scores times the values, B x K x Q x S. `mask` is added to the scores."""
    if softcap is None:
        return functional.scaled_dot_product_attention(
            queries_BKQS, keys_BKLS, values_BKLS, attn_mask=mask, scale=scale
        )
    scores = torch.matmul(queries_BKQS, keys_BKLS.transpose(2, 3)).float()
    scores.mul_((queries_BKQS.shape[3] ** -0.5 if scale is None else scale) / softcap).tanh_().mul_(softcap)
    if mask is not None:
        scores.add_(mask)
    return torch.matmul(scores.softmax(dim=-1).to(values_BKLS.dtype), values_BKLS)


def _mix_parts(queries_TKGS: Tensor, stored: tuple[Tensor, Tensor], reads: Reads, *, scale: float | None) -> Tensor:
    """Attention over each part by itself, weighed by its share of the softmax's sum (FlashDecoding's reduction)."""
    keys_1KPS, values_1KPS = stored
    num_tokens, num_kv_heads, group, head_size = queries_TKGS.shape
    shape = (reads.num_levels, num_tokens, num_kv_heads, group)
    mixed = queries_TKGS.new_zeros((*shape, head_size), dtype=torch.float32)
    sums = queries_TKGS.new_full(shape, float("-inf"), dtype=torch.float32)
    for part in reads.parts:
        num_rows = part.rows.shape[0]
        queries_KNGS = queries_TKGS.index_select(0, part.rows).transpose(0, 1)
        begin, end = part.places
        mixed_1KQS, sums_1KQ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            queries_KNGS.reshape(1, num_kv_heads, num_rows * group, head_size),
            keys_1KPS.narrow(2, begin, end - begin),
            values_1KPS.narrow(2, begin, end - begin),
            scale=scale,
        )
        mixed_KNGS = mixed_1KQS.view(num_kv_heads, num_rows, group, head_size)
        mixed[part.level].index_copy_(0, part.rows, mixed_KNGS.transpose(0, 1).float())
        sums_KNG = sums_1KQ.reshape(num_kv_heads, num_rows, group)
        sums[part.level].index_copy_(0, part.rows, sums_KNG.transpose(0, 1))
    return mixed.mul_(sums.softmax(dim=0).unsqueeze(-1)).sum(dim=0).to(queries_TKGS.dtype)
