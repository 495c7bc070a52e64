"""OpenAI's API, as its own Python client speaks it, against a gateway process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.agent.api.rig import SERVING, Rig, greedy, text_of
from tests.agent.serving.tokenizer import BOS, small_tokenizer

CHAT: Any = [{"role": "user", "content": "Say something."}]


@pytest.fixture
def client(serving_rig: Rig) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{serving_rig.base_url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture
def http(serving_rig: Rig) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=serving_rig.base_url) as http:
        yield http


def json_schema(schema: Any, **more: Any) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, **more}}


def chat_prompt(content: str) -> list[int]:
    text = f"<|begin|><|user|>\n{content}<|end|>\n<|assistant|>\n"
    return [int(token) for token in small_tokenizer().encode(text, add_special_tokens=False).ids]


def test_a_chat_completion_is_the_models_own(client: openai.OpenAI) -> None:
    prompt = chat_prompt("Say something.")
    answer = client.chat.completions.create(model="demo", messages=CHAT, temperature=0, max_tokens=12)
    [choice] = answer.choices
    assert choice.message.content == text_of(greedy(prompt, 12))
    assert (choice.index, choice.finish_reason, choice.message.role) == (0, "length", "assistant")
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.system_fingerprint == "fp_plan1"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt), 12)
    assert answer.usage.total_tokens == len(prompt) + 12


def test_a_chat_stream_has_a_role_then_text_then_an_end_then_usage(client: openai.OpenAI) -> None:
    settings: Any = {"model": "demo", "messages": CHAT, "temperature": 0, "max_completion_tokens": 12}
    whole = client.chat.completions.create(**settings)
    with client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    assert len({(chunk.id, chunk.created, chunk.object) for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_completion_continues_text_or_tokens(client: openai.OpenAI) -> None:
    prompt = [BOS, *small_tokenizer().encode("Once upon", add_special_tokens=False).ids]
    by_text = client.completions.create(model="demo", prompt="Once upon", temperature=0, max_tokens=12)
    by_tokens = client.completions.create(model="demo", prompt=prompt, temperature=0, max_tokens=12)
    one_of_one = client.completions.create(model="demo", prompt=["Once upon"], temperature=0, max_tokens=12)
    expected = text_of(greedy(prompt, 12))
    assert [each.choices[0].text for each in (by_text, by_tokens, one_of_one)] == [expected] * 3
    with client.completions.create(
        model="demo", prompt="Once upon", temperature=0, max_tokens=12, stream=True
    ) as stream:
        assert "".join(chunk.choices[0].text for chunk in stream) == expected


def test_a_completion_has_sixteen_tokens_by_default(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="demo", prompt="x")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


def test_stop_strings_end_it(client: openai.OpenAI) -> None:
    settings: Any = {"model": "demo", "prompt": "Stop here", "temperature": 0, "max_tokens": 40}
    whole = client.completions.create(**settings).choices[0].text
    stop = whole[10:13]
    answer = client.completions.create(**settings, stop=stop).choices[0]
    assert answer.text == whole[: whole.index(stop)]
    assert answer.finish_reason == "stop"


def test_seeds_repeat_and_their_absence_does_not(client: openai.OpenAI) -> None:
    def answer(**options: Any) -> str | None:
        settings: Any = {"model": "demo", "messages": CHAT, "max_tokens": 12, **options}
        content: str | None = client.chat.completions.create(**settings).choices[0].message.content
        return content

    assert answer(seed=5) == answer(seed=5)
    assert answer(seed=5) != answer(seed=6)
    assert answer() != answer()


def test_the_defaults_are_openais(serving_rig: Rig, client: openai.OpenAI) -> None:
    client.chat.completions.create(model="demo", messages=CHAT, max_tokens=1)
    params = serving_rig.sent_params()[-1]
    assert (params["temperature"], params["top_p"], params["top_k"]) == (1.0, 1.0, 0)
    assert (params["repeat_penalty"], params["logprobs"]) == (1.0, -1)
    # Presence and frequency are of generated tokens alone.
    assert params["penalties_from"] == len(chat_prompt("Say something."))


def test_chat_log_probabilities_name_every_token_and_its_bytes(client: openai.OpenAI) -> None:
    prompt = chat_prompt("Say something.")
    answer = client.chat.completions.create(
        model="demo", messages=CHAT, temperature=0, max_tokens=6, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    expected = [small_tokenizer().decode([token]) for token in greedy(prompt, 6)]
    assert [entry.token for entry in logprobs.content] == expected
    for entry in logprobs.content:
        assert [top.logprob for top in entry.top_logprobs] == [-0.25, -2.0, -3.0]
        assert entry.bytes is not None
        assert bytes(entry.bytes).decode(errors="replace") == entry.token


def test_completion_log_probabilities_are_in_the_older_form(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="demo", prompt="Odds", temperature=0, max_tokens=5, logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert len(logprobs.tokens) == 5
    assert logprobs.token_logprobs == [-0.25] * 5
    assert all(len(top) == 2 for top in logprobs.top_logprobs or ())
    assert (logprobs.text_offset or ())[:2] == [0, len(logprobs.tokens[0])]


def test_content_may_come_in_text_parts(client: openai.OpenAI) -> None:
    parts: Any = [{"type": "text", "text": "Say "}, {"type": "text", "text": "something."}]
    settings: Any = {"model": "demo", "temperature": 0, "max_tokens": 8}
    in_parts = client.chat.completions.create(**settings, messages=[{"role": "user", "content": parts}])
    whole = client.chat.completions.create(**settings, messages=CHAT)
    assert in_parts.choices[0].message.content == whole.choices[0].message.content


def test_models_are_listed_by_deployment_name(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").owned_by == "odctl"
    with pytest.raises(openai.NotFoundError, match="model 'nope' not found"):
        client.models.retrieve("nope")


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nope", messages=CHAT)
    assert missing.value.code == "model_not_found"
    assert missing.value.param == "model"


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"n": 1000}, "n"),
        ({"priority": 11}, "priority"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"presence_penalty": 5}, "presence_penalty"),
        ({"stop": 7}, "stop"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": json_schema({"type": "object", "properties": {"a": {"type": "strin"}}})},
            "response_format.json_schema.schema.properties.a",
        ),
        (
            {"response_format": json_schema({"type": "array", "uniqueItems": True}, strict=True)},
            "response_format.json_schema.schema",
        ),
        ({"tools": [{"type": "function"}]}, "tools[0].function.name"),
        ({"tools": [{"type": "web"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "judge", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
    ],
)
def test_a_bad_field_is_a_bad_request_that_names_it(
    client: openai.OpenAI, changes: dict[str, Any], param: str
) -> None:
    body = {"model": "demo", "messages": CHAT, **changes}
    with pytest.raises(openai.BadRequestError) as refused:
        client.post("/chat/completions", body=body, cast_to=object)
    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"
    assert param.partition("[")[0].partition(".")[0] in refused.value.message


def test_a_prompt_beyond_the_context_is_refused_with_both_numbers(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=f"context of {SERVING.context}") as refused:
        client.completions.create(model="demo", prompt="word " * 600)
    assert refused.value.code == "context_length_exceeded"


def test_what_we_do_not_offer_is_a_501_in_openais_form(client: openai.OpenAI, http: httpx.Client) -> None:
    with pytest.raises(openai.InternalServerError) as refused:
        client.moderations.create(input="x")
    assert refused.value.status_code == 501
    assert http.get("/v1/nothing").json()["error"]["type"] == "not_found_error"


def test_streams_are_server_sent_events_that_end_in_done(http: httpx.Client) -> None:
    body = {"model": "demo", "messages": CHAT, "stream": True, "max_tokens": 3}
    response = http.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-request-id"].startswith("req_")
    events = response.text.split("\n\n")
    assert all(event.startswith("data: ") for event in events[:-1])
    assert events[-2:] == ["data: [DONE]", ""]
