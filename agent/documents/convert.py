"""A document's data -> a typed value, with every problem at its place. No I/O.

msgspec's own conversion stops at the first mistake and knows no lines; this walk goes on, builds what is
sound, and says where the rest stands.
"""

from __future__ import annotations

import datetime
import difflib
import enum
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeVar

from msgspec import inspect

from agent.documents.describe import describe_type, describe_value, noun_of
from agent.documents.document import Document, format_key_path
from agent.documents.problem import (
    MISSING_KEY,
    NOT_ALLOWED,
    UNKNOWN_KEY,
    WRONG_TYPE,
    DocumentError,
    Problem,
)
from agent.documents.scan import KeyPath

T = TypeVar("T")
ExtraCheck = Callable[[Document, T], Iterable[Problem]]


class _Unsound(enum.Enum):
    """Stands for a value whose problems are already reported."""

    UNSOUND = enum.auto()


UNSOUND = _Unsound.UNSOUND


def convert(document: Document, struct_type: type[T], *, extra_checks: Sequence[ExtraCheck[T]] = ()) -> T:
    """The document as a `struct_type` (a msgspec Struct). Raises DocumentError with all problems at once.

    Unknown keys are errors. `extra_checks` see the typed value, and run even when parts of the document are
    wrong, on what is sound: a wrong optional key counts as absent. What they say of a table that is already
    known to be wrong is dropped, because it would be a consequence and not a cause.
    """
    walk = _Walk(document)
    value = walk.build(document.data, inspect.type_info(struct_type), ())
    problems = list(walk.problems)
    if value is not UNSOUND:
        wrong_tables = {format_key_path(path) for path in walk.wrong_tables}
        for check in extra_checks:
            problems += [found for found in check(document, value) if not _is_within(found.path, wrong_tables)]
    if problems:
        raise DocumentError(tuple(problems))
    assert isinstance(value, struct_type), "an unsound value without a problem"
    return value


def closest(word: str, candidates: Iterable[str]) -> str:
    """``did you mean `replicas`?``, or empty when nothing is near."""
    near = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.6)
    return f"did you mean `{near[0]}`?" if near else ""


def _is_within(path: str, tables: set[str]) -> bool:
    return any(path == table or path.startswith((f"{table}.", f"{table}[")) for table in tables)


class _Walk:
    def __init__(self, document: Document) -> None:
        self.problems: list[Problem] = []
        self.wrong_paths: list[KeyPath] = []
        self.wrong_tables: set[KeyPath] = set()
        """Struct tables below the root with a problem in them."""
        self._document = document

    def build(self, value: Any, kind: inspect.Type, path: KeyPath) -> Any:
        """The typed value, or UNSOUND after its problems were reported."""
        match kind:
            case inspect.Metadata():
                return self._build_described(value, kind, path)
            case inspect.AnyType():
                return value
            case inspect.StructType():
                return self._build_struct(value, kind, path)
            case inspect.DictType():
                return self._build_dict(value, kind, path)
            case inspect.UnionType():
                return self._build_union(value, kind, path)
            case inspect.TupleType():
                return self._build_fixed_tuple(value, kind, path)
            case inspect.CollectionType():
                return self._build_collection(value, kind, path)
            case inspect.LiteralType():
                return self._build_choice(value, list(kind.values), kind, path)
            case inspect.EnumType():
                choice = self._build_choice(value, [member.value for member in kind.cls], kind, path)
                return UNSOUND if choice is UNSOUND else kind.cls(choice)
            case _:
                return self._build_scalar(value, kind, path)

    def _build_described(self, value: Any, kind: inspect.Metadata, path: KeyPath, *, of_key: bool = False) -> Any:
        """A type with `extra={"form": …}`: its form in words stands for every trouble with it."""
        form = (kind.extra or {}).get("form")
        trial = _Walk(self._document)
        inner = kind.type
        built = trial._build_scalar(value, inner, path) if of_key else trial.build(value, inner, path)
        if not trial.problems:
            return built
        if form is None:
            self._adopt(trial)
        else:
            code = trial.problems[0].code
            what = f"{describe_value(value)} is not {form}"
            self._report(code, what, path, of_key=of_key, label=f"expected {form}")
        return UNSOUND

    def _build_struct(self, value: Any, kind: inspect.StructType, path: KeyPath) -> Any:
        if not isinstance(value, dict):
            return self._wrong_type(value, kind, path)
        fields = {field.encode_name: field for field in kind.fields}
        is_sound = True
        reported_before = len(self.problems)
        arguments: dict[str, Any] = {}
        for name in value:
            if name not in fields:
                self._report(
                    UNKNOWN_KEY,
                    f"unknown key `{name}`",
                    (*path, name),
                    of_key=True,
                    label=f"not a {noun_of(kind.cls)} setting",
                    hint=closest(name, fields) or f"settings here: {_listed(fields)}",
                )
        for name, field in fields.items():
            if name in value:
                built = self.build(value[name], field.type, (*path, name))
                if built is not UNSOUND:
                    arguments[field.name] = built
                elif field.required:
                    is_sound = False
            elif field.required:
                is_sound = False
                self._report(
                    MISSING_KEY,
                    f"missing key `{name}`",
                    (*path, name),
                    label=f"this {noun_of(kind.cls)} needs `{name}`, {describe_type(field.type)}",
                    hint=self._near_miss(name, value, fields),
                )
        if path and len(self.problems) > reported_before:
            self.wrong_tables.add(path)
        if not is_sound:
            return UNSOUND
        try:
            return kind.cls(**arguments)
        except ValueError as error:  # a __post_init__ that refuses
            self._report(NOT_ALLOWED, str(error), path)
            return UNSOUND

    @staticmethod
    def _near_miss(name: str, value: dict[str, Any], fields: dict[str, Any]) -> str:
        unknown = [key for key in value if key not in fields]
        near = difflib.get_close_matches(name, unknown, n=1, cutoff=0.6)
        return f"`{near[0]}` looks like it" if near else ""

    def _build_dict(self, value: Any, kind: inspect.DictType, path: KeyPath) -> Any:
        if not isinstance(value, dict):
            return self._wrong_type(value, kind, path)
        result: dict[Any, Any] = {}
        for name, item in value.items():
            key = self._build_key(name, kind.key_type, (*path, name))
            built = self.build(item, kind.value_type, (*path, name))
            if key is not UNSOUND and built is not UNSOUND:
                result[key] = built
        return self._check_length(result, kind, path)

    def _build_key(self, name: str, kind: inspect.Type, path: KeyPath) -> Any:
        if isinstance(kind, inspect.Metadata):
            return self._build_described(name, kind, path, of_key=True)
        return self._build_scalar(name, kind, path, of_key=True)

    def _build_union(self, value: Any, kind: inspect.UnionType, path: KeyPath) -> Any:
        members = [member for member in kind.types if not isinstance(member, inspect.NoneType)]
        trials: list[_Walk] = []
        for member in members:
            trial = _Walk(self._document)
            built = trial.build(value, member, path)
            if not trial.problems:
                return built
            # A member of the right shape with a mistake inside tells more than "none of these fits".
            if not any(problem.code == WRONG_TYPE and wrong == path for problem, wrong in trial.found()):
                trials.append(trial)
        if len(members) == 1 or len(trials) == 1:
            chosen = trials[0] if trials else _Walk(self._document)
            if not trials:
                chosen.build(value, members[0], path)
            self._adopt(chosen)
            return UNSOUND
        return self._wrong_type(value, kind, path)

    def _adopt(self, trial: _Walk) -> None:
        self.problems += trial.problems
        self.wrong_paths += trial.wrong_paths
        self.wrong_tables |= trial.wrong_tables

    def found(self) -> Iterable[tuple[Problem, KeyPath]]:
        return zip(self.problems, self.wrong_paths, strict=True)

    def _build_fixed_tuple(self, value: Any, kind: inspect.TupleType, path: KeyPath) -> Any:
        if not isinstance(value, list):
            return self._wrong_type(value, kind, path)
        if len(value) != len(kind.item_types):
            self._report(
                NOT_ALLOWED,
                f"`{_last_key(path)}` has {len(value)} values, but must be {describe_type(kind)}",
                path,
                label=f"expected {len(kind.item_types)} values",
            )
            return UNSOUND
        items = [
            self.build(item, item_type, (*path, index))
            for index, (item, item_type) in enumerate(zip(value, kind.item_types, strict=True))
        ]
        return UNSOUND if any(item is UNSOUND for item in items) else tuple(items)

    def _build_collection(self, value: Any, kind: inspect.CollectionType, path: KeyPath) -> Any:
        if not isinstance(value, list):
            return self._wrong_type(value, kind, path)
        items = [self.build(item, kind.item_type, (*path, index)) for index, item in enumerate(value)]
        if any(item is UNSOUND for item in items):
            return UNSOUND
        match kind:
            case inspect.VarTupleType():
                result: Any = tuple(items)
            case inspect.SetType():
                result = set(items)
            case inspect.FrozenSetType():
                result = frozenset(items)
            case _:
                result = items
        return self._check_length(result, kind, path)

    def _build_choice(self, value: Any, choices: list[Any], kind: inspect.Type, path: KeyPath) -> Any:
        if any(value == choice and type(value) is type(choice) for choice in choices):
            return value
        if type(value) not in {type(choice) for choice in choices}:
            return self._wrong_type(value, kind, path)
        is_word = isinstance(value, str)
        self._report(
            NOT_ALLOWED,
            f"`{_last_key(path)}` is {describe_value(value)}, but must be {describe_type(kind)}",
            path,
            label="not one of these" if is_word else "not allowed here",
            hint=closest(value, [choice for choice in choices if isinstance(choice, str)]) if is_word else "",
        )
        return UNSOUND

    def _build_scalar(self, value: Any, kind: inspect.Type, path: KeyPath, *, of_key: bool = False) -> Any:
        match kind:
            case inspect.BoolType():
                is_right = isinstance(value, bool)
            case inspect.IntType():
                is_right = isinstance(value, int) and not isinstance(value, bool)
            case inspect.FloatType():
                is_right = isinstance(value, int | float) and not isinstance(value, bool)
            case inspect.StrType():
                is_right = isinstance(value, str)
            case inspect.DateTimeType():
                is_right = isinstance(value, datetime.datetime)
            case inspect.DateType():
                is_right = isinstance(value, datetime.date) and not isinstance(value, datetime.datetime)
            case inspect.TimeType():
                is_right = isinstance(value, datetime.time)
            case _:
                raise AssertionError(f"{kind} has no form in TOML")
        if not is_right:
            return self._wrong_type(value, kind, path)
        if isinstance(kind, inspect.FloatType):
            value = float(value)
        if isinstance(kind, inspect.IntType | inspect.FloatType) and not _is_in_range(value, kind):
            what = f"`{_last_key(path)}` is {value}, but must be {describe_type(kind)}"
            self._report(NOT_ALLOWED, what, path, label="out of range")
            return UNSOUND
        if isinstance(kind, inspect.StrType):
            if kind.pattern is not None and not re.search(kind.pattern, value):
                what = f"{describe_value(value)} must be {describe_type(kind)}"
                self._report(NOT_ALLOWED, what, path, of_key=of_key, label="not of this form")
                return UNSOUND
            return self._check_length(value, kind, path)
        return value

    def _check_length(
        self, value: Any, kind: inspect.CollectionType | inspect.DictType | inspect.StrType, path: KeyPath
    ) -> Any:
        too_short = kind.min_length is not None and len(value) < kind.min_length
        too_long = kind.max_length is not None and len(value) > kind.max_length
        if not too_short and not too_long:
            return value
        what = f"`{_last_key(path)}` has length {len(value)}, but must be {describe_type(kind)}"
        self._report(NOT_ALLOWED, what, path, label="too short" if too_short else "too long")
        return UNSOUND

    def _wrong_type(self, value: Any, kind: inspect.Type, path: KeyPath) -> _Unsound:
        what = f"`{_last_key(path)}` is {describe_value(value)}, but must be {describe_type(kind)}"
        self._report(WRONG_TYPE, what, path, label=f"expected {describe_type(kind)}")
        return UNSOUND

    def _report(
        self, code: str, message: str, path: KeyPath, *, of_key: bool = False, label: str = "", hint: str = ""
    ) -> None:
        of: Literal["key", "value"] = "key" if of_key else "value"
        self.wrong_paths.append(path)
        self.problems.append(self._document.problem(code, message, path, of=of, label=label, hint=hint))


def _is_in_range(value: float, kind: inspect.IntType | inspect.FloatType) -> bool:
    return (
        (kind.ge is None or value >= kind.ge)
        and (kind.gt is None or value > kind.gt)
        and (kind.le is None or value <= kind.le)
        and (kind.lt is None or value < kind.lt)
        and (kind.multiple_of is None or value % kind.multiple_of == 0)
    )


def _last_key(path: KeyPath) -> str:
    """`layers[1]` for an element, `port` for a value, `document` for the whole."""
    for index in range(len(path) - 1, -1, -1):
        if isinstance(path[index], str):
            return format_key_path(path[index:])
    return "document"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
