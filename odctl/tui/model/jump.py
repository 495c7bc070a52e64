"""Letters for the places that a jump can lead to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

LETTERS = "asdfghjklqwertyuiopzxcvbnm"
"""The home row first. Digits are the tabs'."""


class JumpTarget(NamedTuple):
    """A place in cells from the screen's top left corner, and the letter over it."""

    letter: str
    x: int
    y: int


def lettered(places: Sequence[tuple[int, int]]) -> tuple[JumpTarget, ...]:
    """A letter for each (x, y), in the order of reading; further places than there are letters get none."""
    order = sorted(places, key=lambda place: (place[1], place[0]))
    return tuple(JumpTarget(letter, x, y) for letter, (x, y) in zip(LETTERS, order, strict=False))
