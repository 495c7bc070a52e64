"""The blocks of a KV cache: which sequence holds which, and whose content may be shared. No I/O. Deterministic.

Ranks attend over runs of consecutive blocks without copying, so a sequence gets consecutive ones wherever that is
possible: it starts in the smallest gap with room for all that it may become, and the rest of that room is promised
to it. A promise is soft: whoever finds no other block takes it.

A block is free, held by sequences (counted), or idle: held by nobody, but kept for what it contains until its place
is needed, longest unused first.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections import OrderedDict
from collections.abc import Sequence

from agent.planner.plan import BLOCK_TOKENS

_FREE, _PROMISED, _TAKEN = 0, 1, 2
_GAPS = re.compile(b"\x00+")
_GAPS_WITH_PROMISES = re.compile(b"[\x00\x01]+")
EVICTED_AHEAD = 4
"""Idle blocks given up beside those that are needed at once, so that a sequence can go on where it is."""


def num_blocks_of(num_tokens: int) -> int:
    """Blocks that hold this many positions."""
    return -(-num_tokens // BLOCK_TOKENS)


def extend_keys(keys: list[bytes], tokens: Sequence[int]) -> None:
    """Append the keys of full blocks: `tokens` go on where the blocks of `keys` end.

    A key is the BLAKE2b of its block's tokens and the key before: equal keys mean equal tokens from the beginning.
    """
    for begin in range(0, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        content = array("I", tokens[begin : begin + BLOCK_TOKENS]).tobytes()
        keys.append(hashlib.blake2b(content, key=keys[-1] if keys else b"", digest_size=16).digest())


class BlockTable:
    """Blocks of one sequence, by position. `promised` are those behind the last one that it may grow into."""

    def __init__(self, blocks: list[int]) -> None:
        self.blocks = blocks
        self.promised = range(0)

    def __len__(self) -> int:
        return len(self.blocks)


class BlockPool:
    """All blocks of one replica: every rank of it keeps the same tables."""

    def __init__(self, num_blocks: int) -> None:
        assert num_blocks >= 1, f"num_blocks {num_blocks}"
        self.num_blocks = num_blocks
        self.clear()

    def clear(self) -> None:
        """Forget everything, contents too: what the blocks hold is not known any more."""
        self._map = bytearray(self.num_blocks)
        self._num_free = self.num_blocks
        self._holders = [0] * self.num_blocks
        self._key_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def num_available(self) -> int:
        """Blocks that can be had: free ones, and idle ones at the price of what they hold."""
        return self._num_free + len(self._idle)

    @property
    def num_held(self) -> int:
        return self.num_blocks - self.num_available

    def match(self, keys: Sequence[bytes]) -> list[int]:
        """Blocks with the contents of the longest known beginning of `keys`."""
        found = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def can_open(self, shared: Sequence[int], count: int, *, spare: int = 0) -> bool:
        """`open` would find its blocks, and leave `spare` more."""
        revived = sum(1 for block in shared if block in self._idle)
        return self.num_available - revived >= count + spare

    def open(self, shared: Sequence[int], count: int, *, room: int = 0) -> BlockTable:
        """A table that begins with `shared` blocks, as `match` found them, and `count` of its own.

        `room` is how many more it may come to need.
        """
        for block in shared:
            self._holders[block] += 1
            self._idle.pop(block, None)
        table = BlockTable(list(shared))
        if count:
            self._settle(table, count, room)
        return table

    def grow(self, table: BlockTable, count: int) -> list[int]:
        """Append `count` blocks to a table. The caller has seen that they are available."""
        before = len(table.blocks)
        for missing in range(count, 0, -1):
            following = table.blocks[-1] + 1 if table.blocks else self.num_blocks
            if self._may_take(table, following):
                self._take(table, following)
            elif self._num_free == 0 and following in self._idle:
                self._evict(following)
                self._take(table, following)
            else:
                self._settle(table, missing, max(0, len(table.promised) - missing))
                break
        return table.blocks[before:]

    def publish(self, block: int, key: bytes) -> None:
        """The content of a held block is complete, and will not change as long as it is held or idle."""
        assert self._holders[block] > 0, f"block {block} is held by nobody"
        if block not in self._key_of and key not in self._block_of:
            self._key_of[block] = key
            self._block_of[key] = block

    def close(self, table: BlockTable) -> None:
        """Its holder is gone. The end of a sequence is given up before its beginning: that is shared more often."""
        for block in reversed(table.blocks):
            self._holders[block] -= 1
            if self._holders[block] == 0:
                if block in self._key_of:
                    self._idle[block] = None
                else:
                    self._free(block)
        self._withdraw(table)
        table.blocks = []

    def check_integrity(self, tables: Sequence[BlockTable]) -> None:
        """Assert that these tables and nobody else hold blocks, and that every block is in one state."""
        held = [0] * self.num_blocks
        for table in tables:
            assert len(set(table.blocks)) == len(table.blocks), "a block twice in one table"
            for block in table.blocks:
                held[block] += 1
        assert held == self._holders, "blocks leaked or given away while held"
        in_use = {block for table in tables for block in table.blocks}
        assert in_use.isdisjoint(self._idle), "a block is idle and held"
        assert all(self._map[block] == _TAKEN for block in (*in_use, *self._idle)), "a block in use counts as free"
        assert self._map.count(_TAKEN) == len(in_use) + len(self._idle), "a block is neither free nor of use"
        assert self._num_free == self.num_blocks - self._map.count(_TAKEN), "free blocks miscounted"
        assert self._idle.keys() <= self._key_of.keys() <= in_use | self._idle.keys(), "contents of free blocks"
        assert {key: block for block, key in self._key_of.items()} == self._block_of, "contents and keys differ"

    def _settle(self, table: BlockTable, count: int, room: int) -> None:
        """Take `count` blocks in the best gaps, and promise `room` behind them."""
        self._withdraw(table)
        while self._num_free < min(count + min(room, EVICTED_AHEAD), self.num_available):
            self._evict(next(iter(self._idle)))
        while count:
            start, end = self._find_gap(count, room)
            taken = min(count, end - start)
            for block in range(start, start + taken):
                self._take(table, block)
            count -= taken
            if not count:
                following = table.blocks[-1] + 1
                table.promised = range(following, max(following, min(end, following + room)))
                for block in table.promised:
                    if self._map[block] == _FREE:
                        self._map[block] = _PROMISED

    def _find_gap(self, count: int, room: int) -> tuple[int, int]:
        """Where to go on: the smallest gap with room for all, else the largest, else the end of a promised one."""
        gaps = [match.span() for match in _GAPS.finditer(self._map)]
        if gaps:
            ample = [gap for gap in gaps if gap[1] - gap[0] >= count + room]
            if ample:
                return min(ample, key=lambda gap: gap[1] - gap[0])
            return max(gaps, key=lambda gap: gap[1] - gap[0])
        promised = [match.span() for match in _GAPS_WITH_PROMISES.finditer(self._map)]
        assert promised, f"{count} blocks wanted, none is available"
        start, end = max(promised, key=lambda gap: gap[1] - gap[0])
        return max(start, end - count), end

    def _may_take(self, table: BlockTable, block: int) -> bool:
        if block >= self.num_blocks:
            return False
        state = self._map[block]
        return state == _FREE or (state == _PROMISED and block in table.promised)

    def _take(self, table: BlockTable, block: int) -> None:
        assert self._map[block] != _TAKEN, f"block {block} is taken"
        self._map[block] = _TAKEN
        self._num_free -= 1
        self._holders[block] = 1
        table.blocks.append(block)
        if block in table.promised:
            table.promised = range(block + 1, table.promised.stop)

    def _free(self, block: int) -> None:
        self._map[block] = _FREE
        self._num_free += 1

    def _evict(self, block: int) -> None:
        del self._idle[block]
        del self._block_of[self._key_of.pop(block)]
        self._free(block)

    def _withdraw(self, table: BlockTable) -> None:
        for block in table.promised:
            if self._map[block] == _PROMISED:
                self._map[block] = _FREE
        table.promised = range(0)
