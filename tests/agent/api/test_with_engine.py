"""The gateway with real engine ranks, the last stage tensor-parallel, and transformers as witness."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ollama
import openai
import pytest

from agent.planner.plan import Serving
from tests.agent.api.engine import Served, serve_model
from tests.agent.api.rig import wait_until
from tests.agent.engine.models import stage
from tests.agent.serving.tokenizer import small_tokenizer

SERVING = Serving(context=256, batch=8, dtype="float32", prefill_chunk=32, queue=64)
NUM_TOKENS = 8
PROMPTS = [f"{index}: " + "def wrap(text): return text.strip() " * (1 + index % 5) for index in range(32)]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """Three rank processes behind a gateway: layers 0 to 2 on one, 2 to 4 on two in unequal shares."""
    with serve_model(lambda spec: (stage(spec, (0, 2)), stage(spec, (2, 4), (1, 3))), serving=SERVING) as served:
        yield served


def ask(served: Served, prompt: str) -> ollama.GenerateResponse:
    with ollama.Client(served.rig.base_url) as client:
        options = {"temperature": 0, "repeat_penalty": 1.0, "num_predict": NUM_TOKENS}
        answer: ollama.GenerateResponse = client.generate("demo", prompt, raw=True, options=options)
        return answer


def test_thirty_two_clients_get_what_each_gets_alone_and_what_transformers_says(served: Served) -> None:
    before = served.rig.backend()
    with ThreadPoolExecutor(32) as clients:
        together = list(clients.map(lambda prompt: ask(served, prompt), PROMPTS))
    alone = [ask(served, prompt) for prompt in PROMPTS]
    assert [answer.response for answer in together] == [answer.response for answer in alone]
    assert [answer.context for answer in together] == [answer.context for answer in alone]
    for prompt, answer in zip(PROMPTS, together, strict=True):
        tokens = [int(token) for token in small_tokenizer().encode(prompt).ids]
        assert answer.context is not None
        assert list(answer.context[len(tokens) :]) == served.reference.generate(tokens, NUM_TOKENS)
    status = served.rig.backend()
    answers = together + alone
    assert status.finished - before.finished == 64
    assert status.prompt_tokens - before.prompt_tokens == sum(answer.prompt_eval_count or 0 for answer in answers)
    assert status.generated_tokens - before.generated_tokens == sum(answer.eval_count or 0 for answer in answers)


def test_a_seed_gives_the_same_answer_in_any_company(served: Served) -> None:
    def sample(seed: int) -> str:
        with openai.OpenAI(base_url=f"{served.rig.base_url}/v1", api_key="unused") as client:
            answer = client.completions.create(model="demo", prompt="Once", seed=seed, max_tokens=NUM_TOKENS)
        return answer.choices[0].text

    with ThreadPoolExecutor(12) as clients:
        answers = list(clients.map(sample, [1, 2, 3, 4] * 3))
    assert answers[:4] == answers[4:8] == answers[8:] == [sample(seed) for seed in (1, 2, 3, 4)]
    assert len(set(answers)) == 4


def test_an_answer_that_ignores_the_end_has_the_length_that_was_asked_for(served: Served) -> None:
    settings: Any = {"model": "demo", "prompt": "Once", "max_tokens": 100, "temperature": 2}
    with openai.OpenAI(base_url=f"{served.rig.base_url}/v1", api_key="unused") as client:
        ended = [client.completions.create(**settings, seed=seed).choices[0].finish_reason for seed in range(8)]
        seed = ended.index("stop")
        answer = client.completions.create(**settings, seed=seed, extra_body={"ignore_eos": True})
    assert answer.usage is not None
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (100, "length")
    with ollama.Client(served.rig.base_url) as client:
        options: Any = {"temperature": 2, "seed": seed, "num_predict": 100, "ignore_eos": True}
        assert client.generate("demo", "Once", raw=True, options=options).eval_count == 100


def test_log_probabilities_are_transformers_own(served: Served) -> None:
    import torch

    tokens = [int(token) for token in small_tokenizer().encode("Once").ids]
    with openai.OpenAI(base_url=f"{served.rig.base_url}/v1", api_key="unused") as client:
        answer = client.completions.create(model="demo", prompt="Once", temperature=0, max_tokens=1, logprobs=3)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    expected = torch.log_softmax(served.reference.logits(tokens)[-1], dim=-1).topk(3)
    assert logprobs.token_logprobs == pytest.approx([float(expected.values[0])], abs=1e-4)
    [top] = logprobs.top_logprobs or []
    assert sorted(top.values(), reverse=True) == pytest.approx(expected.values.tolist(), abs=1e-4)


def test_a_client_that_leaves_frees_its_slot(served: Served) -> None:
    before = served.rig.backend().cancelled
    with ollama.Client(served.rig.base_url) as client:
        stream = client.generate("demo", "Once", options={"temperature": 0, "num_predict": 200}, stream=True)
        next(iter(stream))
        assert served.rig.backend().running == 1
        stream.close()
    wait_until(lambda: served.rig.backend().running == 0, "the slot is free")
    assert served.rig.backend().cancelled == before + 1


def test_a_killed_rank_ends_both_protocols_streams_with_an_error(served: Served) -> None:
    """The last test of this file: the ranks are gone after it."""
    started = {"ollama": queue.Queue[str](), "openai": queue.Queue[str]()}

    def read_ollama() -> str:
        with ollama.Client(served.rig.base_url) as client:
            options = {"temperature": 0, "num_predict": 240}
            try:
                for part in client.generate("demo", "x", raw=True, options=options, stream=True):
                    started["ollama"].put(part.response or "")
            except ollama.ResponseError as error:
                return error.error
        return "the stream ended as if all were well"

    def read_openai() -> str:
        settings: Any = {"model": "demo", "prompt": "x", "max_tokens": 240, "seed": 1, "stream": True}
        with (
            openai.OpenAI(base_url=f"{served.rig.base_url}/v1", api_key="unused", max_retries=0) as client,
            client.completions.create(**settings) as stream,
        ):
            try:
                for chunk in stream:
                    started["openai"].put(chunk.choices[0].text)
            except openai.APIError as error:
                return error.message
        return "the stream ended as if all were well"

    with ThreadPoolExecutor(2) as clients:
        streams = [clients.submit(read_ollama), clients.submit(read_openai)]
        wait_until(
            lambda: served.rig.backend().running == 2 and all(each.qsize() > 2 for each in started.values()),
            "both stream",
        )
        served.ranks[2].kill()
        messages = [stream.result(timeout=10) for stream in streams]
    for message in messages:
        assert "[E8" in message, message
    status = served.rig.backend()
    assert status.state == "broken"
    assert status.error is not None
    assert "r0s1t1" in status.error.message
