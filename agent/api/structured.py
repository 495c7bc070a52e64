"""What a client says about the form of its answer: both protocols' fields."""

from __future__ import annotations

from agent.api.fields import Fields
from agent.api.refusal import Refusal, bad_field
from agent.api.turn import WantedCalls, WantedJson
from agent.serving.tools import Tool


def ollama_format(fields: Fields) -> WantedJson | None:
    """`format`: "json" or a JSON schema (Ollama's `runner` takes the same two)."""
    value = fields.raw("format")
    if value in (None, ""):
        return None
    if value == "json":
        return WantedJson(schema={"type": "object"}, is_strict=True, place="format")
    if not isinstance(value, dict):
        raise Refusal(
            400, f'invalid format: {value!r}; expected "json" or a valid JSON Schema object', param="format"
        )
    return WantedJson(schema=value, is_strict=False, place="format")


def openai_format(fields: Fields) -> WantedJson | None:
    """`response_format`: text, json_object or json_schema; only a strict schema is held to the letter."""
    form = fields.fields("response_format")
    kind = form.string("type", "text")
    if kind == "text":
        return None
    if kind == "json_object":
        return WantedJson(schema={"type": "object"}, is_strict=True, place="response_format")
    if kind != "json_schema":
        raise bad_field("response_format.type", kind, "one of text, json_object, json_schema")
    described = form.fields("json_schema")
    schema = described.raw("schema")
    place = "response_format.json_schema.schema"
    if not isinstance(schema, dict):
        raise bad_field(place, schema, "a JSON schema")
    return WantedJson(schema=schema, is_strict=described.boolean("strict", False), place=place)


def tool_choice(fields: Fields, described: list[dict[str, object]], tools: tuple[Tool, ...]) -> WantedCalls:
    """OpenAI's `tool_choice` and `parallel_tool_calls`. Without tools on offer neither means anything."""
    value = fields.raw("tool_choice")
    several = fields.boolean("parallel_tool_calls", True)
    if not tools:
        if value not in (None, "none", "auto"):
            raise bad_field("tool_choice", value, "left out unless there are `tools`")
        return WantedCalls()
    if value == "none":
        return WantedCalls()
    forced: tuple[Tool, ...] = ()
    if value == "required":
        forced = tools
    elif isinstance(value, dict):
        name = fields.fields("tool_choice").fields("function").string("name")
        forced, several = tuple(tool for tool in tools if tool.name == name), False
        if not forced:
            allowed = "one of " + ", ".join(tool.name for tool in tools)
            raise bad_field("tool_choice.function.name", name, allowed)
    elif value not in (None, "auto"):
        raise bad_field("tool_choice", value, "one of none, auto, required, or a function by its name")
    return WantedCalls(described=described, tools=tools, forced=forced, makes_several=several)
