"""Sequences in blocks: wherever they lie, and whoever else reads them, the logits are transformers'."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engine.block_table import BlockTable
from agent.planner.plan import BLOCK_TOKENS
from agent.planner.shards import whole_extent
from agent.wire.rank import SamplingParams, SequenceSlice, StepFailed
from tests.agent.engine.models import VOCAB_SIZE, Reference, stage
from tests.agent.engine.threads import run_threads

MAX_DIFFERENCE = 1e-4


def random_tokens(count: int, *, seed: int) -> list[int]:
    return random.Random(seed).choices(range(VOCAB_SIZE), k=count)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=12, unique=True), st.data())
def test_places_of_a_stretch_are_those_of_its_positions(blocks: list[int], data: st.DataObject) -> None:
    table = BlockTable()
    cut = data.draw(st.integers(0, len(blocks)))
    table.extend(blocks[:cut])
    table.extend(blocks[cut:])
    places = [block * BLOCK_TOKENS + offset for block in blocks for offset in range(BLOCK_TOKENS)]
    assert table.num_positions == len(places)
    begin = data.draw(st.integers(0, len(places) - 1))
    end = data.draw(st.integers(begin + 1, len(places)))
    stretches = table.stretches(begin, end)
    assert [place for first, last in stretches for place in range(first, last)] == places[begin:end]
    assert all(last != first for (_, last), (first, _) in pairwise(stretches))
    assert table.place(begin) == places[begin]


@pytest.mark.parametrize("family", ["llama3", "mistral", "qwen3"])
@pytest.mark.parametrize(
    "own_blocks",
    [
        {1: [7, 8, 9], 2: [3, 4, 5], 3: [0, 10, 11]},  # a shared run, and a run of one's own
        {1: [7, 2, 9], 2: [11, 0, 4], 3: [3, 5, 10]},  # too many runs to read one by one
        {1: [7, 8, 9], 2: [3, 0, 11], 3: [2, 4, 10]},  # both in one step
    ],
)
def test_sequences_that_share_a_prefix_read_it_together(
    family: str, own_blocks: dict[int, list[int]], reference: Callable[[str], Reference], folder: Path
) -> None:
    model = reference(family)
    prefix = random_tokens(3 * BLOCK_TOKENS, seed=11)
    sequences = {slot: prefix + random_tokens(40, seed=slot) for slot in own_blocks}
    stages = [stage(model.spec, (0, 1)), stage(model.spec, (1, 4))]
    with run_threads(model.spec, stages, model_dir=model.path, folder=folder, kv_blocks=13) as replica:
        replica.step([SequenceSlice(0, 0, prefix, True, SamplingParams(), [1, 6, 12])])
        begun = [
            SequenceSlice(slot, 48, sequences[slot][48:70], True, SamplingParams(), [1, 6, 12, *blocks], prefix)
            for slot, blocks in own_blocks.items()
        ]
        replica.step(begun)
        for position in range(70, 88):
            tokens = {slot: sequence[position : position + 1] for slot, sequence in sequences.items()}
            if position == 80:  # a chunk between the rows that decode
                tokens[2] = sequences[2][80:]
            replica.put([SequenceSlice(slot, position, tokens[slot], True) for slot in tokens])
            replica.answers.next()
            if position == 80:
                del sequences[2]
        seen = replica.sampler.seen[1:]
    expected = {slot: model.logits(prefix + random_tokens(40, seed=slot)) for slot in own_blocks}
    for piece, logits in seen:
        last = piece.start + len(piece.tokens) - 1
        assert (logits - expected[piece.slot][last]).abs().max().item() < MAX_DIFFERENCE, (piece.slot, last)


def test_a_cache_smaller_than_all_contexts_serves_what_fits(
    reference: Callable[[str], Reference], folder: Path
) -> None:
    model = reference("llama3")
    prompts = {slot: random_tokens(10 + slot, seed=slot) for slot in range(4)}
    with run_threads(
        model.spec, [(whole_extent(model.spec),)], model_dir=model.path, folder=folder, kv_blocks=9
    ) as replica:
        made = replica.generate(prompts, 20)
        assert replica.boards["r0s0t0"].kv_cache_bytes == 2 * 4 * 9 * BLOCK_TOKENS * 4 * 8 * 4
    for slot, prompt in prompts.items():
        assert made[slot] == model.generate(prompt, 20)


@pytest.mark.parametrize(
    ("piece", "says"),
    [
        (SequenceSlice(0, 0, [1] * 17, True, None, [3]), "would hold 17 positions in blocks for 16"),
        (SequenceSlice(0, 0, [1], True, None, [5]), "names a block outside the cache's 5: [5]"),
        (SequenceSlice(0, 0, [1], True, None, [-1]), "names a block outside"),
        (SequenceSlice(0, 16, [1], True, SamplingParams(), [0, 1]), "begins at 16 behind a history of 0 tokens"),
        (SequenceSlice(0, 2, [1], True, None, [0], [1, 2]), "goes on at 2 and yet has a history"),
        (SequenceSlice(0, 0, [1, 2], True, None, [0], [], 2), "has 2 drafts among 2 tokens"),
        (SequenceSlice(0, 0, [1, 2], False, None, [0], [], 1), "has drafts and draws nothing"),
        (SequenceSlice(0, 0, [1], True, None, [0], [], 0, b"1234"), "has 4 bytes of masks, not 20"),
        (SequenceSlice(0, 0, [1], True, None, [0], [], 0, b"", True), "is to draw a token and to be embedded"),
    ],
)
def test_a_slice_that_its_table_cannot_hold_is_refused(
    piece: SequenceSlice, says: str, reference: Callable[[str], Reference], folder: Path
) -> None:
    model = reference("llama2")
    with run_threads(
        model.spec, [(whole_extent(model.spec),)], model_dir=model.path, folder=folder, kv_blocks=5
    ) as replica:
        replica.put([piece])
        failed = replica.answers.queue.get(timeout=10)
    assert isinstance(failed, StepFailed)
    assert failed.error.code == "E806"
    assert says in failed.error.message
