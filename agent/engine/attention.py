"""Attention of one step against the KV cache, slice by slice.

Shapes: T tokens of the step, N of a slice, H local query heads, K local KV heads, G = H / K, S head size, L keys.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from agent.engine.batch import Batch
from agent.engine.kv_cache import KvCache


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
    _, num_heads, head_size = queries_THS.shape
    num_kv_heads = cache.keys.shape[2]
    group = num_heads // num_kv_heads
    attended = queries_THS.new_empty((queries_THS.shape[0], num_heads * head_size))
    for span in batch.spans:
        num_tokens = span.row_end - span.row
        queries_KgS = (
            queries_THS[span.row : span.row_end]
            .view(num_tokens, num_kv_heads, group, head_size)
            .permute(1, 2, 0, 3)
            .reshape(1, num_kv_heads, group * num_tokens, head_size)
        )
        keys = slice(span.key_begin(window), span.end)
        keys_KLS = cache.keys[layer, span.slot, :, keys].unsqueeze(0)
        values_KLS = cache.values[layer, span.slot, :, keys].unsqueeze(0)
        mask = batch.mask(span, window, group)
        if softcap is None:
            mixed = functional.scaled_dot_product_attention(
                queries_KgS, keys_KLS, values_KLS, attn_mask=mask, scale=scale
            )
        else:
            scores = torch.matmul(queries_KgS, keys_KLS.transpose(2, 3)).float()
            scores.mul_((head_size**-0.5 if scale is None else scale) / softcap).tanh_().mul_(softcap)
            if mask is not None:
                scores.add_(mask)
            mixed = torch.matmul(scores.softmax(dim=-1).to(values_KLS.dtype), values_KLS)
        attended[span.row : span.row_end] = (
            mixed.view(num_kv_heads, group, num_tokens, head_size)
            .permute(2, 0, 1, 3)
            .reshape(num_tokens, num_heads * head_size)
        )
    return attended
