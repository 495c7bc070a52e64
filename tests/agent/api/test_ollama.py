"""Ollama's API, as its own Python client speaks it, against a gateway process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import ollama
import pytest

from tests.agent.api.rig import MODEL, SERVING, Rig, greedy, text_of
from tests.agent.serving.tokenizer import BOS, small_tokenizer

GREEDY = {"temperature": 0, "num_predict": 12}
CHAT = [{"role": "user", "content": "Say something."}]


@pytest.fixture
def client(serving_rig: Rig) -> Iterator[ollama.Client]:
    with ollama.Client(serving_rig.base_url) as client:
        yield client


@pytest.fixture
def http(serving_rig: Rig) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=serving_rig.base_url) as http:
        yield http


def prompt_of(messages: list[dict[str, str]]) -> list[int]:
    """The test model's chat template, written out."""
    turns = "".join(f"<|{each['role']}|>\n{each['content'].strip()}<|end|>\n" for each in messages)
    ids = small_tokenizer().encode(f"<|begin|>{turns}<|assistant|>\n", add_special_tokens=False).ids
    return [int(token) for token in ids]


def test_a_raw_prompt_is_continued_by_the_model_alone(client: ollama.Client) -> None:
    prompt = [BOS, *small_tokenizer().encode("Once upon", add_special_tokens=False).ids]
    expected = greedy(prompt, 12)
    answer = client.generate("demo", "Once upon", raw=True, options=GREEDY)
    assert answer.response == text_of(expected)
    assert answer.context == [*prompt, *expected]
    assert (answer.done, answer.done_reason) == (True, "length")
    assert (answer.prompt_eval_count, answer.eval_count) == (len(prompt), 12)
    assert answer.total_duration and answer.eval_duration and answer.prompt_eval_duration  # noqa: PT018
    assert answer.load_duration is not None
    parts = answer.load_duration + answer.prompt_eval_duration + answer.eval_duration
    assert abs(parts - answer.total_duration) < 10


def test_a_stream_says_the_same_in_pieces(client: ollama.Client) -> None:
    whole = client.generate("demo", "Tell", options=GREEDY)
    parts = list(client.generate("demo", "Tell", options=GREEDY, stream=True))
    assert "".join(part.response or "" for part in parts) == whole.response
    assert len(parts) > 5
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].context == whole.context
    assert all(part.model == "demo" and part.created_at for part in parts)


def test_a_chat_goes_through_the_models_template(client: ollama.Client) -> None:
    messages = [{"role": "system", "content": "Be kind."}, *CHAT]
    expected = greedy(prompt_of(messages), 12)
    answer = client.chat("demo:latest", messages=messages, options=GREEDY)
    assert answer.message.role == "assistant"
    assert answer.message.content == text_of(expected)
    streamed = list(client.chat("demo", messages=messages, options=GREEDY, stream=True))
    assert "".join(part.message.content or "" for part in streamed) == answer.message.content
    assert streamed[-1].done_reason == "length"
    assert streamed[-1].prompt_eval_count == len(prompt_of(messages))


def test_a_prompt_with_a_system_text_is_a_chat_of_two(client: ollama.Client) -> None:
    messages = [{"role": "system", "content": "Be kind."}, *CHAT]
    answer = client.generate("demo", CHAT[0]["content"], system="Be kind.", options=GREEDY)
    assert answer.response == text_of(greedy(prompt_of(messages), 12))


def test_the_context_of_an_answer_continues_it(client: ollama.Client) -> None:
    first = client.generate("demo", "One", raw=True, options=GREEDY)
    assert first.context is not None
    more = client.generate("demo", "Two", raw=True, context=first.context, options=GREEDY)
    prompt = [*first.context, *small_tokenizer().encode("Two", add_special_tokens=False).ids]
    assert more.prompt_eval_count == len(prompt)
    assert more.response == text_of(greedy(prompt, 12))


def test_a_stop_string_ends_the_answer_before_it(client: ollama.Client) -> None:
    whole = client.generate("demo", "Stop here", options=GREEDY | {"num_predict": 40}).response or ""
    stop = whole[10:13]
    before = whole[: whole.index(stop)]
    answer = client.generate("demo", "Stop here", options={**GREEDY, "num_predict": 40, "stop": [stop]})
    assert answer.response == before
    assert answer.done_reason == "stop"


def test_sampling_is_random_without_a_seed_and_repeatable_with_one(client: ollama.Client) -> None:
    def answer(**options: Any) -> str:
        return client.generate("demo", "Dice", options={"num_predict": 12, **options}).response or ""

    assert answer(seed=7) == answer(seed=7)
    assert len({answer() for _ in range(3)}) == 3
    assert answer(seed=7) != answer(seed=8)


def test_the_defaults_are_ollamas(serving_rig: Rig, client: ollama.Client) -> None:
    client.generate("demo", "Defaults", options={"num_predict": 1})
    client.generate("demo", "Options", options={"num_predict": 1, "temperature": 0.1, "top_k": 3, "min_p": 0.2})
    names = ("temperature", "top_k", "top_p", "repeat_penalty", "min_p")
    told = [tuple(params[name] for name in names) for params in serving_rig.sent_params()]
    assert told[-2:] == [(0.8, 40, 0.9, 1.1, 0.0), (0.1, 3, 0.9, 1.1, 0.2)]


def test_an_answer_ends_at_the_context(client: ollama.Client) -> None:
    answer = client.generate("demo", "Long", options={"temperature": 0})
    assert answer.done_reason == "length"
    assert (answer.prompt_eval_count or 0) + (answer.eval_count or 0) == SERVING.context
    short = client.generate("demo", "Long", options={"temperature": 0, "num_ctx": 32})
    assert (short.prompt_eval_count or 0) + (short.eval_count or 0) == 32


def test_a_chat_that_outgrew_the_context_loses_its_oldest_words(client: ollama.Client) -> None:
    system = {"role": "system", "content": "Be kind."}
    turns = [{"role": "user", "content": f"Number {index}"} for index in range(60)]
    kept = [system, *turns]
    while len(prompt_of(kept)) >= SERVING.context:
        del kept[1]
    answer = client.chat("demo", messages=[system, *turns], options=GREEDY | {"num_predict": 1})
    assert answer.prompt_eval_count == len(prompt_of(kept))


def test_log_probabilities_come_with_the_tokens(client: ollama.Client) -> None:
    answer = client.generate("demo", "Odds", options=GREEDY, logprobs=True, top_logprobs=2)
    assert answer.logprobs is not None
    assert len(answer.logprobs) == 12
    assert all(each.logprob == -0.25 and len(each.top_logprobs or ()) == 2 for each in answer.logprobs)


def test_an_empty_prompt_loads(client: ollama.Client, http: httpx.Client) -> None:
    answer = client.generate("demo")
    assert (answer.done, answer.done_reason, answer.response) == (True, "load", "")
    assert client.chat("demo", messages=[]).done_reason == "load"
    unload = http.post("/api/generate", json={"model": "demo", "prompt": "", "keep_alive": 0}).json()
    assert unload["done_reason"] == "unload"


def test_models_are_listed_as_clients_expect(client: ollama.Client, http: httpx.Client) -> None:
    [model] = client.list().models
    assert model.model == "demo:latest"
    assert model.digest == MODEL.digest
    assert model.size == MODEL.num_parameters * 4
    assert model.details is not None
    assert (model.details.family, model.details.parameter_size) == ("llama", "1.2M")
    [running] = client.ps().models
    assert running.name == "demo:latest"
    assert running.context_length == SERVING.context
    assert running.expires_at is not None
    assert running.expires_at > datetime.now(UTC)
    assert http.get("/api/tags").json()["models"][0]["name"] == "demo:latest"


def test_show_tells_the_model_and_its_template(client: ollama.Client) -> None:
    shown = client.show("demo")
    assert shown.modelinfo is not None
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.modelinfo["llama.block_count"] == MODEL.num_layers
    assert "<|assistant|>" in (shown.template or "")
    assert shown.capabilities == ["completion"]


def test_the_root_and_the_version_answer_like_ollama(http: httpx.Client) -> None:
    assert http.get("/").text == "Ollama is running"
    assert http.head("/").status_code == 200
    version = http.get("/api/version").json()["version"]
    assert all(part.isdigit() for part in version.split("."))
    assert http.head("/api/version").status_code == 200
    assert http.head("/api/tags").status_code == 200


def test_streams_are_newline_delimited_json_by_default(http: httpx.Client) -> None:
    response = http.post("/api/generate", json={"model": "demo", "prompt": "x", "options": GREEDY})
    assert response.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert lines[-1]["done"] is True
    assert response.text.endswith("\n")


def test_an_unknown_model_is_a_404_that_names_those_served(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="model 'nope' not found, served here: demo") as missing:
        client.generate("nope", "x")
    assert missing.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="not found"):
        list(client.chat("nope", messages=CHAT, stream=True))
    with pytest.raises(ollama.ResponseError):
        client.show("nope")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"temperature": "hot"}, "`options.temperature` must be a number of at least 0, got 'hot'"),
        ({"temperature": -1}, "`options.temperature` must be"),
        ({"top_p": 1.5}, "`options.top_p` must be a number from 0 to 1, got 1.5"),
        ({"num_predict": 1.5}, "`options.num_predict` must be a whole number"),
        ({"stop": [""]}, "`options.stop` must be"),
        ({"seed": "x"}, "`options.seed` must be"),
        ([1], "`options` must be an object"),
    ],
)
def test_a_bad_option_is_named_with_what_is_allowed(http: httpx.Client, options: Any, complaint: str) -> None:
    response = http.post("/api/generate", json={"model": "demo", "prompt": "x", "options": options})
    assert response.status_code == 400
    assert complaint in response.json()["error"]


@pytest.mark.parametrize(
    ("path", "body", "complaint"),
    [
        ("/api/generate", b"{", "not JSON"),
        ("/api/generate", b"", "missing request body"),
        ("/api/generate", b"[1]", "must be a JSON object"),
        ("/api/generate", b"{}", "`model` is required"),
        ("/api/generate", b'{"model":"demo","prompt":5}', "`prompt` must be a string, got 5"),
        ("/api/generate", b'{"model":"demo","prompt":"x","context":[99999]}', "`context` must be a list of token"),
        (
            "/api/generate",
            b'{"model":"demo","prompt":"x","format":"xml"}',
            'expected "json" or a valid JSON Schema',
        ),
        (
            "/api/generate",
            b'{"model":"demo","prompt":"x","format":{"type":"strin"}}',
            "`format` cannot be compiled",
        ),
        ("/api/generate", b'{"model":"demo","prompt":"x","images":["aa"]}', "`images` is not supported"),
        ("/api/generate", b'{"model":"demo","prompt":"x","keep_alive":[]}', "`keep_alive` must be"),
        ("/api/generate", b'{"model":"demo","prompt":"x","think":true}', '"demo" does not support thinking'),
        ("/api/generate", b'{"model":"demo","prompt":"x","think":"often"}', "`think` must be true, false"),
        ("/api/generate", b'{"model":"demo","a":' + b"[" * 100_000, "nested too deeply"),
        (
            "/api/chat",
            b'{"model":"demo","messages":[{"role":"user"}],"tools":[{"function":{"name":"f"}}]}',
            "demo does not support tools",
        ),
        (
            "/api/chat",
            b'{"model":"demo","messages":[{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":7}}]}]}',
            "`messages[0].tool_calls[0].function.arguments` must be an object",
        ),
        ("/api/chat", b'{"model":"demo","messages":[{"role":"judge"}]}', "`messages[0].role` must be one of"),
        ("/api/chat", b'{"model":"demo","messages":"hi"}', "`messages` must be a list of objects"),
    ],
)
def test_a_bad_body_is_a_400_that_says_what_is_wrong(
    http: httpx.Client, path: str, body: bytes, complaint: str
) -> None:
    response = http.post(path, content=body)
    assert response.status_code == 400
    assert complaint in response.json()["error"]


def test_a_prompt_beyond_the_context_is_refused_with_both_numbers(http: httpx.Client) -> None:
    body = {"model": "demo", "prompt": "word " * 600}
    response = http.post("/api/generate", json=body)
    assert response.status_code == 400
    assert f"context of {SERVING.context}" in response.json()["error"]


@pytest.mark.parametrize("verb", ["pull", "push", "create", "copy"])
def test_what_we_do_not_offer_is_a_501(http: httpx.Client, verb: str) -> None:
    response = http.post(f"/api/{verb}", json={"model": "demo"})
    assert response.status_code == 501
    assert "odctl" in response.json()["error"]


def test_the_client_raises_for_what_we_do_not_offer(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError) as refused:
        client.delete("demo")
    assert refused.value.status_code == 501


def test_unknown_paths_and_methods_are_json_errors(http: httpx.Client) -> None:
    assert http.get("/api/nothing").json() == {"error": "/api/nothing does not exist here"}
    refused = http.get("/api/chat")
    assert (refused.status_code, refused.json()) == (405, {"error": "GET is not allowed here"})
