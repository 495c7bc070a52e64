"""Grammars in llguidance's words (Lark) for answers that must be tool calls, and for thinking before an answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, assert_never

from agent.serving.grammar import WHITESPACE
from agent.serving.tokens import ModelTokens
from agent.serving.tools import THINK_CLOSES, Tool, ToolFormat

_THOUGHTS = r"/(.|\n)*/"


def calls(form: ToolFormat, tools: Sequence[Tool], tokens: ModelTokens, *, makes_several: bool) -> str:
    """One call of any of these tools, or several, with arguments as their schemas say."""
    opens = marker(form.opens, tokens) if form.opens else ""
    rules = []
    for index, tool in enumerate(tools):
        schema = {
            **tool.parameters,
            "x-guidance": {"whitespace_pattern": WHITESPACE, "lenient": not tool.is_strict},
        }
        rules.append(f"args_{index}: %json {json.dumps(schema)}")
        if form.style == "named":
            body = f"{literal(tool.name)} {marker('[ARGS]', tokens)} args_{index}"
        else:
            head = json.dumps({"name": tool.name}, ensure_ascii=False)[:-1] + f', "{form.arguments_key}": '
            body = f'{literal(head)} args_{index} "}}"'
        rules.append(f"call_{index}: {body}")
    rules.append("call: " + " | ".join(f"call_{index}" for index in range(len(tools))))
    several = makes_several and form.makes_several
    match form.style:
        case "tagged":
            block = f'{opens} "\\n" call "\\n" {marker(form.closes, tokens)}'
            start = f'block ("\\n" block)*\nblock: {block}' if several else block
        case "list":
            start = f'{opens} "[" call ' + ('(", " call)* "]"' if several else '"]"')
        case "named":
            start = f"({opens} call)+" if several else f"{opens} call"
        case "bare":
            start = "call"
        case _:
            assert_never(form.style)
    return "\n".join([f"answer: {start}", *rules])


def value(schema: Mapping[str, Any]) -> str:
    """A value of a JSON schema."""
    return f"answer: %json {json.dumps(schema)}"


def whole(answer: str, tokens: ModelTokens, *, thinks_first: bool = False) -> str:
    """A grammar of an answer, after thoughts where the prompt left them open."""
    if not thinks_first:
        return f"start: answer\n{answer}"
    added = tokens.added_id(THINK_CLOSES)
    if added is None:
        thoughts = f"thoughts[lazy]: {_THOUGHTS} {literal(THINK_CLOSES)}"
    else:
        thoughts = f"thoughts: THOUGHTS <[{added}]>\nTHOUGHTS: {_THOUGHTS}"
    return f'start: thoughts "\\n\\n" answer\n{thoughts}\n{answer}'


def marker(text: str, tokens: ModelTokens) -> str:
    """An added token by its id, for llguidance matches none of them by text; or the text."""
    added = tokens.added_id(text)
    return literal(text) if added is None else f"<[{added}]>"


def literal(text: str) -> str:
    """A Lark string."""
    return json.dumps(text, ensure_ascii=False)
