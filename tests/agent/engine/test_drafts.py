"""Guesses change how fast tokens come, never which; masks forbid tokens; embeddings are the last hidden state."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from agent.engine.step_check import mask_row_bytes
from agent.facts.model import ModelSpec
from agent.wire.rank import SampledToken, SamplingParams, SequenceSlice, StepDone, StepFailed
from tests.agent.engine.models import VOCAB_SIZE, Reference, stage
from tests.agent.engine.threads import Stages, ThreadReplica, run_threads

LAYOUTS: dict[str, Callable[[ModelSpec], Stages]] = {
    "unsharded": lambda spec: [stage(spec, (0, 4))],
    "pipeline_3": lambda spec: [stage(spec, (0, 1)), stage(spec, (1, 3)), stage(spec, (3, 4))],
    "tensor_2": lambda spec: [stage(spec, (0, 4), (3, 1))],
    "hybrid": lambda spec: [stage(spec, (0, 2)), stage(spec, (2, 4), (1, 3))],
}
WAYS = {
    "greedy": SamplingParams(),
    "seeded": SamplingParams(seed=5, temperature=1.2, top_p=0.95),
    "penalties": SamplingParams(seed=6, temperature=0.7, top_k=20, repeat_penalty=1.3, presence_penalty=0.4),
}


def random_tokens(count: int, *, seed: int) -> list[int]:
    return random.Random(seed).choices(range(VOCAB_SIZE), k=count)


def generate_guessing(
    replica: ThreadReplica, prompts: dict[int, list[int]], truth: dict[int, list[int]], *, params: SamplingParams
) -> tuple[dict[int, list[int]], int]:
    """Decode what `truth` holds with guesses that are right as often as not; also how many steps it took."""
    chance = random.Random(3)
    made: dict[int, list[int]] = {slot: [] for slot in prompts}
    begun = [
        SequenceSlice(slot=slot, start=0, tokens=prompt, samples=True, params=params)
        for slot, prompt in prompts.items()
    ]
    steps = 0
    slices = begun
    while slices:
        steps += 1
        drawn: dict[int, list[SampledToken]] = {slot: [] for slot in prompts}
        for sampled in replica.step(slices):
            drawn[sampled.slot].append(sampled)
        for piece in slices:
            tokens = drawn[piece.slot]
            assert 1 <= len(tokens) <= piece.drafts + 1
            assert [each.position for each in tokens] == [
                len(prompts[piece.slot]) + len(made[piece.slot]) + index for index in range(len(tokens))
            ]
            made[piece.slot].extend(each.token for each in tokens)
        slices = []
        for slot, prompt in prompts.items():
            left = truth[slot][len(made[slot]) :]
            if not left:
                continue
            guesses = [token if chance.random() < 0.8 else chance.randrange(VOCAB_SIZE) for token in left[:5]]
            slices.append(
                SequenceSlice(
                    slot=slot,
                    start=len(prompt) + len(made[slot]) - 1,
                    tokens=[made[slot][-1], *guesses[:-1]],
                    samples=True,
                    drafts=len(guesses) - 1,
                )
            )
    return made, steps


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_drafts_change_no_token(layout: str, way: str, reference: Callable[[str], Reference], folder: Path) -> None:
    model = reference("llama3" if way == "greedy" else "mistral")
    prompts = {0: random_tokens(5, seed=1), 2: random_tokens(21, seed=2), 3: random_tokens(33, seed=3)}
    with run_threads(model.spec, LAYOUTS[layout](model.spec), model_dir=model.path, folder=folder) as replica:
        truth = replica.generate(prompts, 40, params=WAYS[way])
        made, steps = generate_guessing(replica, prompts, truth, params=WAYS[way])
        assert made == truth
        assert steps < 30


def pack_mask(allowed: set[int]) -> bytes:
    bits = np.zeros(mask_row_bytes(VOCAB_SIZE) * 8, dtype=np.uint8)
    bits[sorted(allowed)] = 1
    return np.packbits(bits, bitorder="little").tobytes()


@pytest.mark.parametrize("way", WAYS)
def test_only_tokens_that_the_mask_allows_are_drawn(
    way: str, reference: Callable[[str], Reference], folder: Path
) -> None:
    model = reference("llama2")
    prompt = random_tokens(9, seed=8)
    rows = model.logits(prompt)[-3:]
    allowed = [set(random_tokens(9, seed=index)) | {130} for index in range(3)]
    params = WAYS[way]
    with run_threads(model.spec, LAYOUTS["tensor_2"](model.spec), model_dir=model.path, folder=folder) as replica:
        for index, tokens in enumerate(allowed):
            masks = pack_mask(tokens)
            drawn = replica.step([SequenceSlice(0, 0, prompt[: 7 + index], True, params, masks=masks)])
            assert drawn[0].token in tokens
            if params.temperature == 0:
                masked = torch.full((VOCAB_SIZE,), float("-inf")).scatter(
                    0, torch.tensor(sorted(tokens)), rows[index][torch.tensor(sorted(tokens))]
                )
                assert drawn[0].token == int(masked.argmax())


def test_each_draft_has_its_own_mask(reference: Callable[[str], Reference], folder: Path) -> None:
    model = reference("llama2")
    prompt = random_tokens(9, seed=9)
    with run_threads(model.spec, LAYOUTS["pipeline_3"](model.spec), model_dir=model.path, folder=folder) as replica:
        masks = b"".join(pack_mask({token}) for token in (4, 9, 11, 12))
        piece = SequenceSlice(1, 0, [*prompt, 4, 9, 10], True, SamplingParams(logprobs=2), drafts=3, masks=masks)
        drawn = replica.step([piece])
        assert [(each.position, each.token) for each in drawn] == [(9, 4), (10, 9), (11, 11)]
        for each in drawn:
            expected = model.logits([*prompt, 4, 9])[each.position - 1].log_softmax(-1)
            assert each.logprobs[0][1] == pytest.approx(float(expected[each.token]), abs=1e-4)
        replica.put([SequenceSlice(1, 0, prompt, True, masks=bytes(mask_row_bytes(VOCAB_SIZE)))])
        failed = replica.answers.queue.get(timeout=10)
    assert isinstance(failed, StepFailed)
    assert (failed.error.code, failed.error.message) == ("E806", "a mask of slot 1 allows no token")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_embedding_is_the_last_hidden_state_behind_the_final_norm(
    layout: str, reference: Callable[[str], Reference], folder: Path
) -> None:
    model = reference("qwen2")
    prompts = {0: random_tokens(7, seed=1), 1: random_tokens(20, seed=2), 2: random_tokens(4, seed=3)}
    with run_threads(model.spec, LAYOUTS[layout](model.spec), model_dir=model.path, folder=folder) as replica:
        replica.step([SequenceSlice(1, 0, prompts[1][:12], False)])
        replica.put(
            [
                SequenceSlice(0, 0, prompts[0], False, embeds=True),
                SequenceSlice(2, 0, prompts[2], True),
                SequenceSlice(1, 12, prompts[1][12:], False, embeds=True),
            ]
        )
        done = replica.answers.next()
    assert isinstance(done, StepDone)
    assert [token.slot for token in done.tokens] == [2]
    assert [each.slot for each in done.embeddings] == [0, 1]
    for each in done.embeddings:
        with torch.inference_mode():
            theirs = model.model.model(torch.tensor([prompts[each.slot]])).last_hidden_state[0, -1]
        ours = torch.from_numpy(np.frombuffer(each.values, dtype="<f4").copy())
        assert (ours - theirs).abs().max().item() < 1e-4
