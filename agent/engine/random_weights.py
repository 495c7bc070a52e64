"""Weights of no meaning in the shapes of any model's shard: what steps take does not hang on their values."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from agent.engine.linear.kernel import Kernel
from agent.engine.stored_tensors import TensorKey, key_of
from agent.engine.weights import ShardWeights, lay_out_weights
from agent.facts.model import ModelSpec, Quantisation
from agent.planner.shards import ShardExtent, TensorSlice, slice_shard

TILE_ROWS = 64
"""Rows that repeat: drawing every value by itself would take longer than what is measured with them."""


def random_weights(
    spec: ModelSpec, extent: ShardExtent, *, kind: torch.dtype, device: torch.device, quantisation: Quantisation
) -> ShardWeights:
    """As `load_weights` would have them: rows of deviation 1 / sqrt(inputs), norms of 1."""
    kernels: dict[TensorKey, Kernel] = {}
    tensors: dict[TensorKey, Tensor] = {}
    stored = _tensors(spec, extent, kind=kind, device=device)
    for key, made in lay_out_weights(spec, extent, stored, quantisation=quantisation, shares_embedding=True):
        if isinstance(made, Kernel):
            kernels[key] = made
        else:
            tensors[key] = made
    return ShardWeights(kernels, tensors, is_exact=False)


def _tensors(
    spec: ModelSpec, extent: ShardExtent, *, kind: torch.dtype, device: torch.device
) -> Iterator[tuple[TensorKey, Tensor]]:
    """Fused and in the order of `read_tensors`: vectors before matrices."""
    by_key: dict[TensorKey, list[TensorSlice]] = {}
    for piece in slice_shard(spec, extent):
        by_key.setdefault(key_of(piece), []).append(piece)
    generator = torch.Generator(device=device).manual_seed(0)
    for key in sorted(by_key, key=lambda key: len(by_key[key][0].shape)):
        rows = sum(piece.sliced_shape[0] for piece in by_key[key])
        rest = by_key[key][0].sliced_shape[1:]
        if not rest:
            yield key, torch.ones(rows, dtype=kind, device=device)
            continue
        tile = torch.randn((TILE_ROWS, *rest), generator=generator, device=device).mul_(rest[-1] ** -0.5).to(kind)
        yield key, tile.repeat(-(-rows // TILE_ROWS), *(1 for _ in rest))[:rows].contiguous()
