"""Which rows are shown, and in which order: an index over a table, never a copy of it.

A filter is terms separated by spaces, all of which must hold; `!` before one turns it round:

- `word`: a part of the row's text, or a regular expression
- `key=value`, `key!=value`: a column's text, or else a label of the inventory (also `-l key=value`)
- `column>number`, also `<`, `>=`, `<=`, `=`, `!=`: a figure; percentages are 0 to 100
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection, Sequence

import msgspec

from odctl.tui.model.table import Rows, Value
from odctl.tui.model.text import line_text

_RELATION = re.compile(r"^(?P<key>[\w./-]+)(?P<sign>!=|<=|>=|<|>|=)(?P<value>.*)$")
_NUMBER = re.compile(r"^(?P<number>-?\d+(\.\d+)?)%?$")
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "!=": operator.ne,
}
ALIASES = {"util": "gpu"}
"""Names for a column where a table lacks one of that name: a device's utilisation is a host's GPU column."""
CELL_WIDTH = 60
"""Cells that are searched for a text are made this wide, so that nothing of them is cut."""


class FilterError(ValueError):
    """A filter that means nothing; its message says why."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """`text` is the number as typed: what a column of texts is held against."""

    column: str
    sign: str
    number: float
    text: str = ""
    is_inverse: bool = False


class CellText(msgspec.Struct, frozen=True, kw_only=True):
    """`state=stale`: a part of what a cell says, whatever the case."""

    column: str
    text: str
    is_inverse: bool = False


class Pattern(msgspec.Struct, frozen=True, kw_only=True):
    regex: re.Pattern[str]
    is_inverse: bool


class Label(msgspec.Struct, frozen=True, kw_only=True):
    key: str
    value: str
    is_inverse: bool = False


Term = Comparison | CellText | Pattern | Label


class Sort(msgspec.Struct, frozen=True, kw_only=True):
    column: str
    is_descending: bool = False


def parse_filter(text: str, columns: Sequence[str], labels: Collection[str] = ()) -> tuple[Term, ...]:
    """Terms of a filter over a table with these columns and these label keys. Raises FilterError."""
    words = text.split()
    terms: list[Term] = []
    while words:
        word = words.pop(0)
        if word == "-l":
            terms.append(_label(words.pop(0) if words else ""))
            continue
        is_inverse, bare = word.startswith("!"), word.removeprefix("!")
        if found := _RELATION.match(bare):
            terms.append(_relation(found, columns, labels, is_inverse=is_inverse))
        else:
            terms.append(_pattern(bare, is_inverse=is_inverse))
    return tuple(terms)


def label_keys(rows: Rows) -> frozenset[str]:
    """Keys of every label that a row has."""
    return frozenset(key for row in range(len(rows.keys)) for key in rows.labels(row))


def row_order(rows: Rows, *, terms: Sequence[Term] = (), sort: Sort | None = None) -> Sequence[int]:
    """Row numbers that pass every term, sorted; ties, and rows without a value, stay in the order of keys."""
    order: Sequence[int] = range(len(rows.keys))
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


def _kept(rows: Rows, order: Sequence[int], term: Term) -> list[int]:
    holds = _test(rows, term)
    return [row for row in order if holds(row) != term.is_inverse]


def _test(rows: Rows, term: Term) -> Callable[[int], bool]:
    """What one row must pass. A row without a figure passes no comparison, and so every inverse one."""
    match term:
        case Comparison(column=column, sign=sign, number=number, text=text):
            values, compare = rows.values(column), _OPERATORS[sign]

            def holds(row: int) -> bool:
                value = values[row]
                if isinstance(value, str):
                    return (text in value) == (sign == "=") if sign in ("=", "!=") else False
                return value is not None and compare(value, number)

            return holds
        case CellText(column=column, text=text):
            return lambda row: text in line_text(rows.cell(row, column, CELL_WIDTH)).lower()
        case Pattern(regex=regex):
            return lambda row: regex.search(rows.text(row)) is not None
        case Label(key=key, value=value):
            return lambda row: rows.labels(row).get(key) == value


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


def _relation(
    found: re.Match[str], columns: Sequence[str], labels: Collection[str], *, is_inverse: bool
) -> Comparison | CellText | Label:
    key, sign, value = found["key"], found["sign"], found["value"]
    column = key if key in columns else ALIASES.get(key, key)
    if not value:
        raise FilterError(f"`{key}{sign}` needs a value")
    if column not in columns:
        if key in labels and sign in ("=", "!="):
            return Label(key=key, value=value, is_inverse=is_inverse != (sign == "!="))
        known = f"columns are {', '.join(columns)}" + (
            f"; labels are {', '.join(sorted(labels))}" if labels else ""
        )
        if key in labels:
            raise FilterError(f"`{key}` is a label: write {key}={value}")
        raise FilterError(f"no column or label `{key}`: {known}")
    if number := _NUMBER.match(value):
        return Comparison(
            column=column, sign=sign, number=float(number["number"]), text=value, is_inverse=is_inverse
        )
    if sign not in ("=", "!="):
        raise FilterError(f"`{value}` is no number: write {key}{sign}50, or {key}=TEXT")
    return CellText(column=column, text=value.lower(), is_inverse=is_inverse != (sign == "!="))


def _pattern(word: str, *, is_inverse: bool) -> Pattern:
    if not word:
        raise FilterError("`!` needs a word behind it")
    try:
        regex = re.compile(word, re.IGNORECASE)
    except re.error as error:
        raise FilterError(f"`{word}`: {error}; a backslash takes a sign as it is") from error
    return Pattern(regex=regex, is_inverse=is_inverse)
