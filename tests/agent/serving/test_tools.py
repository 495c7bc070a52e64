"""Tool calls and thoughts come out of an answer whole, in whatever pieces it arrives."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from agent.serving import call_grammar
from agent.serving.chat import ChatTemplate
from agent.serving.grammar import GrammarCompiler
from agent.serving.tokens import ModelTokens
from agent.serving.tools import (
    TOOL_FORMATS,
    AnswerParser,
    Content,
    Part,
    Thinking,
    Tool,
    ToolCall,
    ToolFormat,
    format_of,
)
from tests.agent.serving.tokenizer import EOS, small_tokenizer

SPECIAL = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
TEMPLATES = Path(__file__).parent / "templates"
FORMATS = {form.name: form for form in TOOL_FORMATS}
OSLO = ToolCall(name="get_weather", arguments='{"city":"Oslo"}')
ROME = ToolCall(name="get_weather", arguments='{"city":"Rome","days":[1,{"a":"}"}]}')
OSLO_JSON = '{"name": "get_weather", "arguments": {"city": "Oslo"}}'
ROME_JSON = '{"name": "get_weather", "arguments": {"city": "Rome", "days": [1, {"a": "}"}]}}'
LLAMA_OSLO = '{"name": "get_weather", "parameters": {"city": "Oslo"}}'
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 8}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def template_text(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text()


def chat_template(name: str) -> ChatTemplate:
    return ChatTemplate(template_text(name), special_tokens=SPECIAL, now=lambda: datetime(2026, 1, 1, tzinfo=UTC))


def parse(parser: AnswerParser, pieces: Iterable[str]) -> list[Part]:
    """All parts, neighbours of one kind joined."""
    parts: list[Part] = []
    for part in [*(part for piece in pieces for part in parser.push(piece)), *parser.flush()]:
        match part, parts[-1] if parts else None:
            case Content(text=text), Content(text=before):
                parts[-1] = Content(text=before + text)
            case Thinking(text=text), Thinking(text=before):
                parts[-1] = Thinking(text=before + text)
            case _:
                parts.append(part)
    return parts


CASES: Sequence[tuple[str, str, list[Part]]] = [
    ("hermes", "Just words.", [Content(text="Just words.")]),
    ("hermes", f"<tool_call>\n{OSLO_JSON}\n</tool_call>", [OSLO]),
    (
        "hermes",
        f"Let me see.\n<tool_call>\n{OSLO_JSON}\n</tool_call>\n<tool_call>\n{ROME_JSON}\n</tool_call>\n",
        [Content(text="Let me see."), OSLO, ROME],
    ),
    ("hermes", f"<tool_call>\n{OSLO_JSON}", [OSLO]),
    ("hermes", "a <tool_call>{oops</tool_call> b", [Content(text="a <tool_call>{oops</tool_call> b")]),
    ("hermes", "1 <tool_cal and 2 < 3 <", [Content(text="1 <tool_cal and 2 < 3 <")]),
    ("mistral-list", f"[TOOL_CALLS][{OSLO_JSON}, {ROME_JSON}]", [OSLO, ROME]),
    ("mistral-list", f'Wait. [TOOL_CALLS] [{OSLO_JSON[:-1]}, "id": "123456789"}}]', [Content(text="Wait."), OSLO]),
    ("mistral-list", "[TOOL_CALLS] is a marker", [Content(text="[TOOL_CALLS] is a marker")]),
    ("mistral", '[TOOL_CALLS]get_weather[ARGS]{"city": "Oslo"}', [OSLO]),
    (
        "mistral",
        'Hm[TOOL_CALLS]get_weather[CALL_ID]a1b2c3d4e[ARGS]{"city": "Oslo"}[TOOL_CALLS]get_weather[ARGS]'
        '{"city": "Rome", "days": [1, {"a": "}"}]}',
        [Content(text="Hm"), OSLO, ROME],
    ),
    ("llama3", LLAMA_OSLO, [OSLO]),
    ("llama3", f"{LLAMA_OSLO}; {LLAMA_OSLO}", [OSLO, OSLO]),
    ("llama3", f"\n{OSLO_JSON}", [OSLO]),
    ("llama3", '{"answer": 42} is JSON', [Content(text='{"answer": 42} is JSON')]),
    ("llama3", "{ not JSON", [Content(text="{ not JSON")]),
    ("llama3", f"Like {LLAMA_OSLO}", [Content(text=f"Like {LLAMA_OSLO}")]),
]


@pytest.mark.parametrize(("name", "text", "expected"), CASES)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_an_answer_is_read_the_same_in_any_pieces(
    data: st.DataObject, name: str, text: str, expected: list[Part]
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert parse(AnswerParser(tools=FORMATS[name], thinks=False), pieces) == expected
    assert parse(AnswerParser(tools=FORMATS[name], thinks=False), text) == expected


def test_no_markup_is_given_out_before_it_is_known() -> None:
    parser = AnswerParser(tools=FORMATS["hermes"], thinks=False)
    given_out = [part for character in f"So\n<tool_call>{OSLO_JSON}" for part in parser.push(character)]
    assert "".join(part.text for part in given_out if isinstance(part, Content)) == "So"
    assert [part for character in "</tool_call>" for part in parser.push(character)] == [OSLO]


def test_more_calls_than_the_client_takes_are_left_out() -> None:
    text = f"<tool_call>{OSLO_JSON}</tool_call><tool_call>{ROME_JSON}</tool_call>"
    assert parse(AnswerParser(tools=FORMATS["hermes"], thinks=False, max_calls=1), [text]) == [OSLO]


@pytest.mark.parametrize(
    ("text", "is_thinking", "expected"),
    [
        ("<think>\nHm, <b>.\n</think>\n\nYes.", False, [Thinking(text="Hm, <b>."), Content(text="Yes.")]),
        ("Hm.\n</think>\n\nYes.", True, [Thinking(text="Hm."), Content(text="Yes.")]),
        ("<think>\n\n</think>\n\nYes.", False, [Content(text="Yes.")]),
        ("No thoughts </think>.", False, [Content(text="No thoughts </think>.")]),
        ("<think>for ever", False, [Thinking(text="for ever")]),
        (f"<think>x</think>\n<tool_call>{OSLO_JSON}</tool_call>", False, [Thinking(text="x"), OSLO]),
        ("<thin", False, [Content(text="<thin")]),
    ],
)
def test_thoughts_are_parted_from_the_answer(text: str, is_thinking: bool, expected: list[Part]) -> None:
    for pieces in (text, [text]):
        parser = AnswerParser(tools=FORMATS["hermes"], thinks=True, is_thinking=is_thinking)
        assert parse(parser, pieces) == expected


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("qwen2.5", "hermes"),
        ("qwen3", "hermes"),
        ("llama3.1", "llama3"),
        ("mistral-nemo", "mistral-list"),
        ("mistral-small-3.2", "mistral"),
        ("gemma2", None),
    ],
)
def test_a_template_tells_its_format(template: str, form: str | None) -> None:
    found = format_of(template_text(template))
    assert (found.name if found else None) == form


@pytest.mark.parametrize("template", ["qwen2.5", "qwen3", "llama3.1", "mistral-nemo", "mistral-small-3.2"])
def test_what_a_template_writes_of_a_call_is_read_back(template: str) -> None:
    """And the prompt is the one that transformers renders."""
    chat = chat_template(template)
    assert chat.tool_format is not None
    asked: list[Any] = [{"role": "user", "content": "Weather?"}]
    called: Any = {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "abcdefghi",
                "type": "function",
                "function": {"name": "get_weather", "arguments": {"city": "Oslo"}},
            }
        ],
    }
    after = chat.render([*asked, called], tools=[WEATHER])
    markup = after[after.rindex(chat.tool_format.opens or '{"name": "get_weather"') :]
    for end in ("<|end|>", "<|eot_id|>", "<|im_end|>"):
        markup = markup.partition(end)[0]
    parsed = parse(AnswerParser(tools=chat.tool_format, thinks=False), [markup])
    assert [part for part in parsed if isinstance(part, ToolCall)] == [OSLO]
    reference = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=small_tokenizer(),
        chat_template=template_text(template),
        **SPECIAL,
    )
    rendered = reference.apply_chat_template(
        [*asked, called], tools=[WEATHER], tokenize=False, add_generation_prompt=True
    )
    # transformers has no clock that could be set.
    assert after == rendered or "strftime_now" in template_text(template)


def test_qwen3_can_be_told_not_to_think() -> None:
    chat = chat_template("qwen3")
    assert chat.thinks
    assert chat.render([{"role": "user", "content": "x"}], thinks=False).endswith("<think>\n\n</think>\n\n")
    assert not chat.render([{"role": "user", "content": "x"}], thinks=True).endswith("</think>\n\n")


def marked_tokens() -> ModelTokens:
    """The test tokenizer with every family's markers as added tokens, as their own tokenizers have them."""
    tokenizer = Tokenizer.from_str(small_tokenizer().to_str())
    tokenizer.add_special_tokens(["[TOOL_CALLS]", "[ARGS]"])
    tokenizer.add_tokens([AddedToken(each, special=False) for each in ("<tool_call>", "</tool_call>", "</think>")])
    return ModelTokens(tokenizer, eos_token_ids=frozenset({EOS}))


@pytest.mark.parametrize("form", TOOL_FORMATS, ids=lambda form: form.name)
@pytest.mark.parametrize(("has_markers", "thinks_first"), [(True, True), (True, False), (False, False)])
def test_random_tokens_under_a_grammar_of_calls_are_a_call(
    form: ToolFormat, has_markers: bool, thinks_first: bool
) -> None:
    tokens = marked_tokens() if has_markers else ModelTokens(small_tokenizer(), eos_token_ids=frozenset({EOS}))
    size = 517 if has_markers else 512
    schema = WEATHER["function"]["parameters"]
    tools = [
        Tool(name="get_weather", parameters=schema),
        Tool(
            name='odd "name"',
            parameters={
                "type": "object",
                "properties": {"n": {"$ref": "#/$defs/n"}},
                "required": ["n"],
                "additionalProperties": False,
                "$defs": {"n": {"enum": [1, 2]}},
            },
        ),
    ]
    body = call_grammar.calls(form, tools, tokens, makes_several=False)
    compiler = GrammarCompiler(tokens, vocab_size=size)
    for seed in range(3):
        grammar = compiler.compile(call_grammar.whole(body, tokens, thoughts="opened" if thinks_first else "none"))
        stream, chance, text = tokens.stream((), shown=form.markers), random.Random(seed), ""
        while not grammar.is_complete:
            mask = grammar.mask()
            allowed = [token for token in range(size) if mask[token // 8] >> token % 8 & 1]
            closes = tokens.added_id("</think>")
            # Random thoughts would go on and on.
            token = closes if closes in allowed and len(text) > 40 else chance.choice(allowed)
            assert token is not None
            grammar.accept(token)
            if token != EOS:
                text += stream.push(token)[0]
        text += stream.flush()[0]
        [call] = [
            part
            for part in parse(AnswerParser(tools=form, thinks=True, is_thinking=thinks_first), [text])
            if not isinstance(part, Thinking)
        ]
        assert isinstance(call, ToolCall), text
        [tool] = [tool for tool in tools if tool.name == call.name]
        jsonschema.validate(json.loads(call.arguments), tool.parameters)


def test_thoughts_end_by_their_text_where_their_mark_is_no_token() -> None:
    tokens = ModelTokens(small_tokenizer(), eos_token_ids=frozenset({EOS}))
    grammar = GrammarCompiler(tokens, vocab_size=512).compile(
        call_grammar.whole(call_grammar.value({"enum": [7]}, is_strict=True), tokens, thoughts="opened")
    )
    for token in tokens.encode("So {7} it is.\n</think>\n\n7", adds_special=False):
        assert not grammar.is_complete
        grammar.accept(token)
    assert grammar.is_complete


def may_follow(compiler: GrammarCompiler, tokens: ModelTokens, rules: str, text: str) -> bool:
    """Whether every token of the text is allowed, and the end after it."""
    grammar = compiler.compile(call_grammar.whole(rules, tokens))
    for token in [*tokens.encode(text, adds_special=False), EOS]:
        mask = grammar.mask()
        if not mask[token // 8] >> token % 8 & 1:
            return False
        grammar.accept(token)
    return True


@pytest.mark.parametrize("form", TOOL_FORMATS, ids=lambda form: form.name)
@pytest.mark.parametrize("has_markers", [True, False])
def test_a_strict_tool_leaves_talk_free_and_holds_calls(form: ToolFormat, has_markers: bool) -> None:
    tokens = marked_tokens() if has_markers else ModelTokens(small_tokenizer(), eos_token_ids=frozenset({EOS}))
    compiler = GrammarCompiler(tokens, vocab_size=517 if has_markers else 512)
    tools = [Tool(name="get_weather", parameters=WEATHER["function"]["parameters"], is_strict=True)]
    rules = call_grammar.talk(form, tools, tokens, makes_several=True)
    written = {
        "hermes": "<tool_call>\n{}\n</tool_call>",
        "mistral": "[TOOL_CALLS]get_weather[ARGS]{}",
        "mistral-list": "[TOOL_CALLS][{}]",
        "llama3": "{}",
    }[form.name]

    def call(city: object) -> str:
        arguments = {"city": city}
        body = {"name": "get_weather", form.arguments_key: arguments}
        return written.replace("{}", json.dumps(arguments if form.style == "named" else body))

    assert may_follow(compiler, tokens, rules, "Just talk, with <tags> and [lists].\n")
    assert may_follow(compiler, tokens, rules, call("Oslo"))
    assert not may_follow(compiler, tokens, rules, call(7))
    assert not may_follow(compiler, tokens, rules, call("a name too long"))
    if form.style != "bare":
        assert may_follow(compiler, tokens, rules, "So: " + call("Oslo"))
    if form.style == "tagged":
        assert may_follow(compiler, tokens, rules, "Hm.</think>\n\n" + call("Oslo") + "\n" + call("Rome"))
