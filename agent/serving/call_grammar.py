"""Grammars in llguidance's words (Lark) for answers that must be tool calls, and for thinking before an answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, assert_never

from agent.serving.grammar import schema_with_options
from agent.serving.tokens import ModelTokens
from agent.serving.tools import THINK_CLOSES, THINK_OPENS, Tool, ToolFormat

Thoughts = Literal["none", "opened", "all"]
_ANY_TEXT = r"/(.|\n)*/"


def calls(form: ToolFormat, tools: Sequence[Tool], tokens: ModelTokens, *, makes_several: bool) -> str:
    """One call of any of these tools, or several, with arguments as their schemas say."""
    several = makes_several and form.makes_several
    blocks = "block"
    if several and form.style == "tagged":
        blocks = 'block ("\\n" block)*'
    elif several and form.style == "named":
        blocks = "block+"
    opens = marker(form.opens, tokens) if form.opens else ""
    rules = _rules(form, tools, tokens, several=several)
    return f"answer: {blocks}\nblock: {opens} rest\n{rules}"


def talk(form: ToolFormat, tools: Sequence[Tool], tokens: ModelTokens, *, makes_several: bool) -> str:
    """Free text; but what begins as a call is one, with arguments as the schemas say."""
    several = makes_several and form.makes_several
    rules = _rules(form, tools, tokens, several=several)
    if form.style == "bare":
        return f"answer: rest | PLAIN\nPLAIN: /[^{{](.|\\n)*/\n{rules}"
    times = "*" if several else "?"
    if tokens.added_id(form.opens) is None:
        begin = f"begin[lazy]: {_ANY_TEXT} {literal(form.opens)}"
        return f"answer: (begin rest){times} TEXT\nTEXT: {_ANY_TEXT}\n{begin}\n{rules}"
    # Text matches no added token, so those of thinking are let through by name.
    thoughts = [marker(each, tokens) for each in (THINK_OPENS, THINK_CLOSES) if tokens.added_id(each) is not None]
    free = " | ".join(["TEXT", *thoughts])
    block = f"{marker(form.opens, tokens)} rest"
    return f"answer: free ({block} free){times}\nfree: ({free})*\nTEXT: /(.|\\n)+/\n{rules}"


def _rules(form: ToolFormat, tools: Sequence[Tool], tokens: ModelTokens, *, several: bool) -> str:
    """`rest`: a call behind its opening marker."""
    rules = []
    for index, tool in enumerate(tools):
        rules.append(f"args_{index}: %json {_schema_text(tool.parameters, is_strict=tool.is_strict)}")
        if form.style == "named":
            body = f"{literal(tool.name)} {marker('[ARGS]', tokens)} args_{index}"
        else:
            head = json.dumps({"name": tool.name}, ensure_ascii=False)[:-1] + f', "{form.arguments_key}": '
            body = f'{literal(head)} args_{index} "}}"'
        rules.append(f"call_{index}: {body}")
    rules.append("call: " + " | ".join(f"call_{index}" for index in range(len(tools))))
    match form.style:
        case "tagged":
            rest = f'"\\n" call "\\n" {marker(form.closes, tokens)}'
        case "list":
            rest = '"[" call ' + ('(", " call)* "]"' if several else '"]"')
        case "named" | "bare":
            rest = "call"
        case _:
            assert_never(form.style)
    return "\n".join([f"rest: {rest}", *rules])


def value(schema: Mapping[str, Any], *, is_strict: bool) -> str:
    """A value of a JSON schema."""
    return f"answer: %json {_schema_text(schema, is_strict=is_strict)}"


def either(value_rules: str, call_rules: str) -> str:
    """A value or calls."""
    return "\n".join(
        [
            "answer: some_value | some_calls",
            value_rules.replace("answer:", "some_value:", 1),
            call_rules.replace("answer:", "some_calls:", 1),
        ]
    )


def whole(answer: str, tokens: ModelTokens, *, thoughts: Thoughts = "none") -> str:
    """A grammar of an answer, after all of its thoughts, or after their rest where the prompt `opened` them."""
    if thoughts == "none":
        return f"start: answer\n{answer}"
    opens = f'{marker(THINK_OPENS, tokens)} "\\n" ' if thoughts == "all" else ""
    added = tokens.added_id(THINK_CLOSES)
    if added is None:
        rules = f"thoughts[lazy]: {_ANY_TEXT} {literal(THINK_CLOSES)}"
    else:
        rules = f"thoughts: THOUGHTS <[{added}]>\nTHOUGHTS: {_ANY_TEXT}"
    return f'start: {opens}thoughts "\\n\\n" answer\n{rules}\n{answer}'


def _schema_text(schema: Mapping[str, Any], *, is_strict: bool) -> str:
    return json.dumps(schema_with_options(schema, is_strict=is_strict))


def marker(text: str, tokens: ModelTokens) -> str:
    """An added token by its id, for llguidance matches none of them by text; or the text."""
    added = tokens.added_id(text)
    return literal(text) if added is None else f"<[{added}]>"


def literal(text: str) -> str:
    """A Lark string."""
    return json.dumps(text, ensure_ascii=False)
