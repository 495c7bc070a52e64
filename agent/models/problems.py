"""All that is wrong with a model's files, collected so that it is told at once. No I/O."""

from __future__ import annotations

from typing import Any

from agent.errors import FleetError

MAX_PROBLEMS_SHOWN = 6


class Problems:
    def __init__(self, where: str, code: str) -> None:
        self.where = where
        self.code = code
        self.found: list[str] = []

    def add(self, text: str) -> None:
        self.found.append(text)

    def raise_if_any(self, *, hint: str = "") -> None:
        if not self.found:
            return
        shown = "; ".join(self.found[:MAX_PROBLEMS_SHOWN])
        more = len(self.found) - MAX_PROBLEMS_SHOWN
        tail = f"; and {more} more" if more > 0 else ""
        raise FleetError(self.code, f"{self.where}: {shown}{tail}", hint=hint)


def is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def positive(config: dict[str, Any], key: str, problems: Problems, *, default: int | None = None) -> int:
    """The positive whole number under a key; whatever else is there is a problem."""
    value = config.get(key, default)
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    problems.add(f"{key} is missing" if value is None else f"{key} is {value!r}, a positive whole number expected")
    return 1  # never used: the problem raises once all others are found


def positive_number(config: dict[str, Any], key: str, problems: Problems, *, default: float) -> float:
    """The positive number under a key."""
    value = config.get(key, default)
    if is_positive(value):
        return float(value)
    problems.add(f"{key} is {value!r}, a positive number expected")
    return default
