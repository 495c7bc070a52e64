"""Kinds of option values that several verbs take. No I/O."""

from __future__ import annotations

import re

import click

_AMOUNT = re.compile(r"^(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[a-zA-Z]*)$")
_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "k": 10**3, "m": 10**6, "g": 10**9}


def seconds_of(text: str) -> float:
    """`90`, `500ms`, `1s`, `10m`, `2h`. Raises ValueError with what would be one."""
    return _amount(text, _SECONDS, "a span of time above 0: 30s, 10m, 2h")


def bytes_of(text: str) -> int:
    """`1GB`, `200MB` (powers of 1000), or a plain number of bytes. Raises ValueError with what would be one."""
    return int(_amount(text, {unit: float(size) for unit, size in _BYTES.items()}, "a size above 0: 200MB, 1GB"))


def _amount(text: str, units: dict[str, float], what: str) -> float:
    found = _AMOUNT.match(text.strip())
    if found is None or found["unit"].lower() not in units:
        raise ValueError(f"{text!r} is not {what}")
    amount = float(found["number"]) * units[found["unit"].lower()]
    if amount <= 0:
        raise ValueError(f"{text!r} is not {what}")
    return amount


def seconds_option(ctx: click.Context, parameter: click.Parameter, value: str | None) -> float | None:  # noqa: ARG001
    """A callback for options that take a span of time."""
    try:
        return None if value is None else seconds_of(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def bytes_option(ctx: click.Context, parameter: click.Parameter, value: str | None) -> int | None:  # noqa: ARG001
    """A callback for options that take a size."""
    try:
        return None if value is None else bytes_of(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
