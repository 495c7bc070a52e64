"""Which rows are shown, and in which order: an index over a table, never a copy of it.

A filter is terms separated by spaces, all of which must hold: a regular expression, `!` before one to turn it
round, `-l key=value` for a label, and `column>number` (also `<`, `>=`, `<=`, `=`) for a figure.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence

import msgspec

from odctl.tui.model.table import Rows, Value

_COMPARISON = re.compile(r"^(?P<column>[a-z_]+)(?P<sign><=|>=|<|>|=)(?P<number>-?\d+(\.\d+)?)%?$")
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
}


class FilterError(ValueError):
    """A filter that means nothing; its message says why."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    column: str
    sign: str
    number: float


class Pattern(msgspec.Struct, frozen=True, kw_only=True):
    regex: re.Pattern[str]
    is_inverse: bool


class Label(msgspec.Struct, frozen=True, kw_only=True):
    key: str
    value: str


Term = Comparison | Pattern | Label


class Sort(msgspec.Struct, frozen=True, kw_only=True):
    column: str
    is_descending: bool = False


def parse_filter(text: str, columns: Sequence[str]) -> tuple[Term, ...]:
    """Terms of a filter. Raises FilterError."""
    words = text.split()
    terms: list[Term] = []
    while words:
        word = words.pop(0)
        if word == "-l":
            terms.append(_label(words.pop(0) if words else ""))
        elif found := _COMPARISON.match(word):
            if found["column"] not in columns:
                raise FilterError(f"no column `{found['column']}`: {', '.join(columns)}")
            terms.append(Comparison(column=found["column"], sign=found["sign"], number=float(found["number"])))
        else:
            terms.append(_pattern(word))
    return tuple(terms)


def row_order(rows: Rows, *, terms: Sequence[Term] = (), sort: Sort | None = None) -> list[int]:
    """Row numbers that pass every term, sorted; ties, and rows without a value, stay in the order of keys."""
    order = list(range(len(rows.keys)))
    for term in terms:
        order = _kept(rows, order, term)
    if sort is None:
        return order
    values = rows.values(sort.column)
    known = [row for row in order if values[row] is not None]
    unknown = [row for row in order if values[row] is None]
    _sort_by(known, values, is_descending=sort.is_descending)
    return known + unknown


def next_sort(columns: Sequence[str], sort: Sort | None, step: int) -> Sort:
    """The sort by the column `step` to the right of the present one, in the same direction."""
    if sort is None or sort.column not in columns:
        return Sort(column=columns[0])
    index = (columns.index(sort.column) + step) % len(columns)
    return Sort(column=columns[index], is_descending=sort.is_descending)


def _kept(rows: Rows, order: list[int], term: Term) -> list[int]:
    match term:
        case Comparison(column=column, sign=sign, number=number):
            values, holds = rows.values(column), _OPERATORS[sign]
            return [row for row in order if isinstance(value := values[row], int | float) and holds(value, number)]
        case Pattern(regex=regex, is_inverse=is_inverse):
            return [row for row in order if bool(regex.search(rows.text(row))) != is_inverse]
        case Label(key=key, value=value):
            return [row for row in order if rows.labels(row).get(key) == value]


def _sort_by(order: list[int], values: Sequence[Value], *, is_descending: bool) -> None:
    """Values of one kind, as columns nearly always hold, are compared without a call a row."""
    try:
        order.sort(key=values.__getitem__, reverse=is_descending)  # type: ignore[arg-type] # or the TypeError below
    except TypeError:
        order.sort(key=lambda row: _sortable(values[row]), reverse=is_descending)


def _sortable(value: Value) -> tuple[float, str]:
    return (value, "") if isinstance(value, int | float) else (0.0, value or "")


def _label(word: str) -> Label:
    key, sign, value = word.partition("=")
    if not key or not sign:
        raise FilterError("`-l` needs key=value")
    return Label(key=key, value=value)


def _pattern(word: str) -> Pattern:
    is_inverse = word.startswith("!")
    try:
        regex = re.compile(word.removeprefix("!"), re.IGNORECASE)
    except re.error as error:
        raise FilterError(f"`{word}`: {error}") from error
    return Pattern(regex=regex, is_inverse=is_inverse)
