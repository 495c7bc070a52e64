"""Tool calls and thinking in an answer's text, by the family's own markup. The formats are data; no I/O.

What a parser gives out is certain: half a marker is held back until the next piece tells, and a call comes whole.
Text that looks like a call and is none comes out as content, markers and all, so that nothing is ever lost.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from agent.serving.tokens import overlap

THINK_OPENS, THINK_CLOSES = "<think>", "</think>"
_JSON = json.JSONDecoder()


class ToolFormat(msgspec.Struct, frozen=True, kw_only=True):
    """How a family writes calls.

    tagged: `opens` {"name": …, "arguments": …} `closes`, any number of them. list: `opens` and a JSON list of such
    objects. named: `opens` name `[ARGS]` arguments. bare: the answer is such an object, with nothing before it.
    """

    name: str
    style: Literal["tagged", "list", "named", "bare"]
    opens: str = ""
    closes: str = ""
    arguments_key: str = "arguments"
    known_by: tuple[str, ...]
    """All of these stand in a template of this format."""
    unlike: tuple[str, ...] = ()
    """None of these does."""
    has_short_ids: bool = False
    """Its template demands call ids of nine letters and digits."""
    makes_several: bool = True

    @property
    def markers(self) -> tuple[str, ...]:
        """Text that the parser must see, where it is a special token too."""
        return tuple(each for each in (self.opens, self.closes, "[CALL_ID]", "[ARGS]") if each)


TOOL_FORMATS: tuple[ToolFormat, ...] = (
    ToolFormat(
        name="hermes",
        style="tagged",
        opens="<tool_call>",
        closes="</tool_call>",
        known_by=("<tool_call>",),
        # Qwen3-Coder and GLM put XML between the same tags.
        unlike=("<function=", "<arg_key>", "<parameter="),
    ),
    ToolFormat(
        name="mistral",
        style="named",
        opens="[TOOL_CALLS]",
        known_by=("[TOOL_CALLS]", "[ARGS]"),
        has_short_ids=True,
    ),
    ToolFormat(
        name="mistral-list", style="list", opens="[TOOL_CALLS]", known_by=("[TOOL_CALLS]",), has_short_ids=True
    ),
    ToolFormat(
        name="llama3",
        style="bare",
        arguments_key="parameters",
        known_by=("ipython", '"parameters": '),
        makes_several=False,
    ),
)


def format_of(template: str) -> ToolFormat | None:
    """The format that a chat template teaches, by its text."""
    for form in TOOL_FORMATS:
        if all(each in template for each in form.known_by) and not any(each in template for each in form.unlike):
            return form
    return None


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """What a client lets the model call; `parameters` is the JSON schema of its arguments."""

    name: str
    parameters: Mapping[str, Any]
    is_strict: bool = False


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    arguments: str
    """JSON of an object, compact."""


class Content(msgspec.Struct, frozen=True, kw_only=True):
    text: str


class Thinking(msgspec.Struct, frozen=True, kw_only=True):
    text: str


Part = Content | Thinking | ToolCall


class AnswerParser:
    """Text in pieces to parts in order: thinking, then content and calls."""

    def __init__(
        self, *, tools: ToolFormat | None, thinks: bool, is_thinking: bool = False, max_calls: int | None = None
    ) -> None:
        """`is_thinking`: the prompt ended inside the thoughts already."""
        self._thoughts = _Thoughts(is_open=is_thinking) if thinks else None
        self._calls = _Calls(tools, max_calls=max_calls) if tools is not None else None

    def push(self, text: str) -> list[Part]:
        if self._thoughts is None:
            return self._content(text)
        thinking, content = self._thoughts.push(text)
        return [*_thinking(thinking), *self._content(content)]

    def flush(self) -> list[Part]:
        """What was held, at the end of the answer."""
        parts: list[Part] = []
        if self._thoughts is not None:
            thinking, content = self._thoughts.flush()
            parts = [*_thinking(thinking), *self._content(content)]
        return [*parts, *self._calls.flush()] if self._calls is not None else parts

    def _content(self, text: str) -> list[Part]:
        if not text:
            return []
        return self._calls.push(text) if self._calls is not None else [Content(text=text)]


class _Thoughts:
    """Splits `<think>…</think>` off the beginning."""

    def __init__(self, *, is_open: bool) -> None:
        self._state: Literal["before", "inside", "between", "after"] = "inside" if is_open else "before"
        self._held = ""
        self._is_first = True

    def push(self, text: str) -> tuple[str, str]:
        """(thinking, content)."""
        text, self._held = self._held + text, ""
        thinking = ""
        if self._state == "before":
            begun = text.lstrip()
            if begun.startswith(THINK_OPENS):
                self._state, text = "inside", begun[len(THINK_OPENS) :]
            elif THINK_OPENS.startswith(begun):
                self._held = text
                return "", ""
            else:
                self._state = "after"
        if self._state == "inside":
            inside, closer, rest = text.partition(THINK_CLOSES)
            certain = inside[: len(inside) - (0 if closer else overlap(text, THINK_CLOSES))].rstrip()
            thinking = certain.lstrip() if self._is_first else certain
            self._is_first = self._is_first and not thinking
            if not closer:
                self._held = text[len(certain) :]
                return thinking, ""
            self._state, text = "between", rest
        if self._state == "between":
            text = text.lstrip()
            if text:
                self._state = "after"
        return thinking, text

    def flush(self) -> tuple[str, str]:
        held, self._held = self._held, ""
        return (held, "") if self._state == "inside" else ("", held)


class _Calls:
    """Finds calls. White space around them belongs to the markup."""

    def __init__(self, form: ToolFormat, *, max_calls: int | None) -> None:
        self._form = form
        self._max_calls = max_calls
        self._num_calls = 0
        self._is_inside = False
        self._is_plain = False
        """A bare call can only be the answer's beginning."""
        self._held = ""
        self._space = ""

    def push(self, text: str) -> list[Part]:
        self._held += text
        parts: list[Part] = []
        while self._held:
            before = len(self._held), self._is_inside
            parts.extend(self._inside() if self._is_inside else self._outside())
            if (len(self._held), self._is_inside) == before:
                break
        return parts

    def flush(self) -> list[Part]:
        held, self._held = self._held, ""
        if not self._is_inside:
            return self._text(held, is_last=True)
        opens, body = self._form.opens, held
        calls, length = _READERS[self._form.style](self._form, body, True)
        if calls and not body[length:].strip():
            return self._calls(calls)
        return self._text(opens + held, is_last=True)

    def _outside(self) -> list[Part]:
        form, text = self._form, self._held
        if form.style == "bare":
            begun = text.lstrip(" \n;")
            if self._is_plain or (begun and begun[0] != "{"):
                self._is_plain, self._held = True, ""
                return self._text(text)
            self._is_inside = bool(begun)
            self._held = begun or text
            return []
        content, opener, rest = text.partition(form.opens)
        if opener:
            self._is_inside, self._held = True, rest
            return self._text(content)
        held = overlap(text, form.opens)
        self._held = text[len(text) - held :]
        return self._text(text[: len(text) - held])

    def _inside(self) -> list[Part]:
        calls, length = _READERS[self._form.style](self._form, self._held, False)
        if calls is None:
            return []
        body, self._held, self._is_inside = self._held[:length], self._held[length:], False
        if calls:
            return self._calls(calls)
        self._is_plain = True
        return self._text(self._form.opens + body)

    def _calls(self, calls: Sequence[ToolCall]) -> list[Part]:
        self._space = ""
        room = len(calls) if self._max_calls is None else max(0, self._max_calls - self._num_calls)
        self._num_calls += len(calls)
        return list(calls[:room])

    def _text(self, text: str, *, is_last: bool = False) -> list[Part]:
        """Hold white space until something follows it; after a call it is markup."""
        text, self._space = self._space + text, ""
        kept = text.rstrip()
        if not kept and self._num_calls:
            return []
        if not is_last:
            self._space, text = text[len(kept) :], kept
        return [Content(text=text)] if text else []


Reading = tuple[Sequence[ToolCall] | None, int]
"""Calls and how many characters they took; None: more text is needed, empty: these are no calls."""


def _read_tagged(form: ToolFormat, text: str, is_end: bool) -> Reading:
    body, closer, _ = text.partition(form.closes)
    if not closer and not is_end:
        return None, 0
    return _calls_in(form, body), len(body) + len(closer)


def _read_list(form: ToolFormat, text: str, is_end: bool) -> Reading:
    return _read_json(form, text, "]", is_end)


def _read_bare(form: ToolFormat, text: str, is_end: bool) -> Reading:
    return _read_json(form, text, "}", is_end)


def _read_json(form: ToolFormat, text: str, last: str, is_end: bool) -> Reading:
    if last not in text and not is_end:
        return None, 0
    begin = len(text) - len(text.lstrip())
    try:
        _, end = _JSON.raw_decode(text, begin)
    except (ValueError, RecursionError):
        return ((), len(text)) if is_end else (None, 0)
    return _calls_in(form, text[begin:end]), end


def _read_named(_form: ToolFormat, text: str, is_end: bool) -> Reading:
    head, marker, rest = text.partition("[ARGS]")
    if not marker:
        return ((), len(text)) if is_end else (None, 0)
    try:
        arguments, end = _JSON.raw_decode(rest, len(rest) - len(rest.lstrip()))
    except (ValueError, RecursionError):
        return ((), len(text)) if is_end else (None, 0)
    name = head.partition("[CALL_ID]")[0].strip()
    call = _call(name, arguments)
    return (() if call is None else (call,)), len(head) + len(marker) + end


_READERS: Mapping[str, Callable[[ToolFormat, str, bool], Reading]] = {
    "tagged": _read_tagged,
    "list": _read_list,
    "bare": _read_bare,
    "named": _read_named,
}


def _calls_in(form: ToolFormat, text: str) -> tuple[ToolCall, ...]:
    """The calls in a JSON object or list; none when one of them is no call."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return ()
    calls = [
        _call(each.get("name"), each.get(form.arguments_key, each.get("arguments", each.get("parameters", {}))))
        for each in (value if isinstance(value, list) else [value])
        if isinstance(each, dict)
    ]
    return tuple(call for call in calls if call is not None) if calls and all(calls) else ()


def _call(name: object, arguments: object) -> ToolCall | None:
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return ToolCall(name=name, arguments=json.dumps(arguments, ensure_ascii=False, separators=(",", ":")))


def _thinking(text: str) -> list[Thinking]:
    return [Thinking(text=text)] if text else []
