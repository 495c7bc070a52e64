"""The seam that every carrier fills: a standalone group of ranks with ordered messages between any two of them.

A broken carrier raises RuntimeError from whatever is blocked on it and from everything after; it is never mended,
only closed and built anew under a later generation.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from torch import Tensor, bfloat16, dtype, float16, float32
from torch._C._distributed_c10d import AllreduceOptions, Work

STEP_TIMEOUT_S = 120.0
"""Longest wait on another rank inside a step. A backstop only: the supervisor judges hangs by progress."""


def wide(kind: dtype) -> dtype:
    """What values of this dtype are added up in."""
    return float32 if kind in (bfloat16, float16) else kind


class Pending(Protocol):
    """A message under way. Its tensor must not change before `wait` has returned."""

    def wait(self) -> None: ...


class Group(Protocol):
    """What torch's process groups offer and its type stubs leave out."""

    def send(self, tensors: list[Tensor], to_index: int, tag: int, /) -> Work: ...

    def recv(self, tensors: list[Tensor], from_index: int, tag: int, /) -> Work: ...

    def allreduce(self, tensors: list[Tensor], options: AllreduceOptions, /) -> Work: ...

    def abort(self) -> None: ...


class Carrier(Protocol):
    """Messages between two ranks arrive in the order sent. `abort` may be called from any thread, at any time."""

    def send(self, tensor: Tensor, to_index: int, *, is_followed: bool = False) -> Pending:
        """Without waiting for the receiver. `is_followed`: another message for it is sent next, at once."""
        ...

    def receive(self, shape: tuple[int, ...], kind: dtype, from_index: int) -> Tensor: ...

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum over all members, equal to the bit on every one of them.

        16-bit floats are added up in float32 and rounded once.
        """
        ...

    def round_trip_s(self) -> float | None:
        """As the kernel measures it, of the slowest connection; None where there is none to ask. May be called from
        any thread, also after `close`.
        """
        ...

    def abort(self) -> None:
        """Make every call that is blocked on this carrier raise at once."""
        ...

    def close(self) -> None: ...


class LinkCounter:
    """What went over one link since it was built. Written by the engine thread alone, read by any."""

    def __init__(self, name: str, carrier: Carrier) -> None:
        self.name = name
        self.sent_bytes = 0
        self.received_bytes = 0
        self.wait_s = 0.0
        self._carrier = carrier

    @property
    def round_trip_s(self) -> float | None:
        return self._carrier.round_trip_s()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as spent blocked on the link."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.wait_s += time.perf_counter() - begun
