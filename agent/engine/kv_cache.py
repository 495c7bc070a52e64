"""Keys and values of every slot: allocated once, to the planned byte, and never grown."""

from __future__ import annotations

import torch
from torch import Tensor

from agent.engine.batch import Batch


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

    def store(self, layer: int, batch: Batch, keys_TKS: Tensor, values_TKS: Tensor) -> None:
        """Keep the keys and values of the step's rows, each at its position of its slot."""
        for span in batch.spans:
            rows, positions = slice(span.row, span.row_end), slice(span.start, span.end)
            self.keys[layer, span.slot, :, positions] = keys_TKS[rows].transpose(0, 1)
            self.values[layer, span.slot, :, positions] = values_TKS[rows].transpose(0, 1)

    def forget(self) -> None:
        self.lengths = [0] * len(self.lengths)
