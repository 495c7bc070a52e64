"""Types and values in words, for messages. No I/O."""

from __future__ import annotations

import datetime
import re
from typing import Any

from msgspec import inspect

_SHOWN_CHARACTERS = 40
_CAMEL_STEP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def noun_of(struct_class: type) -> str:
    """What a reader calls this table: the class's `document_noun`, else its name in words."""
    noun = getattr(struct_class, "document_noun", "")
    return noun or _CAMEL_STEP.sub(" ", struct_class.__name__).lower()


def describe_type(kind: inspect.Type) -> str:
    """`an integer from 1 to 65535`, `one of "ssh", "local"`, `a list of strings`."""
    match kind:
        case inspect.Metadata():
            return str((kind.extra or {}).get("form") or describe_type(kind.type))
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return f"an integer{_range_words(kind)}"
        case inspect.FloatType():
            return f"a number{_range_words(kind)}"
        case inspect.StrType():
            return f"a string{_length_words(kind)}" + (f" matching {kind.pattern}" if kind.pattern else "")
        case inspect.LiteralType():
            return _choice_words(kind.values)
        case inspect.EnumType():
            return _choice_words(tuple(member.value for member in kind.cls))
        case inspect.StructType():
            return f"a table ({noun_of(kind.cls)})"
        case inspect.DictType():
            return f"a table of {_plural(kind.value_type)}"
        case inspect.TupleType():
            if len(set(map(describe_type, kind.item_types))) == 1:
                return f"a list of {len(kind.item_types)} {_plural(kind.item_types[0])}"
            return f"a list of {len(kind.item_types)}: {', '.join(map(describe_type, kind.item_types))}"
        case inspect.CollectionType():
            return f"a list of {_plural(kind.item_type)}{_length_words(kind)}"
        case inspect.UnionType():
            members = [member for member in kind.types if not isinstance(member, inspect.NoneType)]
            return " or ".join(map(describe_type, members))
        case inspect.DateTimeType():
            return "a date and time"
        case inspect.DateType():
            return "a date"
        case inspect.TimeType():
            return "a time"
        case _:
            return "a value"


def describe_value(value: Any) -> str:
    """`the string "22"`, `the integer 7`, `a list of 3`, `a table`."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            shown = value if len(value) <= _SHOWN_CHARACTERS else value[:_SHOWN_CHARACTERS] + "…"
            return f'the string "{shown}"'
        case int():
            return f"the integer {value}"
        case float():
            return f"the number {value}"
        case list():
            return f"a list of {len(value)}"
        case dict():
            return "a table"
        case datetime.datetime() | datetime.date() | datetime.time():
            return f"the date or time {value}"
        case _:
            return repr(value)


def _plural(kind: inspect.Type) -> str:
    match kind:
        case inspect.Metadata():
            return _plural(kind.type)
        case inspect.StrType():
            return "strings"
        case inspect.IntType():
            return "integers"
        case inspect.FloatType():
            return "numbers"
        case inspect.StructType():
            return f"tables ({noun_of(kind.cls)})"
        case inspect.CollectionType() | inspect.TupleType():
            return "lists"
        case _:
            return f"values, each {describe_type(kind)}"


def _range_words(kind: inspect.IntType | inspect.FloatType) -> str:
    lowest = f"{kind.ge:g}" if kind.ge is not None else f"above {kind.gt:g}" if kind.gt is not None else ""
    highest = f"{kind.le:g}" if kind.le is not None else f"below {kind.lt:g}" if kind.lt is not None else ""
    if kind.ge is not None and kind.le is not None:
        words = f" from {kind.ge} to {kind.le}"
    elif lowest and highest:
        words = f", {lowest if kind.gt is not None else 'at least ' + lowest}, "
        words += highest if kind.lt is not None else f"at most {highest}"
    elif lowest:
        words = f" {lowest}" if kind.gt is not None else f" of at least {lowest}"
    elif highest:
        words = f" {highest}" if kind.lt is not None else f" of at most {highest}"
    else:
        words = ""
    return words + (f", a multiple of {kind.multiple_of:g}" if kind.multiple_of is not None else "")


def _length_words(kind: inspect.CollectionType | inspect.StrType) -> str:
    if kind.min_length == 1 and kind.max_length is None:
        return " (not empty)"
    if kind.min_length is not None and kind.max_length is not None:
        return f" (length {kind.min_length} to {kind.max_length})"
    if kind.min_length is not None:
        return f" (length at least {kind.min_length})"
    return f" (length at most {kind.max_length})" if kind.max_length is not None else ""


def _choice_words(values: tuple[Any, ...]) -> str:
    shown = [f'"{value}"' if isinstance(value, str) else str(value) for value in values]
    return shown[0] if len(shown) == 1 else f"one of {', '.join(shown)}"
