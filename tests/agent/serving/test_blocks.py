"""Blocks are consecutive where they can be, counted, and shared by what they contain."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.planner.plan import BLOCK_TOKENS
from agent.serving.blocks import BlockPool, BlockTable, extend_keys, num_blocks_of


def keys_of(tokens: list[int]) -> list[bytes]:
    keys: list[bytes] = []
    extend_keys(keys, tokens)
    return keys


def fill(pool: BlockPool, tokens: list[int], *, room: int = 0) -> BlockTable:
    """A sequence that is wholly computed."""
    keys = keys_of(tokens)
    shared = pool.match(keys)
    table = pool.open(shared, num_blocks_of(len(tokens)) - len(shared), room=room)
    for block, key in zip(table.blocks, keys, strict=False):
        pool.publish(block, key)
    return table


def num_runs(table: BlockTable) -> int:
    return sum(1 for index, block in enumerate(table.blocks) if index == 0 or block != table.blocks[index - 1] + 1)


def test_a_key_tells_all_tokens_up_to_its_block() -> None:
    first = keys_of(list(range(40)))
    assert len(first) == 40 // BLOCK_TOKENS
    assert keys_of(list(range(32)))[:2] == first
    assert keys_of([9, *range(1, 32)])[1] != first[1]
    piecewise: list[bytes] = []
    extend_keys(piecewise, list(range(16)))
    extend_keys(piecewise, list(range(16, 32)))
    assert piecewise == first


def test_sequences_that_grow_together_stay_consecutive() -> None:
    pool = BlockPool(64)
    tables = [pool.open([], 2, room=10) for _ in range(5)]
    for _ in range(10):
        for table in tables:
            pool.grow(table, 1)
    assert [num_runs(table) for table in tables] == [1] * 5
    pool.check_integrity(tables)


def test_a_promise_is_broken_for_one_who_finds_no_other_block() -> None:
    pool = BlockPool(8)
    first = pool.open([], 2, room=6)
    second = pool.open([], 4)
    assert pool.grow(first, 2) == [2, 3]
    assert pool.num_available == 0
    pool.check_integrity([first, second])


def test_a_gap_that_just_fits_is_taken_before_a_large_one() -> None:
    pool = BlockPool(32)
    tables = [pool.open([], 4) for _ in range(4)]
    pool.close(tables.pop(1))
    assert pool.open([], 3, room=1).blocks == [4, 5, 6]
    assert pool.open([], 5).blocks == [16, 17, 18, 19, 20]


def test_contents_outlive_their_sequence_until_the_place_is_needed() -> None:
    pool = BlockPool(4)
    tokens = list(range(3 * BLOCK_TOKENS))
    pool.close(fill(pool, tokens))
    assert pool.num_available == 4
    again = fill(pool, tokens)
    assert again.blocks == [0, 1, 2]
    pool.close(again)
    other = pool.open([], 2)
    assert pool.match(keys_of(tokens)) == [0, 1], "the end goes first, the beginning is shared more often"
    pool.close(other)
    pool.close(pool.open([], 4))
    assert pool.match(keys_of(tokens)) == []
    pool.check_integrity([])


def test_a_shared_block_is_held_until_its_last_holder_is_gone() -> None:
    pool = BlockPool(4)
    tokens = list(range(2 * BLOCK_TOKENS))
    first = fill(pool, tokens)
    shared = pool.match(keys_of(tokens))
    assert pool.can_open(shared, 2)
    assert not pool.can_open(shared, 3)
    second = pool.open(shared, 1)
    pool.close(first)
    assert pool.num_held == 3
    pool.check_integrity([second])
    pool.clear()
    assert pool.match(keys_of(tokens)) == []
    assert pool.num_available == 4


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 7), st.booleans()), max_size=60),
    st.integers(1, 24),
)
def test_blocks_are_never_lost_or_given_twice(moves: list[tuple[int, int, int, bool]], num_blocks: int) -> None:
    pool = BlockPool(num_blocks)
    tables: dict[int, BlockTable] = {}
    for text, count, room, is_end in moves:
        tokens = [text * 1000 + index for index in range(count * BLOCK_TOKENS)]
        table = tables.pop(text, None)
        if table is None:
            keys = keys_of(tokens)
            shared = pool.match(keys)
            if pool.can_open(shared, count - len(shared)):
                tables[text] = fill(pool, tokens, room=room)
        elif is_end:
            pool.close(table)
        else:
            tables[text] = table
            if pool.num_available >= count:
                assert len(pool.grow(table, count)) == count
        pool.check_integrity(list(tables.values()))
