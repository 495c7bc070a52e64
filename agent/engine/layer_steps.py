"""Steps through a decoder's layers alone, again and again: what probes and rehearsals measure."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from agent.engine.batch import lay_out
from agent.engine.decoder import Decoder
from agent.engine.kv_cache import KvCache
from agent.facts.model import ModelSpec
from agent.planner.plan import BLOCK_TOKENS
from agent.planner.shards import ShardExtent
from agent.wire.rank import SamplingParams, SequenceSlice, Step

Act = Callable[[int], object]
"""Does something that is measured; is told its number."""


def decoding(sequences: int, *, context: int) -> list[SequenceSlice]:
    """A token for each sequence at the end of its context; blocks lie as earlier requests left them."""
    blocks = blocks_of(context)
    return [
        SequenceSlice(
            slot=slot,
            start=context - 1,
            tokens=[0],
            samples=False,
            params=SamplingParams(),
            new_blocks=list(range(slot, sequences * blocks, sequences)),
        )
        for slot in range(sequences)
    ]


def prompt(slot: int, rows: int, *, first_block: int) -> SequenceSlice:
    """The first rows of a prompt."""
    return SequenceSlice(
        slot=slot,
        start=0,
        tokens=[0] * rows,
        samples=False,
        params=SamplingParams(),
        new_blocks=list(range(first_block, first_block + blocks_of(rows))),
    )


def blocks_of(positions: int) -> int:
    return -(-positions // BLOCK_TOKENS)


def step_through(
    decoder: Decoder,
    spec: ModelSpec,
    extent: ShardExtent,
    slices: list[SequenceSlice],
    *,
    device: torch.device,
    kind: torch.dtype,
) -> Act:
    """Lays these slices out and passes them through the decoder's layers, whenever it is called with a number."""
    num_blocks = sum(len(piece.new_blocks) for piece in slices)
    cache = KvCache(
        num_layers=extent.layers[1] - extent.layers[0],
        batch=len(slices),
        context=num_blocks * BLOCK_TOKENS,
        num_blocks=num_blocks,
        num_kv_heads=extent.kv_heads[1] - extent.kv_heads[0],
        head_size=spec.head_size,
        kind=kind,
        device=device,
    )
    cache.admit(slices)
    rows = sum(len(piece.tokens) for piece in slices)
    hidden_TD = torch.randn((rows, spec.hidden_size), device=device).to(kind)

    def act(number: int) -> Tensor:
        batch = lay_out(Step(step_id=number, slices=slices), cache.tables, kind=kind, device=device)
        return decoder.run_layers(hidden_TD, batch, cache, lambda partial: partial)

    return act
