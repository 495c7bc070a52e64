"""Structured output, tool calls and choices with real ranks: a model of random weights never leaves the form."""

from __future__ import annotations

import json
from typing import Any

import httpx
import jsonschema
import ollama
import openai
import pydantic
import pytest
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.agent.api.engine import Served
from tests.agent.serving.test_grammar import PERSON
from tests.agent.serving.test_tools import WEATHER

CHAT: Any = [{"role": "user", "content": "Who?"}]
CLOCK: Any = {
    "type": "function",
    "function": {"name": "get_time", "parameters": {"type": "object", "additionalProperties": False}},
}


def test_an_answer_to_a_schema_is_a_value_of_it_whatever_the_seed(open_ai: openai.OpenAI) -> None:
    answer = open_ai.chat.completions.create(
        model="demo",
        messages=CHAT,
        n=20,
        seed=1,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "person", "schema": PERSON, "strict": True},
        },
    )
    assert [choice.finish_reason for choice in answer.choices] == ["stop"] * 20
    contents = [choice.message.content or "" for choice in answer.choices]
    for content in contents:
        jsonschema.validate(json.loads(content), PERSON)
    assert len(set(contents)) == 20


def test_ollamas_format_takes_a_schema_and_streams_it(oll: ollama.Client) -> None:
    options = {"seed": 3, "temperature": 1.0}
    whole = oll.chat("demo", messages=CHAT, format=PERSON, options=options)
    jsonschema.validate(json.loads(whole.message.content or ""), PERSON)
    assert whole.done_reason == "stop"
    parts = list(oll.chat("demo", messages=CHAT, format=PERSON, options=options, stream=True))
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    raw = oll.generate("demo", "Who?", raw=True, format=PERSON, options=options)
    jsonschema.validate(json.loads(raw.response or ""), PERSON)


def test_json_mode_is_an_object_or_its_beginning(oll: ollama.Client, open_ai: openai.OpenAI) -> None:
    for seed in range(2):
        answer = oll.generate("demo", "x", format="json", options={"seed": seed, "num_predict": 40})
        assert (answer.response or "").startswith("{")
        if answer.done_reason == "stop":
            assert isinstance(json.loads(answer.response or ""), dict)
    cut = open_ai.completions.create(
        model="demo", prompt="x", max_tokens=1, extra_body={"response_format": {"type": "json_object"}}
    )
    assert cut.choices[0].text.startswith("{")
    assert cut.choices[0].finish_reason == "length"


def test_thoughts_come_before_a_constrained_answer_only_when_asked_for(oll: ollama.Client) -> None:
    schema = {"enum": [1, 2]}
    answer = oll.chat("demo", messages=CHAT, format=schema, options={"seed": 1})
    assert answer.message.thinking is None
    assert json.loads(answer.message.content or "") in (1, 2)
    thought = oll.chat("demo", messages=CHAT, think=True, options={"seed": 1, "num_predict": 40}, format=schema)
    assert thought.message.thinking, "the grammar makes it think first"
    assert thought.message.content == ""


def test_a_required_call_is_made_and_its_arguments_fit(open_ai: openai.OpenAI) -> None:
    settings: Any = {
        "model": "demo",
        "messages": CHAT,
        "tools": [WEATHER, CLOCK],
        "seed": 5,
        "parallel_tool_calls": False,
    }
    answer = open_ai.chat.completions.create(**settings, tool_choice="required", n=3)
    for choice in answer.choices:
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        [call] = choice.message.tool_calls or []
        assert call.id.startswith("call_")
        parameters = {"get_weather": WEATHER, "get_time": CLOCK}[call.function.name]["function"]["parameters"]
        jsonschema.validate(json.loads(call.function.arguments), parameters)
    named: Any = {"type": "function", "function": {"name": "get_weather"}}
    [choice] = open_ai.chat.completions.create(**settings, tool_choice=named).choices
    assert [call.function.name for call in choice.message.tool_calls or []] == ["get_weather"]


def test_a_streamed_call_comes_in_openais_deltas(open_ai: openai.OpenAI) -> None:
    settings: Any = {
        "model": "demo",
        "messages": CHAT,
        "tools": [WEATHER],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "seed": 5,
    }
    [whole] = open_ai.chat.completions.create(**settings).choices
    [expected] = whole.message.tool_calls or []
    with open_ai.chat.completions.create(**settings, stream=True) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ""
    deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert [delta.index for delta in deltas] == [0, 0]
    assert deltas[0].id is not None
    assert [delta.function.name for delta in deltas if delta.function] == ["get_weather", None]
    arguments = "".join(delta.function.arguments or "" for delta in deltas if delta.function)
    assert arguments == expected.function.arguments
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


class Person(pydantic.BaseModel):
    """What openai's client makes a strict schema of, and reads the answer back into."""

    name: str = pydantic.Field(max_length=8)
    age: int = pydantic.Field(ge=0, le=99)


def test_openais_client_parses_answers_and_calls_into_its_own_types(open_ai: openai.OpenAI) -> None:
    answer = open_ai.chat.completions.parse(model="demo", messages=CHAT, response_format=Person, seed=1)
    assert isinstance(answer.choices[0].message.parsed, Person)
    called = open_ai.chat.completions.parse(
        model="demo",
        messages=CHAT,
        tools=[openai.pydantic_function_tool(Person)],
        tool_choice="required",
        parallel_tool_calls=False,
        seed=1,
    )
    [call] = called.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Person)
    # A strict tool that may be called or not: here the model talks, under a grammar all the same.
    talked = open_ai.chat.completions.parse(
        model="demo",
        messages=CHAT,
        tools=[openai.pydantic_function_tool(Person)],
        max_tokens=4000,
        seed=1,
        stop="a",
    )
    assert talked.choices[0].finish_reason in ("stop", "tool_calls")


def test_bodies_are_openais_types_to_the_letter(served: Served) -> None:
    """The client forgives much; its types, held strictly, do not."""
    settings = {"model": "demo", "seed": 1, "max_tokens": 4, "n": 2}
    chat = {**settings, "messages": CHAT, "logprobs": True, "top_logprobs": 2}
    with httpx.Client(base_url=served.rig.base_url, timeout=120) as http:
        whole = http.post("/v1/chat/completions", json=chat).json()
        parsed = ChatCompletion.model_validate(whole, strict=True)
        assert [len(choice.logprobs.content or []) for choice in parsed.choices if choice.logprobs] == [4, 4]
        for body in (chat, {**chat, "tools": [WEATHER], "tool_choice": "required", "n": 1, "max_tokens": 400}):
            lines = http.post("/v1/chat/completions", json={**body, "stream": True}).text.splitlines()
            chunks = [
                ChatCompletionChunk.model_validate_json(line.removeprefix("data: "), strict=True)
                for line in lines
                if line.startswith("data: {")
            ]
            entries = [
                entry
                for chunk in chunks
                for choice in chunk.choices
                if choice.index == 0 and choice.logprobs is not None
                for entry in choice.logprobs.content or []
            ]
            assert len(entries) >= 4, "every token has its log probability, held back or not"
        completion = http.post("/v1/completions", json={**settings, "prompt": "x", "logprobs": 2}).json()
        assert len(Completion.model_validate(completion, strict=True).choices) == 2
        embedded = http.post("/v1/embeddings", json={"model": "demo", "input": "x"}).json()
        CreateEmbeddingResponse.model_validate(embedded, strict=True)


def test_a_call_and_its_result_go_back_into_the_prompt(served: Served, open_ai: openai.OpenAI) -> None:
    """Both protocols' histories of one conversation are one prompt."""
    call = {"name": "get_weather", "arguments": {"city": "Oslo"}}
    in_ollamas: list[Any] = [
        *CHAT,
        {"role": "assistant", "content": "", "tool_calls": [{"function": call}]},
        {"role": "tool", "content": "rain", "tool_name": "get_weather"},
    ]
    in_openais: list[Any] = [
        *CHAT,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "a", "type": "function", "function": {**call, "arguments": '{"city": "Oslo"}'}},
            ],
        },
        {"role": "tool", "tool_call_id": "a", "content": "rain"},
    ]
    # Not by Ollama's client, which leaves out of a tool what it does not know.
    body = {
        "model": "demo",
        "messages": in_ollamas,
        "tools": [WEATHER],
        "stream": False,
        "options": {"temperature": 0, "repeat_penalty": 1.0, "num_predict": 8},
    }
    ours = httpx.post(f"{served.rig.base_url}/api/chat", json=body, timeout=120).json()
    theirs = open_ai.chat.completions.create(
        model="demo", messages=in_openais, tools=[WEATHER], temperature=0, max_tokens=8
    )
    assert theirs.usage is not None
    assert ours["prompt_eval_count"] == theirs.usage.prompt_tokens
    assert ours["message"]["content"] == theirs.choices[0].message.content


def test_tools_on_offer_leave_a_model_free_to_talk(oll: ollama.Client, open_ai: openai.OpenAI) -> None:
    answer = oll.chat("demo", messages=CHAT, tools=[WEATHER], options={"seed": 1, "num_predict": 12})
    assert answer.message.content
    assert not answer.message.tool_calls
    without = open_ai.chat.completions.create(
        model="demo", messages=CHAT, tools=[WEATHER], tool_choice="none", max_tokens=1
    )
    with_none = open_ai.chat.completions.create(model="demo", messages=CHAT, max_tokens=1)
    assert without.usage is not None
    assert with_none.usage is not None
    assert without.usage.prompt_tokens == with_none.usage.prompt_tokens


def test_what_the_model_can_is_shown(oll: ollama.Client) -> None:
    assert oll.show("demo").capabilities == ["completion", "tools", "thinking"]


def test_a_tool_whose_schema_cannot_be_compiled_is_named(open_ai: openai.OpenAI) -> None:
    tool: Any = {
        "type": "function",
        "function": {"name": "f", "parameters": {"properties": {"a": {"type": "strin"}}}},
    }
    with pytest.raises(openai.BadRequestError) as refused:
        open_ai.chat.completions.create(model="demo", messages=CHAT, tools=[WEATHER, tool], tool_choice="required")
    assert refused.value.param == "tools[1].function.parameters.properties.a"


def test_several_choices_are_what_each_seed_gives_alone(open_ai: openai.OpenAI) -> None:
    settings: Any = {"model": "demo", "prompt": ["One", "Two"], "max_tokens": 6}
    answer = open_ai.completions.create(**settings, n=2, seed=7)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    alone = [
        open_ai.completions.create(model="demo", prompt=prompt, max_tokens=6, seed=seed).choices[0].text
        for prompt in settings["prompt"]
        for seed in (7, 8)
    ]
    assert [choice.text for choice in answer.choices] == alone
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 24
    with open_ai.completions.create(
        **settings, n=2, seed=7, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    streamed = [
        "".join(choice.text for chunk in chunks for choice in chunk.choices if choice.index == index)
        for index in range(4)
    ]
    assert streamed == alone
    assert chunks[-1].usage == answer.usage
