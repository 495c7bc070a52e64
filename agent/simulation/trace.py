"""Requests as they came or are to come, as a file: JSON lines or CSV. Text in, values out. No I/O.

One request a line, with these fields; CSV names them in its first line. Blank lines are skipped. A file whose first
character is `{` is JSON lines. Order does not matter: requests are sorted by arrival.

| field | |
|---|---|
| `arrival_s` | seconds since the begin |
| `prompt_tokens` `output_tokens` | at least 1 each |
| `prefix_group` `prefix_tokens` | optional, both or neither: the first so many tokens are those of the group |
| `client` | optional: among clients slots are shared fairly |
| `ttft_s` `tpot_s` | optional: what a run measured; `tpot_s` leaves the first token out |
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable, Iterator

import msgspec

from agent.documents import (
    CONTRADICTION,
    MISSING_KEY,
    NOT_ALLOWED,
    SYNTAX,
    UNKNOWN_KEY,
    WRONG_TYPE,
    DocumentError,
    Problem,
    Span,
    closest,
)

MAX_REQUESTS = 1_000_000
MAX_TOKENS = 1_000_000
MAX_ARRIVAL_S = 366 * 24 * 3600.0
MAX_PROBLEMS = 20
"""Told at once: the lines of a file mostly share their trouble."""
_REQUIRED = ("arrival_s", "prompt_tokens", "output_tokens")
_SECONDS = ("arrival_s", "ttft_s", "tpot_s")
_TOKENS = ("prompt_tokens", "output_tokens", "prefix_tokens")


class TraceRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of a trace."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    prefix_group: str = ""
    prefix_tokens: int = 0
    client: str = ""
    ttft_s: float | None = None
    tpot_s: float | None = None


_FIELDS = TraceRequest.__struct_fields__
_Place = tuple[int, int]
"""Column and length in a line."""
_Cells = dict[str, tuple[object, _Place]]
_LINE_BEGIN = (1, 1)


class _Line(msgspec.Struct, frozen=True):
    file: str
    number: int
    text: str

    def problem(self, code: str, message: str, place: _Place = _LINE_BEGIN, *, hint: str = "") -> Problem:
        span = Span(line=self.number, column=place[0], length=place[1])
        return Problem(code=code, message=message, file=self.file, span=span, source_line=self.text, hint=hint)


def parse_trace(text: str, *, file: str) -> tuple[TraceRequest, ...]:
    """The requests in a trace's text by arrival. Raises DocumentError (E102 to E107) with the first `MAX_PROBLEMS`
    problems, each at its line and column.
    """
    text = text.removeprefix("\ufeff")
    # Not splitlines: a client's name may hold what Unicode takes for the end of a line.
    every = enumerate(text.replace("\r\n", "\n").split("\n"), 1)
    lines = [_Line(file, number, line) for number, line in every if line.strip()]
    problems: list[Problem] = []
    found: list[TraceRequest] = []
    rows = _json_rows if text.lstrip().startswith("{") else _csv_rows
    for line, cells in rows(lines, problems):
        troubles = list(_troubles(line, cells))
        if troubles:
            problems += troubles
        else:
            found.append(
                msgspec.convert({name: _value(name, value) for name, (value, _) in cells.items()}, TraceRequest)
            )
        if len(problems) >= MAX_PROBLEMS:
            break
    if not problems and not 1 <= len(found) <= MAX_REQUESTS:
        message = f"{len(found)} requests: from 1 to {MAX_REQUESTS} are possible"
        problems.append(_Line(file, 1, "").problem(NOT_ALLOWED, message))
    if problems:
        raise DocumentError(tuple(problems[:MAX_PROBLEMS]))
    return tuple(sorted(found, key=lambda each: each.arrival_s))


def trace_text(requests: Iterable[TraceRequest]) -> str:
    """JSON lines; `parse_trace` gives the same requests back."""
    return "".join(msgspec.json.encode(each).decode() + "\n" for each in requests)


def _json_rows(lines: list[_Line], problems: list[Problem]) -> Iterator[tuple[_Line, _Cells]]:
    for line in lines:
        try:
            values = json.loads(line.text)
        except json.JSONDecodeError as error:
            problems.append(line.problem(SYNTAX, f"no JSON: {error.msg}", (error.colno, 1)))
        except (RecursionError, ValueError) as error:
            problems.append(line.problem(SYNTAX, f"no JSON: {error}"))
        else:
            if isinstance(values, dict):
                yield line, {name: (value, _place_of(name, line)) for name, value in values.items()}
            else:
                problems.append(line.problem(WRONG_TYPE, "a line holds one JSON object"))
        if len(problems) >= MAX_PROBLEMS:
            return


def _place_of(name: str, line: _Line) -> _Place:
    """Of a field's value in a line of JSON; of the line where the name is spelt in escapes."""
    key = re.escape(json.dumps(name, ensure_ascii=False))
    match = re.search(key + r'\s*:\s*("(?:[^"\\]|\\.)*"|[^,}\s]*)', line.text)
    return (match.start(1) + 1, max(1, len(match[1]))) if match else _LINE_BEGIN


def _csv_rows(lines: list[_Line], problems: list[Problem]) -> Iterator[tuple[_Line, _Cells]]:
    names: list[str] | None = None
    for line in lines:
        try:
            [cells] = csv.reader([line.text], skipinitialspace=True, strict=True)
        except (csv.Error, ValueError) as error:
            problems.append(line.problem(SYNTAX, f"no line of CSV: {error}"))
            cells = []
        places = _cell_places(cells, line.text)
        if names is None:
            names = [cell.strip() for cell in cells]
            problems += _header_troubles(line, names, places)
            if problems:
                return
        elif cells and len(cells) != len(names):
            message = f"{len(cells)} values under the {len(names)} names of the first line"
            problems.append(line.problem(SYNTAX, message))
        elif cells:
            # An empty cell says nothing, as an absent field of JSON does.
            filled = {name: (cell, place) for name, cell, place in zip(names, cells, places, strict=True) if cell}
            yield line, dict(filled)
        if len(problems) >= MAX_PROBLEMS:
            return


def _header_troubles(line: _Line, names: list[str], places: list[_Place]) -> Iterator[Problem]:
    for index, (name, place) in enumerate(zip(names, places, strict=True)):
        if name not in _FIELDS:
            yield _unknown(line, name, place)
        elif name in names[:index]:
            yield line.problem(CONTRADICTION, f"`{name}` stands in the first line twice", place)
    for name in _REQUIRED:
        if name not in names:
            hint = f"the first line names the fields: {','.join(_FIELDS)}"
            yield line.problem(MISSING_KEY, f"`{name}` is missing", hint=hint)


def _cell_places(cells: list[str], text: str) -> list[_Place]:
    """Found from left to right."""
    places, begin = [], 0
    for cell in cells:
        at = max(text.find(cell, begin), begin) if cell else begin
        places.append((at + 1, max(1, len(cell))))
        comma = text.find(",", at + len(cell))
        begin = comma + 1 if comma >= 0 else len(text)
    return places


def _troubles(line: _Line, cells: _Cells) -> Iterator[Problem]:
    """All that is wrong with one request."""
    is_sound = True
    for name, (value, place) in cells.items():
        if name not in _FIELDS:
            is_sound = False
            yield _unknown(line, name, place)
            continue
        try:
            _value(name, value)
        except (TypeError, ValueError) as error:
            is_sound = False
            code = WRONG_TYPE if isinstance(error, TypeError) else NOT_ALLOWED
            yield line.problem(code, f"`{name}` {error}", place)
    for name in _REQUIRED:
        if name not in cells:
            is_sound = False
            yield line.problem(MISSING_KEY, f"`{name}` is missing")
    if is_sound:
        yield from _contradictions(line, cells)


def _contradictions(line: _Line, cells: _Cells) -> Iterator[Problem]:
    if ("prefix_group" in cells) != ("prefix_tokens" in cells):
        _, place = cells.get("prefix_group") or cells["prefix_tokens"]
        message = "`prefix_group` and `prefix_tokens` go together: whose first tokens, and how many"
        yield line.problem(CONTRADICTION, message, place)
    elif "prefix_tokens" in cells:
        value, place = cells["prefix_tokens"]
        shared, prompt = _tokens(value), _tokens(cells["prompt_tokens"][0])
        if shared > prompt:
            yield line.problem(CONTRADICTION, f"{shared} tokens are shared of a prompt of {prompt}", place)


def _unknown(line: _Line, name: str, place: _Place) -> Problem:
    hint = closest(name, _FIELDS) or f"known: {', '.join(_FIELDS)}"
    return line.problem(UNKNOWN_KEY, f"unknown field `{name}`", place, hint=hint)


def _value(name: str, value: object) -> object:
    """Raises TypeError for another kind of value, ValueError for one out of bounds."""
    if name in _SECONDS:
        return _seconds(name, value)
    if name in _TOKENS:
        return _tokens(value)
    if not isinstance(value, str):
        raise TypeError(f"is {_shown(value)}, which is no text")
    if name == "prefix_group" and not value:
        raise ValueError("is empty: leave it out where nothing is shared")
    return value


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(f"is {_shown(value)}, which is no number of seconds")
    try:
        seconds = float(value)
    except (ValueError, OverflowError):
        raise TypeError(f"is {_shown(value)}, which is no number of seconds") from None
    if not math.isfinite(seconds) or not 0 <= seconds <= MAX_ARRIVAL_S:
        raise ValueError(f"is {_shown(value)}: from 0 to {MAX_ARRIVAL_S:g} s are possible")
    if name != "arrival_s" and seconds == 0:
        raise ValueError(f"is {_shown(value)}: leave out what was not measured")
    return seconds


def _tokens(value: object) -> int:
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            raise TypeError(f"is {_shown(value)}, which is no number of tokens") from None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"is {_shown(value)}, which is no number of tokens")
    if not 1 <= value <= MAX_TOKENS:
        raise ValueError(f"is {value}: from 1 to {MAX_TOKENS} are possible")
    return value


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."
