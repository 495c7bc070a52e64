"""Messages and tools of both protocols in the one form that chat templates take: that of transformers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from agent.api.fields import Fields
from agent.api.refusal import bad_field, not_supported
from agent.serving.tools import Tool, ToolFormat

MAX_TOOLS = 128
SHORT_ID_LENGTH = 9
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_AS_TEMPLATES_SAY = {"developer": "system", "function": "tool"}


def read_messages(values: Sequence[Mapping[str, Any]], form: ToolFormat | None) -> list[dict[str, Any]]:
    """Raises Refusal. Calls and their results get ids where the client (Ollama's) has none."""
    messages = [_message(value, f"messages[{index}]") for index, value in enumerate(values)]
    unanswered: list[tuple[str, str]] = []
    num_calls = 0
    for message in messages:
        for call in message.get("tool_calls", ()):
            num_calls += 1
            call["id"] = _fitting_id(call.get("id") or f"call_{num_calls}", form)
            unanswered.append((call["id"], call["function"]["name"]))
        if message["role"] == "tool":
            message["tool_call_id"] = _answered_id(message, unanswered, form)
    return messages


def read_tools(fields: Fields) -> tuple[list[dict[str, Any]], tuple[Tool, ...]]:
    """(as templates take them, as grammars do). Raises Refusal."""
    values = fields.objects("tools")
    if len(values) > MAX_TOOLS:
        raise bad_field("tools", f"{len(values)} tools", f"a list of at most {MAX_TOOLS}")
    tools = []
    for index, value in enumerate(values):
        place = f"tools[{index}]"
        if value.get("type", "function") != "function":
            raise bad_field(f"{place}.type", value.get("type"), "`function`")
        function = Fields(value, f"{place}.").fields("function")
        name, parameters = function.string("name"), function.raw("parameters")
        if not name:
            raise bad_field(f"{place}.function.name", function.raw("name"), "a name")
        if parameters is not None and not isinstance(parameters, dict):
            raise bad_field(f"{place}.function.parameters", parameters, "a JSON schema")
        schema = parameters or {"type": "object", "properties": {}}
        tools.append(Tool(name=name, parameters=schema, is_strict=function.boolean("strict", False)))
    return [{**value, "type": "function"} for value in values], tuple(tools)


def fresh_id(form: ToolFormat | None, entropy: bytes) -> str:
    """An id for a call that the model made, in the form that its own template takes back."""
    digest = hashlib.sha256(entropy).hexdigest()
    return digest[:SHORT_ID_LENGTH] if form is not None and form.has_short_ids else f"call_{digest[:24]}"


def _message(value: Mapping[str, Any], place: str) -> dict[str, Any]:
    role = value.get("role")
    if role not in _ROLES:
        raise bad_field(f"{place}.role", role, f"one of {', '.join(_ROLES)}")
    if value.get("images"):
        raise not_supported(f"{place}.images", "the model reads text only")
    message = {**value, "role": _AS_TEMPLATES_SAY.get(role, role)}
    message["content"] = _text_of(value.get("content"), f"{place}.content")
    # Templates ask whether there are any by asking whether the key is there.
    if calls := message.pop("tool_calls", None):
        message["tool_calls"] = _tool_calls(calls, f"{place}.tool_calls")
    for name in ("thinking", "reasoning", "reasoning_content"):
        if isinstance(thoughts := message.pop(name, None), str) and thoughts:
            message["reasoning_content"] = thoughts
    if tool_name := message.pop("tool_name", None):
        message["name"] = tool_name
    return message


def _tool_calls(values: Any, place: str) -> list[dict[str, Any]]:
    if not isinstance(values, list) or not all(isinstance(each, dict) for each in values):
        raise bad_field(place, values, "a list of objects")
    calls = []
    for index, value in enumerate(values):
        fields = Fields(value, f"{place}[{index}].")
        function = fields.fields("function")
        name, arguments = function.string("name"), function.raw("arguments")
        if not name:
            raise bad_field(f"{place}[{index}].function.name", function.raw("name"), "a name")
        if isinstance(arguments, str):
            arguments = _decoded(arguments)
        if arguments is not None and not isinstance(arguments, dict):
            allowed = "an object, or one as JSON text"
            raise bad_field(f"{place}[{index}].function.arguments", function.raw("arguments"), allowed)
        call = {"type": "function", "function": {"name": name, "arguments": arguments or {}}}
        calls.append(call | ({"id": fields.string("id")} if fields.has("id") else {}))
    return calls


def _decoded(text: str) -> Any:
    """The value of JSON text; the text itself where it is none, for its reader to refuse."""
    try:
        return msgspec.json.decode(text) if text.strip() else {}
    except (msgspec.DecodeError, RecursionError):
        return text


def _answered_id(message: Mapping[str, Any], unanswered: list[tuple[str, str]], form: ToolFormat | None) -> str:
    """The id that a result names; else that of the first call without a result, of its name where it has one."""
    given = message.get("tool_call_id")
    if isinstance(given, str) and given:
        wanted = _fitting_id(given, form)
        unanswered[:] = [each for each in unanswered if each[0] != wanted]
        return wanted
    name = message.get("name")
    for index, (call_id, call_name) in enumerate(unanswered):
        if name in (None, "", call_name):
            del unanswered[index]
            return call_id
    return _fitting_id("call_0", form)


def _fitting_id(given: str, form: ToolFormat | None) -> str:
    is_short = len(given) == SHORT_ID_LENGTH and given.isalnum()
    if form is None or not form.has_short_ids or is_short:
        return given
    return hashlib.sha256(given.encode()).hexdigest()[:SHORT_ID_LENGTH]


def _text_of(content: object, name: str) -> str:
    """A string, or a list of text parts; templates of text models want one string."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad_field(name, content, "a string or a list of text parts")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise bad_field(name, kind or part, "made of parts with type `text`: the model reads text only")
        texts.append(part["text"])
    return "".join(texts)
