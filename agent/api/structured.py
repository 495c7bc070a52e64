"""What a client says about the form of its answer, as a compiled grammar: both protocols' fields."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from agent.api.deployment import Face
from agent.api.fields import Fields
from agent.api.refusal import Refusal, bad_field
from agent.serving.grammar import GrammarRefused, TokenGrammar, any_json_object


async def ollama_format(fields: Fields, face: Face) -> TokenGrammar | None:
    """`format`: "json" or a JSON schema (Ollama's `runner` takes the same two)."""
    value = fields.raw("format")
    if value in (None, ""):
        return None
    if value == "json":
        return await compile_text(face, any_json_object(), name="format")
    if not isinstance(value, dict):
        raise Refusal(
            400, f'invalid format: {value!r}; expected "json" or a valid JSON Schema object', param="format"
        )
    return await compile_schema(face, value, name="format", is_strict=False)


async def openai_format(fields: Fields, face: Face) -> TokenGrammar | None:
    """`response_format`: text, json_object or json_schema; only a strict schema is held to the letter."""
    form = fields.fields("response_format")
    kind = form.string("type", "text")
    if kind == "text":
        return None
    if kind == "json_object":
        return await compile_text(face, any_json_object(), name="response_format")
    if kind != "json_schema":
        raise bad_field("response_format.type", kind, "one of text, json_object, json_schema")
    described = form.fields("json_schema")
    schema = described.raw("schema")
    place = "response_format.json_schema.schema"
    if not isinstance(schema, dict):
        raise bad_field(place, schema, "a JSON schema")
    return await compile_schema(face, schema, name=place, is_strict=described.boolean("strict", False))


async def compile_schema(face: Face, schema: Mapping[str, Any], *, name: str, is_strict: bool) -> TokenGrammar:
    try:
        return await asyncio.to_thread(face.grammars.compile_schema, schema, is_strict=is_strict)
    except GrammarRefused as refused:
        raise _refusal(refused, name) from refused


async def compile_text(face: Face, grammar: str, *, name: str) -> TokenGrammar:
    """A grammar in llguidance's own words."""
    try:
        return await asyncio.to_thread(face.grammars.compile, grammar)
    except GrammarRefused as refused:
        raise _refusal(refused, name) from refused


def _refusal(refused: GrammarRefused, name: str) -> Refusal:
    place = name + refused.place
    return Refusal(400, f"`{place}` cannot be compiled: {refused}", param=place, code="invalid_schema")
