"""Which blocks of the KV cache hold a sequence. Pure arithmetic: positions of a sequence to places in the cache.

A place counts positions over all blocks, so that consecutive blocks are consecutive places and a stretch of them
is one view of the cache.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from agent.planner.plan import BLOCK_TOKENS, Range


class BlockTable:
    """The blocks of one slot in order, kept as runs: maximal stretches of consecutive blocks."""

    def __init__(self) -> None:
        self.num_blocks = 0
        self._positions: list[int] = []
        """First position of each run."""
        self._places: list[int] = []
        """Its first place."""

    @property
    def num_positions(self) -> int:
        return self.num_blocks * BLOCK_TOKENS

    def clear(self) -> None:
        self.num_blocks = 0
        self._positions.clear()
        self._places.clear()

    def extend(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            place = block * BLOCK_TOKENS
            if not self._places or place != self._places[-1] + self.num_positions - self._positions[-1]:
                self._positions.append(self.num_positions)
                self._places.append(place)
            self.num_blocks += 1

    def stretches(self, begin: int, end: int) -> list[Range]:
        """Places of the positions [begin, end) in order, as few half-open ranges as there are runs."""
        assert 0 <= begin < end <= self.num_positions
        run = bisect_right(self._positions, begin) - 1
        found: list[Range] = []
        while begin < end:
            run_end = self._positions[run + 1] if run + 1 < len(self._positions) else end
            length = min(end, run_end) - begin
            place = self._places[run] + begin - self._positions[run]
            found.append((place, place + length))
            begin += length
            run += 1
        return found

    def blocks(self, count: int, first: int = 0) -> list[int]:
        """`count` blocks from the `first` one on."""
        return [
            block
            for begin, end in self.stretches(first * BLOCK_TOKENS, (first + count) * BLOCK_TOKENS)
            for block in range(begin // BLOCK_TOKENS, end // BLOCK_TOKENS)
        ]

    def place(self, position: int) -> int:
        run = bisect_right(self._positions, position) - 1
        return self._places[run] + position - self._positions[run]
