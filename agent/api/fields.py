"""Typed reading of a JSON body: what is missing gets its default, what is wrong is named with what is allowed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from agent.api.refusal import Refusal, bad_field

MAX_BODY_BYTES = 32 * 1024 * 1024


class Fields:
    """A JSON object and how it is called in messages: `options.` for a nested one. null counts as missing."""

    def __init__(self, values: Mapping[str, Any], prefix: str = "") -> None:
        self._values = values
        self._prefix = prefix

    def has(self, name: str) -> bool:
        return self._values.get(name) is not None

    def raw(self, name: str) -> Any:
        return self._values.get(name)

    def number(self, name: str, default: float, *, at_least: float = -math.inf, at_most: float = math.inf) -> float:
        value = self._values.get(name)
        if value is None:
            return default
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or not at_least <= value <= at_most:
            raise bad_field(self._prefix + name, value, "a number" + _bounds(at_least, at_most))
        return float(value)

    def integer(self, name: str, default: int, *, at_least: int | None = None, at_most: int | None = None) -> int:
        value = self._values.get(name)
        if value is None:
            return default
        low = -math.inf if at_least is None else at_least
        high = math.inf if at_most is None else at_most
        is_whole = isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer()
        if not is_whole or not low <= value <= high:
            raise bad_field(self._prefix + name, value, "a whole number" + _bounds(low, high))
        return int(value)

    def boolean(self, name: str, default: bool) -> bool:
        value = self._values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise bad_field(self._prefix + name, value, "true or false")
        return value

    def string(self, name: str, default: str = "") -> str:
        value = self._values.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise bad_field(self._prefix + name, value, "a string")
        return value

    def stop(self, *, at_most: int) -> tuple[str, ...]:
        """`stop`: one string or several."""
        value = self._values.get("stop")
        several = [value] if isinstance(value, str) else [] if value is None else value
        if (
            not isinstance(several, list)
            or len(several) > at_most
            or not all(isinstance(each, str) and each for each in several)
        ):
            raise bad_field(
                self._prefix + "stop", value, f"a string or a list of up to {at_most} strings, none of them empty"
            )
        return tuple(several)

    def objects(self, name: str) -> list[Mapping[str, Any]]:
        value = self._values.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            raise bad_field(self._prefix + name, value, "a list of objects")
        return value

    def fields(self, name: str, defaults: Mapping[str, Any] | None = None) -> Fields:
        """A nested object with what it does not say taken from `defaults`; an empty one when missing."""
        value = self._values.get(name)
        if value is not None and not isinstance(value, dict):
            raise bad_field(self._prefix + name, value, "an object")
        return Fields({**(defaults or {}), **(value or {})}, f"{self._prefix}{name}.")

    def tokens(self, name: str, *, vocab_size: int) -> tuple[int, ...]:
        value = self._values.get(name)
        if value is None:
            return ()
        return token_ids(self._prefix + name, value, vocab_size=vocab_size)


def token_ids(name: str, value: Any, *, vocab_size: int) -> tuple[int, ...]:
    """A list of token ids of this model, or 400."""
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    if not is_list or not all(type(each) is int and 0 <= each < vocab_size for each in value):
        raise bad_field(name, value, f"a list of token ids from 0 to {vocab_size - 1}")
    return tuple(value)


async def read_fields(request: HttpRequest) -> Fields:
    """The body as a JSON object, whatever its content type says. Raises Refusal."""
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY_BYTES:
                raise Refusal(413, f"the body is larger than {MAX_BODY_BYTES} bytes")
    except ClientDisconnect as error:
        raise Refusal(400, "the client left before its body was complete") from error
    if not body:
        raise Refusal(400, "missing request body")
    try:
        values = msgspec.json.decode(bytes(body))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refusal(400, f"the body is not JSON: {error}") from error
    except RecursionError as error:
        raise Refusal(400, "the body is nested too deeply") from error
    if not isinstance(values, dict):
        raise Refusal(400, f"the body must be a JSON object, got {type(values).__name__}")
    return Fields(values)


def _bounds(low: float, high: float) -> str:
    match math.isfinite(low), math.isfinite(high):
        case True, True:
            return f" from {low:g} to {high:g}"
        case True, False:
            return f" of at least {low:g}"
        case False, True:
            return f" of at most {high:g}"
        case _:
            return ""
