"""Keys and values of every slot: allocated once, to the planned byte, and never grown."""

from __future__ import annotations

import torch
from torch import Tensor


class KvCache:
    """`batch` slots of `context` positions for each local layer and KV head.

    `lengths[slot]` positions of a slot are valid. Bytes: 2 x layers x batch x KV heads x context x head size x
    bytes of the dtype.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        batch: int,
        context: int,
        num_kv_heads: int,
        head_size: int,
        kind: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_layers, batch, num_kv_heads, context, head_size)
        # written through now: memory that is not there must show while loading, not in the middle of a stream
        self.keys = torch.empty(shape, dtype=kind, device=device).fill_(0)
        self.values = torch.empty(shape, dtype=kind, device=device).fill_(0)
        self.context = context
        self.lengths = [0] * batch

    @property
    def num_bytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def write(self, layer: int, slot: int, start: int, keys_NKS: Tensor, values_NKS: Tensor) -> None:
        """Store the positions from `start` on of one slot."""
        end = start + keys_NKS.shape[0]
        self.keys[layer, slot, :, start:end] = keys_NKS.transpose(0, 1)
        self.values[layer, slot, :, start:end] = values_NKS.transpose(0, 1)

    def forget(self) -> None:
        self.lengths = [0] * len(self.lengths)
