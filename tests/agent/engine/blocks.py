"""A gateway's part of the KV cache, as small as tests need it."""

from __future__ import annotations

import random

import msgspec

from agent.engine.kv_cache import begins
from agent.planner.plan import BLOCK_TOKENS
from agent.wire.rank import SequenceSlice


class Blocks:
    """Gives slots their blocks, as few as they need: the lowest ones that are free, or scattered ones."""

    def __init__(self, count: int, *, is_scattered: bool = False) -> None:
        self._free = random.Random(count).sample(range(count), count) if is_scattered else list(range(count))[::-1]
        self._held: dict[int, list[int]] = {}

    def of(self, slot: int) -> list[int]:
        return list(self._held[slot])

    def take(self) -> int:
        """One more block, for whom the caller likes."""
        return self._free.pop()

    def fill(self, piece: SequenceSlice) -> SequenceSlice:
        """The slice with the blocks that its slot lacks; one that names its own is left as it is."""
        held = self._held.setdefault(piece.slot, [])
        if piece.new_blocks:
            return piece
        if begins(piece):
            self._free.extend(held)
            held.clear()
        lacking = -(-(piece.start + len(piece.tokens)) // BLOCK_TOKENS) - len(held)
        fresh = [self._free.pop() for _ in range(min(lacking, len(self._free)))]
        held.extend(fresh)
        return msgspec.structs.replace(piece, new_blocks=fresh)
