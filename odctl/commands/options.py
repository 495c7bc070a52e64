"""Options that several verbs take, and how their values are read. No I/O."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import click
import msgspec

from agent.errors import FleetError

BAD_USAGE = "E109"
_AMOUNT = re.compile(r"^(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[a-zA-Z]*)$")
_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_BYTES = {"": 1.0, "b": 1.0, "k": 1e3, "kb": 1e3, "m": 1e6, "mb": 1e6, "g": 1e9, "gb": 1e9, "t": 1e12, "tb": 1e12}


def seconds_of(option: str, text: str) -> float:
    """`90`, `500ms`, `1s`, `10m`, `2h`. Raises FleetError E109."""
    return _amount(option, text, _SECONDS, what="span of time", example="30s, 10m or 2h")


def bytes_of(option: str, text: str) -> int:
    """`1GB`, `200MB` (powers of 1000), or a plain number of bytes. Raises FleetError E109."""
    return int(_amount(option, text, _BYTES, what="size", example="200MB or 1GB"))


def _amount(option: str, text: str, units: dict[str, float], *, what: str, example: str) -> float:
    found = _AMOUNT.match(text.strip())
    amount = float(found["number"]) * units.get(found["unit"].lower(), 0.0) if found is not None else 0.0
    if amount <= 0:
        raise FleetError(BAD_USAGE, f"{option} {text!r} is no {what} above 0", hint=f"write {example}")
    return amount


class ViewOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a verb that prints the fleet was asked to."""

    watches: bool = False
    every: str = "2s"
    is_wide: bool = False
    filter_text: str = ""
    sort: str = ""
    as_json: bool = False


def view_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of such verbs; the function gets them as `view`."""

    @functools.wraps(command)
    def with_view(
        *arguments: Any,
        watch: bool,
        every: str,
        wide: bool,
        filter_text: str,
        sort: str,
        as_json: bool,
        **others: Any,
    ) -> None:
        view = ViewOptions(
            watches=watch, every=every, is_wide=wide, filter_text=filter_text, sort=sort, as_json=as_json
        )
        command(*arguments, view=view, **others)

    options = (
        click.option("--watch", is_flag=True, help="Show it again and again until Ctrl-C."),
        click.option("--every", metavar="TIME", default="2s", show_default=True, help="With --watch: how often."),
        click.option("--wide", is_flag=True, help="All columns, however narrow the terminal is."),
        click.option("--filter", "filter_text", default="", help="As after `/` in the UI: words, !word, cpu>50."),
        click.option("--sort", metavar="COLUMN", default="", help="By a column; -COLUMN the other way round."),
        click.option("--json", "as_json", is_flag=True, help="Print it as JSON; with --watch, an object a line."),
    )
    decorated: Callable[..., None] = with_view
    for option in reversed(options):
        decorated = option(decorated)
    return decorated
