"""Every key and value of a TOML text is found where it stands."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.documents import KeyPath, parse_document
from agent.documents.scan import PositionIndex

EVERY_FORM = '''# comment with [brackets] and = signs
title = "a # not a comment"   # but this is
dotted . "key with space".last = 1
date = 1979-05-27 07:32:00   # blank inside
literal = 'C:\\path'
long = """
first "quoted" \\""" line
ends with two quotes"""""
multi = [
  1, # one
  [2, 3],
  { x = "}", y.z = [4] },
]
empty = []
nothing = {}

[servers]
[servers."10.0.0.1"]
port = 0x1f90
[[replica]]
name = "r0"
[[replica.stage]]
layers = [0, 8]
[[replica.stage]]
layers = [8, 16]
[replica.stage.extra]
on = true
[[replica]]
[[replica.stage]]
layers = [16, 24]
'''


def paths_of(value: Any, path: KeyPath = ()) -> list[tuple[KeyPath, Any]]:
    found: list[tuple[KeyPath, Any]] = []
    if isinstance(value, dict):
        for name, item in value.items():
            found += [((*path, name), item), *paths_of(item, (*path, name))]
    elif isinstance(value, list):
        for index, item in enumerate(value):
            found += [((*path, index), item), *paths_of(item, (*path, index))]
    return found


def text_at(text: str, line: int, column: int, length: int) -> str:
    return text.split("\n")[line - 1][column - 1 : column - 1 + length]


def test_every_path_of_every_form_has_a_position_that_reads_back() -> None:
    document = parse_document(EVERY_FORM, file="x.toml")
    found = paths_of(document.data)
    assert len(found) > 40
    index = PositionIndex(EVERY_FORM)
    assert set(index.values) == {path for path, _ in found}
    for path, value in found:
        span = index.values[path]
        shown = text_at(EVERY_FORM, span.line, span.column, span.length)
        if isinstance(value, bool | int | str) and not shown.startswith('"""'):
            assert tomllib.loads(f"v = {shown}")["v"] == value, path


def test_keys_of_nested_arrays_of_tables_are_told_apart() -> None:
    document = parse_document(EVERY_FORM, file="x.toml")
    lines = [document.span(("replica", r, "stage", s, "layers")).line for r, s in ((0, 0), (0, 1), (1, 0))]
    assert [EVERY_FORM.split("\n")[line - 1] for line in lines] == [
        "layers = [0, 8]",
        "layers = [8, 16]",
        "layers = [16, 24]",
    ]
    second = document.span(("replica", 0, "stage", 1, "layers", 1), of="value")
    assert text_at(EVERY_FORM, second.line, second.column, second.length) == "16"
    assert document.span(("replica", 0, "stage", 1, "extra", "on")).line == lines[1] + 2


def test_an_absent_key_is_shown_at_its_table() -> None:
    document = parse_document(EVERY_FORM, file="x.toml")
    span = document.span(("servers", "10.0.0.1", "name"))
    assert text_at(EVERY_FORM, span.line, span.column, span.length) == '[servers."10.0.0.1"]'


def test_windows_line_ends_do_not_move_columns() -> None:
    document = parse_document("a = 1\r\nb = [1,\r\n 22]\r\n", file="x.toml")
    span = document.span(("b", 1), of="value")
    assert (span.line, span.column, span.length) == (3, 2, 2)


scalars = st.one_of(
    st.integers(-(2**40), 2**40),
    st.booleans(),
    st.text(max_size=12),
    st.floats(allow_nan=False, allow_infinity=False),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=6), values, max_size=5))
def test_whatever_tomlkit_writes_is_indexed_completely(data: dict[str, Any]) -> None:
    tomlkit = pytest.importorskip("tomlkit")
    text = tomlkit.dumps(data)
    try:
        parsed = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return  # tomlkit writes lone carriage returns that TOML forbids
    index = PositionIndex(text)
    assert set(index.values) == {path for path, _ in paths_of(parsed)}
