"""How answers with calls and thoughts are worded, read back by the types of each protocol's own client."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import ollama
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from agent.api import ollama_forms, openai_forms
from agent.api.answer import Outcome
from agent.api.deployment import Face
from agent.api.turn import Reading
from agent.serving.chat import ChatTemplate
from agent.serving.grammar import GrammarCompiler
from agent.serving.request import Finished, Request, TextEmitted, TokenDrawn
from agent.serving.tokens import ModelTokens
from agent.serving.tools import TOOL_FORMATS
from agent.wire.gateway import AttachBackend
from agent.wire.rank import SamplingParams
from tests.agent.api.rig import MODEL, SERVING
from tests.agent.serving.test_tools import template_text
from tests.agent.serving.tokenizer import EOS, VOCAB_SIZE, small_tokenizer

TOKENS = ModelTokens(small_tokenizer(), eos_token_ids=frozenset({EOS}))
READING = Reading(tools=TOOL_FORMATS[0], thinks=True)
TEXT = (
    "<think>\nRain?\n</think>\n\nI look.\n"
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Øslo"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
)
STOPPED = Finished(reason="stop")


@pytest.fixture(scope="module")
def face() -> Face:
    attach = AttachBackend(
        deployment="demo", generation=1, plan_hash="plan1", model=MODEL, model_dir="", replicas=(), serving=SERVING
    )
    chat = ChatTemplate(template_text("qwen3"), special_tokens={}, now=lambda: datetime(2026, 1, 1, tzinfo=UTC))
    grammars = GrammarCompiler(TOKENS, vocab_size=VOCAB_SIZE)
    return Face(attach=attach, tokens=TOKENS, chat=chat, grammars=grammars, since_s=0.0)


def finished_request() -> Request:
    request = Request(
        prompt=(5, 6), params=SamplingParams(), max_tokens=100, arrived_s=1.0, on_event=lambda _: None
    )
    request.generated = list(TOKENS.encode(TEXT, adds_special=False))
    request.started_s, request.first_token_s, request.last_token_s = 1.5, 2.0, 3.0
    return request


def pieces() -> list[TextEmitted]:
    """One for each token, as a stream brings them."""
    stream = TOKENS.stream(())
    return [
        TextEmitted(text=stream.push(token)[0], tokens=(TokenDrawn(token=token, logprobs=((token, -0.5),)),))
        for token in TOKENS.encode(TEXT, adds_special=False)
    ]


def outcome() -> Outcome:
    tokens = tuple(token for piece in pieces() for token in piece.tokens)
    return Outcome(request=finished_request(), text=TEXT, tokens=tokens, finished=STOPPED)


def ollama_form(face: Face) -> ollama_forms.ChatForm:
    return ollama_forms.ChatForm("demo", face, reading=READING, num_top=1)


def openai_form(face: Face) -> openai_forms.ChatForm:
    return openai_forms.ChatForm(face, reading=READING, num_top=1, includes_usage=True, num_choices=1)


def test_ollamas_whole_answer_has_thoughts_content_and_calls(face: Face) -> None:
    answer = ollama.ChatResponse.model_validate(ollama_form(face).whole([outcome()]))
    assert (answer.message.thinking, answer.message.content) == ("Rain?", "I look.")
    assert [(call.function.name, call.function.arguments) for call in answer.message.tool_calls or []] == [
        ("get_weather", {"city": "Øslo"}),
        ("get_time", {}),
    ]
    assert answer.done_reason == "stop"


def test_ollamas_stream_says_the_same_and_no_markup(face: Face) -> None:
    form = ollama_form(face)
    data = b"".join(form.piece(0, piece) for piece in pieces()) + form.end(0, finished_request(), STOPPED)
    parts = [ollama.ChatResponse.model_validate_json(line) for line in data.splitlines()]
    assert "".join(part.message.thinking or "" for part in parts) == "Rain?"
    assert "".join(part.message.content or "" for part in parts) == "I look."
    calls = [call.function.name for part in parts for call in part.message.tool_calls or []]
    assert calls == ["get_weather", "get_time"]
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    logprobs = [entry for part in parts for entry in part.logprobs or []]
    assert len(logprobs) == len(pieces()), "the log probabilities of markup are not lost"


def test_openais_whole_answer_has_thoughts_content_and_calls(face: Face) -> None:
    answer = ChatCompletion.model_validate(openai_form(face).whole([outcome()]), strict=True)
    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "I look."
    assert (choice.message.model_extra or {})["reasoning"] == "Rain?"
    assert [call.type for call in choice.message.tool_calls or []] == ["function", "function"]
    assert len({call.id for call in choice.message.tool_calls or []}) == 2


def test_openais_stream_says_the_same_in_deltas(face: Face) -> None:
    form = openai_form(face)
    data = form.begin() + b"".join(form.piece(0, piece) for piece in pieces())
    data += form.end(0, finished_request(), STOPPED) + form.close([finished_request()])
    events = [event.removeprefix("data: ") for event in data.decode().split("\n\n") if event]
    assert events.pop() == "[DONE]"
    chunks = [ChatCompletionChunk.model_validate_json(event, strict=True) for event in events]
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == "I look."
    assert "".join((delta.model_extra or {}).get("reasoning", "") for delta in deltas) == "Rain?"
    calls: dict[int, list[str]] = {}
    for call in (call for delta in deltas for call in delta.tool_calls or []):
        assert call.function is not None
        if call.function.name is not None:
            assert call.id is not None
            calls[call.index] = [call.function.name, ""]
        calls[call.index][1] += call.function.arguments or ""
    assert {index: (name, json.loads(arguments)) for index, (name, arguments) in calls.items()} == {
        0: ("get_weather", {"city": "Øslo"}),
        1: ("get_time", {}),
    }
    assert chunks[-2].choices[0].finish_reason == "tool_calls"
    assert chunks[-1].usage is not None


def test_a_cut_answer_says_length_whatever_was_called(face: Face) -> None:
    cut = Outcome(request=finished_request(), text=TEXT, tokens=(), finished=Finished(reason="length"))
    answer = ChatCompletion.model_validate(openai_form(face).whole([cut]), strict=True)
    assert answer.choices[0].finish_reason == "length"
