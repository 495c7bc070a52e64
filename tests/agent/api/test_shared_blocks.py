"""Shared prefixes, guesses and too few blocks on real ranks: less is computed, and every answer is the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from agent.planner.plan import BLOCK_TOKENS, Serving
from agent.wire.rank import GetStatus
from tests.agent.api.engine import Served, serve_model
from tests.agent.engine.models import stage
from tests.agent.serving.tokenizer import SPECIAL_TOKENS, VOCAB_SIZE

SERVING = Serving(
    context=1280,
    batch=16,
    dtype="float32",
    prefill_chunk=128,
    queue=64,
    speculation="prompt_lookup",
    max_drafts=4,
    kv_cache_tokens=104 * BLOCK_TOKENS,
)
NUM_WORDS = VOCAB_SIZE - len(SPECIAL_TOKENS)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """Two stages, with room for one whole context and little more."""
    with serve_model(lambda spec: (stage(spec, (0, 2)), stage(spec, (2, 4))), serving=SERVING) as served:
        yield served


def words(count: int, *, seed: int) -> list[int]:
    """Tokens that hardly any two seeds have in common."""
    return [len(SPECIAL_TOKENS) + (seed * 7919 + index * index * 31 + index) % NUM_WORDS for index in range(count)]


def ask_all(served: Served, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """What Ollama's clients get, all at once: the generated tokens."""

    def ask(prompt: Sequence[int]) -> list[int]:
        options = {"temperature": 0, "repeat_penalty": 1.0, "num_predict": count, "num_ctx": SERVING.context}
        body: dict[str, Any] = {"model": "demo", "prompt": "", "raw": True, "stream": False, "options": options}
        with httpx.Client(timeout=60) as client:
            url = f"{served.rig.base_url}/api/generate"
            answer = client.post(url, json={**body, "context": list(prompt)}).raise_for_status()
        return [int(token) for token in answer.json()["context"][len(prompt) :]]

    with ThreadPoolExecutor(len(prompts)) as clients:
        return list(clients.map(ask, prompts))


def computed_tokens(served: Served) -> int:
    return served.ranks[0].ask(GetStatus()).tokens


def test_sixty_four_requests_compute_a_shared_prefix_once(served: Served) -> None:
    prefix = words(1024, seed=1)
    prompts = [[*prefix, *words(6, seed=100 + number)] for number in range(64)]
    before, computed = served.rig.backend(), computed_tokens(served)
    answers = ask_all(served, prompts, 2)
    status = served.rig.backend()
    rows = computed_tokens(served) - computed
    guesses = status.drafts_proposed - before.drafts_proposed
    assert status.prefix_hit_tokens - before.prefix_hit_tokens == 63 * 1024
    assert rows <= 1024 + 64 * (6 + 1) + guesses, f"{rows} rows for {64 * 1030} prompt tokens"
    for number in (0, 1, 31, 63):
        assert answers[number] == served.reference.generate(prompts[number], 2)[: len(answers[number])]


def test_guesses_change_no_token(served: Served) -> None:
    """A random model soon repeats itself under greedy sampling, so that many guesses are right."""
    before = served.rig.backend()
    prompts = [words(20, seed=number) for number in range(2, 5)]
    answers = ask_all(served, prompts, 60)
    status = served.rig.backend()
    assert status.drafts_accepted - before.drafts_accepted > 20
    assert status.drafts_proposed - before.drafts_proposed < 3 * 60
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer == served.reference.generate(prompt, 60)[: len(answer)]


def test_requests_that_lose_their_blocks_go_on_with_the_same_tokens(served: Served) -> None:
    before = served.rig.backend()
    prompts = [words(100 + number, seed=40 + number) for number in range(SERVING.batch)]
    # Long enough for all to be under way together, however slowly a busy machine starts the clients.
    answers = ask_all(served, prompts, 200)
    status = served.rig.backend()
    assert status.preemptions > before.preemptions
    assert status.finished - before.finished == SERVING.batch
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer == served.reference.generate(prompt, 200)[: len(answer)]
    assert served.rig.backend().running == 0


def complete(served: Served, prompt: list[int], **settings: Any) -> dict[str, Any]:
    body = {"model": "demo", "prompt": prompt, "max_tokens": 40, "temperature": 0, "ignore_eos": True, **settings}
    with httpx.Client(timeout=60) as client:
        answer = client.post(f"{served.rig.base_url}/v1/completions", json=body).raise_for_status()
    return dict(answer.json())


def test_log_probabilities_of_right_guesses_are_transformers_own(served: Served) -> None:
    import torch

    prompt = words(20, seed=3)
    before = served.rig.backend().drafts_accepted
    [choice] = complete(served, prompt, logprobs=1)["choices"]
    assert served.rig.backend().drafts_accepted > before
    generated = served.reference.generate(prompt, 40)
    logits = served.reference.logits([*prompt, *generated])[len(prompt) - 1 : -1]
    expected = torch.log_softmax(logits, dim=-1)[range(len(generated)), generated]
    assert choice["logprobs"]["token_logprobs"][: len(generated)] == pytest.approx(expected.tolist(), abs=1e-3)
    assert len(choice["logprobs"]["token_logprobs"]) == 40


def test_a_stop_string_among_right_guesses_ends_the_answer_there(served: Served) -> None:
    prompt = words(20, seed=3)
    whole = complete(served, prompt)
    text = str(whole["choices"][0]["text"])
    for begin in range(len(text) // 2, len(text) - 3):
        stop = text[begin : begin + 3]
        cut = complete(served, prompt, stop=[stop])
        assert cut["choices"][0]["text"] == text[: text.index(stop)]
        assert cut["choices"][0]["finish_reason"] == "stop"
        assert cut["usage"]["completion_tokens"] < whole["usage"]["completion_tokens"] == 40
        if begin > len(text) // 2 + 4:
            break
