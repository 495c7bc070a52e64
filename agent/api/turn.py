"""One turn of a chat, as both protocols ask for it: the prompt, the grammar, and how the answer is to be read."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from agent.api.deployment import Face
from agent.api.refusal import Refusal
from agent.serving import call_grammar
from agent.serving.chat import TemplateRefused
from agent.serving.grammar import GrammarRefused, TokenGrammar
from agent.serving.tools import THINK_CLOSES, THINK_OPENS, AnswerParser, Tool, ToolFormat


class WantedJson(msgspec.Struct, frozen=True, kw_only=True):
    """What a client says about the form of its answer; `place` is how its protocol calls it."""

    schema: Mapping[str, Any]
    is_strict: bool
    place: str


class WantedCalls(msgspec.Struct, frozen=True, kw_only=True):
    """The tools on offer. `forced` are those of which one must be called."""

    described: Sequence[Mapping[str, Any]] = ()
    """As templates take them."""
    tools: tuple[Tool, ...] = ()
    forced: tuple[Tool, ...] = ()
    makes_several: bool = True

    @property
    def are_strict(self) -> bool:
        """Whatever is called, its arguments must fit."""
        return any(tool.is_strict for tool in self.tools)


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """How an answer's text becomes thoughts, content and calls."""

    tools: ToolFormat | None = None
    thinks: bool = False
    is_thinking: bool = False
    """The prompt ends inside the thoughts already."""
    max_calls: int | None = None

    @property
    def shown(self) -> tuple[str, ...]:
        """Special tokens that the parser must see."""
        thoughts = (THINK_OPENS, THINK_CLOSES) if self.thinks else ()
        return thoughts + (self.tools.markers if self.tools is not None else ())

    def parser(self) -> AnswerParser:
        return AnswerParser(
            tools=self.tools, thinks=self.thinks, is_thinking=self.is_thinking, max_calls=self.max_calls
        )


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of the assistant, apart from the messages."""

    calls: WantedCalls = WantedCalls()
    json: WantedJson | None = None
    thinks: bool | None = None
    """None: as the model likes, but a constrained answer comes without thoughts where they can be left out."""


def render(face: Face, messages: Sequence[Mapping[str, Any]], turn: Turn) -> str:
    """The prompt's text. Raises Refusal."""
    if turn.calls.described and face.chat.tool_format is None:
        raise Refusal(400, f"{face.name} does not support tools", param="tools", code="unsupported_parameter")
    if turn.thinks and not face.chat.thinks:
        raise Refusal(400, f'"{face.name}" does not support thinking', param="think", code="unsupported_parameter")
    try:
        return face.chat.render(messages, tools=turn.calls.described, thinks=_thinks(face, turn))
    except TemplateRefused as error:
        raise Refusal(
            400, f"the model's chat template refuses these messages: {error}", param="messages"
        ) from error


def reading_of(face: Face, turn: Turn, prompt: str) -> Reading:
    """How the answer to this prompt is to be read."""
    is_opened = face.chat.thinks and prompt.rstrip().endswith(THINK_OPENS)
    return Reading(
        tools=face.chat.tool_format if turn.calls.described else None,
        thinks=face.chat.thinks,
        is_thinking=is_opened,
        max_calls=None if turn.calls.makes_several else 1,
    )


async def grammar_of(face: Face, turn: Turn, reading: Reading) -> TokenGrammar | None:
    """What constrains the answer, if anything. Raises Refusal that names the field at fault."""
    if turn.json is None and not turn.calls.forced and not turn.calls.are_strict:
        return None
    return await asyncio.to_thread(_compile, face, turn, reading)


def _compile(face: Face, turn: Turn, reading: Reading) -> TokenGrammar:
    wanted, calls = turn.json, turn.calls
    thoughts: call_grammar.Thoughts = "none"
    if reading.is_thinking:
        thoughts = "opened"
    elif reading.thinks and turn.thinks:
        thoughts = "all"
    # Each schema alone first: its refusal names the place.
    if wanted is not None:
        alone = _compile_schema(face, wanted.schema, is_strict=wanted.is_strict, place=wanted.place)
        if thoughts == "none" and not calls.described:
            return alone
    for index, tool in enumerate(calls.tools):
        if calls.are_strict or wanted is not None or tool in calls.forced:
            place = f"tools[{index}].function.parameters"
            _compile_schema(face, tool.parameters, is_strict=tool.is_strict, place=place)
    rules = ""
    if calls.described:
        assert reading.tools is not None, "refused before"
        tools = calls.forced or calls.tools
        may_talk = not calls.forced and wanted is None
        write = call_grammar.talk if may_talk else call_grammar.calls
        rules = write(reading.tools, tools, face.tokens, makes_several=calls.makes_several)
        thoughts = "none" if may_talk else thoughts
    if wanted is not None and not calls.forced:
        value = call_grammar.value(wanted.schema, is_strict=wanted.is_strict)
        rules = call_grammar.either(value, rules) if rules else value
    try:
        return face.grammars.compile(call_grammar.whole(rules, face.tokens, thoughts=thoughts))
    except GrammarRefused as refused:
        field = "tools" if calls.described else "response_format"
        raise Refusal(400, f"`{field}` cannot be compiled: {refused}", param=field) from refused


def _compile_schema(face: Face, schema: Mapping[str, Any], *, is_strict: bool, place: str) -> TokenGrammar:
    try:
        return face.grammars.compile_schema(schema, is_strict=is_strict)
    except GrammarRefused as refused:
        place += refused.place
        raise Refusal(
            400, f"`{place}` cannot be compiled: {refused}", param=place, code="invalid_schema"
        ) from refused


def _thinks(face: Face, turn: Turn) -> bool | None:
    """What the template is told; only those with a switch are told anything."""
    if not face.chat.can_skip_thinking:
        return None
    is_constrained = turn.json is not None or bool(turn.calls.forced)
    return False if turn.thinks is None and is_constrained else turn.thinks
