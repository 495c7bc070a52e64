"""Keys and values of every sequence, in blocks: allocated once, to the planned byte, and never grown."""

from __future__ import annotations

import torch
from torch import Tensor

from agent.engine.batch import Batch
from agent.engine.block_table import BlockTable
from agent.planner.plan import BLOCK_TOKENS
from agent.wire.rank import SequenceSlice


class KvCache:
    """`num_blocks` blocks of `BLOCK_TOKENS` positions for each local layer and KV head; slots share them.

    `keys` and `values` are layers x 1 x KV heads x places x head size: what attention reads of a layer is a view.
    `lengths[slot]` positions of a slot are valid. Bytes: 2 x layers x places x KV heads x head size x bytes of the
    dtype.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        batch: int,
        context: int,
        num_blocks: int,
        num_kv_heads: int,
        head_size: int,
        kind: torch.dtype,
        device: torch.device,
        is_exact: bool = False,
    ) -> None:
        shape = (num_layers, 1, num_kv_heads, num_blocks * BLOCK_TOKENS, head_size)
        # written through now: memory that is not there must show while loading, not in the middle of a stream
        self.keys = torch.empty(shape, dtype=kind, device=device).fill_(0)
        self.values = torch.empty(shape, dtype=kind, device=device).fill_(0)
        self.context = context
        self.straight = _make_straight(self.keys, context) if is_exact else None
        """Room for one sequence's keys and values in order, 1 x KV heads x context x head size each."""
        self.num_blocks = num_blocks
        self.lengths = [0] * batch
        self.tables = [BlockTable() for _ in range(batch)]
        self._layers = tuple(zip(self.keys, self.values, strict=True))
        self._planes = tuple(zip(self.keys[:, 0], self.values[:, 0], strict=True))

    @property
    def num_bytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values, each 1 x KV heads x places x head size."""
        return self._layers[layer]

    def admit(self, slices: list[SequenceSlice]) -> None:
        """Begin sequences and take their blocks in, before a step that `check_step` has passed."""
        for piece in slices:
            table = self.tables[piece.slot]
            if begins(piece):
                table.clear()
                self.lengths[piece.slot] = len(piece.history)
            table.extend(piece.new_blocks)

    def store(self, layer: int, batch: Batch, keys_TKS: Tensor, values_TKS: Tensor) -> None:
        """Keep the keys and values of the step's rows at their places."""
        for stored_KPS, rows_TKS in zip(self._planes[layer], (keys_TKS, values_TKS), strict=True):
            rows_KTS = rows_TKS.transpose(0, 1)
            if batch.single_places is not None:
                single = batch.single_rows
                single_KTS = rows_KTS if single is None else rows_KTS.index_select(1, single)
                stored_KPS.index_copy_(1, batch.single_places, single_KTS)
            for row, place, length in batch.stretches:
                stored_KPS.narrow(1, place, length).copy_(rows_KTS.narrow(1, row, length))

    def forget(self) -> None:
        self.lengths = [0] * len(self.lengths)
        for table in self.tables:
            table.clear()


def begins(piece: SequenceSlice) -> bool:
    """Whether a slice is the first of a sequence."""
    return piece.params is not None or piece.start == 0


def _make_straight(keys: Tensor, context: int) -> tuple[Tensor, Tensor]:
    _, _, num_kv_heads, _, head_size = keys.shape
    shape = (1, num_kv_heads, -(-context // BLOCK_TOKENS) * BLOCK_TOKENS, head_size)
    return keys.new_zeros(shape), keys.new_zeros(shape)
