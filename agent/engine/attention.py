"""Attention of one step against the KV cache.

Shapes: T tokens of the step, N of a slice, H local query heads, K local KV heads, G = H / K, S head size, L keys,
P places of the cache.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from agent.engine.batch import Batch, Reads
from agent.engine.exact import attend_one_by_one
from agent.engine.kv_cache import KvCache
from agent.planner.plan import Range


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
    keys_1KPS, values_1KPS = cache.layer(layer)
    num_tokens, num_heads, head_size = queries_THS.shape
    num_kv_heads = keys_1KPS.shape[1]
    queries_TKGS = queries_THS.view(num_tokens, num_kv_heads, num_heads // num_kv_heads, head_size)
    if cache.straight is not None:
        mix = partial(_mix, mask=None, scale=scale, softcap=softcap)
        attended_TKGS = attend_one_by_one(
            queries_TKGS, cache.layer(layer), cache.straight, batch.spans, window=window, mix=mix
        )
        return attended_TKGS.reshape(num_tokens, num_heads * head_size)
    may_split = softcap is None and queries_THS.device.type == "cpu"
    reads = batch.reads(window, may_split=may_split)
    pieces: list[Tensor] = []
    for read in reads.whole:
        span, mask = read.span, None
        if span.num_rows > 1:
            mask = batch.mask(span, window, queries_TKGS.shape[2])
        queries_NKGS = queries_TKGS.narrow(0, span.row, span.num_rows)
        keys_1KLS, values_1KLS = _gather(keys_1KPS, read.stretches), _gather(values_1KPS, read.stretches)
        pieces.append(_mix(queries_NKGS, keys_1KLS, values_1KLS, mask=mask, scale=scale, softcap=softcap))
    if not reads.parts:
        attended_TKGS = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    elif not pieces:
        attended_TKGS = _mix_parts(queries_TKGS, cache.layer(layer), reads, scale=scale)
    else:
        assert reads.split_rows is not None
        attended_TKGS = torch.empty_like(queries_TKGS)
        for read, piece in zip(reads.whole, pieces, strict=True):
            attended_TKGS.narrow(0, read.span.row, read.span.num_rows).copy_(piece)
        split_TKGS = queries_TKGS.index_select(0, reads.split_rows)
        mixed_TKGS = _mix_parts(split_TKGS, cache.layer(layer), reads, scale=scale)
        attended_TKGS.index_copy_(0, reads.split_rows, mixed_TKGS)
    return attended_TKGS.reshape(num_tokens, num_heads * head_size)


def _gather(layer_1KPS: Tensor, stretches: list[Range]) -> Tensor:
    """The keys of a sequence, 1 x K x L x S: a view when they lie in one stretch."""
    if len(stretches) == 1:
        begin, end = stretches[0]
        return layer_1KPS.narrow(2, begin, end - begin)
    return torch.cat([layer_1KPS.narrow(2, begin, end - begin) for begin, end in stretches], dim=2)


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
    if softcap is None:
        mixed_1KQS = functional.scaled_dot_product_attention(
            queries_1KQS, keys_1KLS, values_1KLS, attn_mask=mask, scale=scale
        )
    else:
        scores = torch.matmul(queries_1KQS, keys_1KLS.transpose(2, 3)).float()
        scores.mul_((head_size**-0.5 if scale is None else scale) / softcap).tanh_().mul_(softcap)
        if mask is not None:
            scores.add_(mask)
        mixed_1KQS = torch.matmul(scores.softmax(dim=-1).to(values_1KLS.dtype), values_1KLS)
    if num_tokens == 1:
        return mixed_1KQS
    return mixed_1KQS.view(num_kv_heads, num_tokens, group, head_size).transpose(0, 1)


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
