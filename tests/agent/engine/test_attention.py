"""However the keys of a step's rows are read, what comes out is the softmax over what each row may see."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from agent.engine.attention import attend, split_from
from agent.engine.batch import LONG_STRETCH, MIN_SHARERS, SHARED_RUN, Batch, Reads, lay_out
from agent.engine.kv_cache import KvCache
from agent.planner.memory import GATHERED_POSITIONS
from agent.planner.plan import BLOCK_TOKENS
from agent.wire.rank import SamplingParams, SequenceSlice, Step

HEADS, KV_HEADS, SIZE = 4, 2, 16


class Sequences:
    """Sequences whose blocks lie as asked, in a cache of random keys and values."""

    def __init__(self, num_blocks: int, batch: int) -> None:
        torch.manual_seed(0)
        self.cache = KvCache(
            num_layers=1,
            batch=batch,
            context=num_blocks * BLOCK_TOKENS,
            num_blocks=num_blocks,
            num_kv_heads=KV_HEADS,
            head_size=SIZE,
            kind=torch.float32,
            device=torch.device("cpu"),
        )
        self.cache.keys.normal_()
        self.cache.values.normal_()
        self._slices: list[SequenceSlice] = []

    def add(self, blocks: list[int], *, length: int, rows: int = 1) -> None:
        """A sequence of `length` positions, the last `rows` of which are this step's."""
        piece = SequenceSlice(
            slot=len(self._slices),
            start=length - rows,
            tokens=[0] * rows,
            samples=False,
            params=SamplingParams(),
            new_blocks=blocks,
        )
        self.cache.admit([piece])
        self._slices.append(piece)

    def batch(self) -> Batch:
        step = Step(step_id=1, slices=self._slices)
        return lay_out(step, self.cache.tables, kind=torch.float32, device=torch.device("cpu"))

    def expected(self, queries_THS: Tensor, window: int | None) -> Tensor:
        keys_KPS, values_KPS = (stored[0] for stored in self.cache.layer(0))
        rows: list[Tensor] = []
        for piece in self._slices:
            table = self.cache.tables[piece.slot]
            for position in range(piece.start, piece.start + len(piece.tokens)):
                begin = 0 if window is None else max(0, position - window + 1)
                places = [table.place(each) for each in range(begin, position + 1)]
                query_KGS = queries_THS[len(rows)].view(KV_HEADS, HEADS // KV_HEADS, SIZE)
                scores = query_KGS @ keys_KPS[:, places].transpose(1, 2) / SIZE**0.5
                rows.append((scores.softmax(-1) @ values_KPS[:, places]).flatten())
        return torch.stack(rows)

    def check(self, window: int | None = None) -> Reads:
        """Attend, compare, and tell how the keys were read."""
        batch = self.batch()
        queries_THS = torch.randn((batch.num_tokens, HEADS, SIZE))
        torch.testing.assert_close(
            attend(queries_THS, self.cache, 0, batch, window=window),
            self.expected(queries_THS, window),
            rtol=1e-4,
            atol=1e-5,
        )
        return batch.reads(window, split_from=split_from(self.cache.layer(0)))


def scattered(count: int, *, of: int, seed: int = 1) -> list[int]:
    return random.Random(seed).sample(range(of), count)


def sizes(reads: Reads) -> list[tuple[int, int]]:
    """(rows, blocks) of each gathered group."""
    return [(group.blocks.shape[0] // group.num_blocks, group.num_blocks) for group in reads.gathered]


@pytest.mark.parametrize("window", [None, 1, 20, 40])
def test_rows_that_decode_together_are_gathered_wherever_their_blocks_lie(window: int | None) -> None:
    sequences = Sequences(64, 4)
    order = scattered(24, of=64)
    for index, length in enumerate((90, 96, 81, 70)):
        sequences.add(order[6 * index : 6 * index + 6], length=length)
    reads = sequences.check(window)
    assert len(sizes(reads)) == 1
    assert reads.gathered[0].rows is None
    assert (reads.whole, reads.parts) == ((), ())


def test_chunks_and_lengths_that_differ_much_are_read_beside_the_gathered() -> None:
    sequences = Sequences(128, 6)
    order = scattered(80, of=128)
    sequences.add(order[:20], length=320)
    sequences.add(order[20:26], length=85)
    sequences.add(order[26:32], length=90, rows=37)
    sequences.add(order[32:50], length=288)
    sequences.add(order[50:55], length=75)
    sequences.add(order[55:57], length=17)
    reads = sequences.check()
    assert sizes(reads) == [(2, 20), (2, 6)]
    assert [read.span.num_rows for read in reads.whole if read.span.num_rows > 1] == [37]
    others = len(reads.whole) - 1 + (0 if reads.split_rows is None else len(reads.split_rows))
    assert others == 1, "the shortest would be padded to more than twice its keys"


def test_a_group_gathers_no_more_than_the_plan_has_room_for() -> None:
    blocks = GATHERED_POSITIONS // BLOCK_TOKENS // 4
    sequences = Sequences(6 * blocks, 6)
    for index in range(6):
        sequences.add(list(range(index, 6 * blocks, 6)), length=blocks * BLOCK_TOKENS - index)
    reads = sequences.check()
    assert [rows for rows, _ in sizes(reads)] == [4, 2]
    assert all(rows * length * BLOCK_TOKENS <= GATHERED_POSITIONS for rows, length in sizes(reads))


def test_a_long_stretch_is_read_in_place_and_a_long_run_once_for_all_that_share_it() -> None:
    alone = LONG_STRETCH // BLOCK_TOKENS + 1
    run = SHARED_RUN // BLOCK_TOKENS
    sequences = Sequences(2 * alone + run + 2 * MIN_SHARERS, 2 + MIN_SHARERS)
    for index in range(2):
        sequences.add(list(range(index * alone, (index + 1) * alone)), length=alone * BLOCK_TOKENS)
    shared = list(range(2 * alone, 2 * alone + run))
    for index in range(MIN_SHARERS):
        sequences.add([*shared, 2 * alone + run + 2 * index + 1], length=SHARED_RUN + 9)
    reads = sequences.check()
    assert not reads.gathered
    assert len(reads.whole) == 2
    assert max(part.rows.shape[0] for part in reads.parts) == MIN_SHARERS


def test_a_short_row_is_copied_and_a_long_one_read_as_its_runs_lie() -> None:
    """Run by run takes a dozen operations a layer, whatever their length."""
    short = Sequences(64, 1)
    short.add([3, 4, 20, 21], length=60)
    reads = short.check()
    assert [len(read.stretches) for read in reads.whole] == [2]
    assert (reads.gathered, reads.parts) == ((), ())
    blocks = split_from(short.cache.layer(0)) // BLOCK_TOKENS
    long = Sequences(blocks + 2, 1)
    long.add([*range(2), *range(3, blocks + 1)], length=blocks * BLOCK_TOKENS)
    reads = long.check()
    assert (reads.whole, reads.gathered) == ((), ())
    assert len(reads.parts) == 2
