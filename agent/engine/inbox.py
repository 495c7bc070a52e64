"""Orders from the I/O thread to the engine thread: steps in order and within a limit, links before everything."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from agent.wire.rank import LinkRank, Step, StepDone, StepFailed

MAX_QUEUED_STEPS = 64


class Replies(Protocol):
    """Where a step's result goes. May be called from any thread; a result nobody waits for is dropped."""

    def post(self, message: StepDone | StepFailed) -> None: ...


@dataclass(frozen=True, kw_only=True)
class StepOrder:
    step: Step
    checksum: int
    """Of the step as it was received: ranks that execute together compare it."""
    replies: Replies


@dataclass(frozen=True, kw_only=True)
class LinkOrder:
    """Build these links, or with `request` None go without.

    `on_done` is called once, from any thread: done or failed (the status board says), or never to be begun.
    """

    request: LinkRank | None
    deadline: float
    on_done: Callable[[], object]


class Inbox:
    def __init__(self, *, on_room: Callable[[], object]) -> None:
        self._on_room = on_room
        self._changed = threading.Condition()
        self._steps: deque[StepOrder] = deque()
        self._link: LinkOrder | None = None
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._steps)

    def put_step(self, order: StepOrder) -> bool:
        """False when the queue is full: try again after `on_room`."""
        with self._changed:
            if len(self._steps) >= MAX_QUEUED_STEPS:
                return False
            if not self._is_closed:
                self._steps.append(order)
            self._changed.notify()
            return True

    def put_link(self, order: LinkOrder) -> tuple[StepOrder, ...]:
        """Replaces an order that was not begun, and drops the queued steps: they belong to the old links."""
        with self._changed:
            dropped = tuple(self._steps)
            self._steps.clear()
            superseded, self._link = self._link, order
            if self._is_closed:
                superseded, self._link = order, None
            self._changed.notify()
        if superseded is not None:
            superseded.on_done()
        return dropped

    def close(self) -> None:
        """No order is taken any more; those that wait are dropped, those that come are too."""
        with self._changed:
            self._is_closed = True
            self._steps.clear()
            pending, self._link = self._link, None
            self._changed.notify()
        if pending is not None:
            pending.on_done()

    def take(self) -> StepOrder | LinkOrder | None:
        """The next order, waiting for one; None once the inbox is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._link is not None or bool(self._steps))
            if self._is_closed:
                return None
            if self._link is not None:
                link, self._link = self._link, None
                return link
            order = self._steps.popleft()
            had_no_room = len(self._steps) == MAX_QUEUED_STEPS - 1
        if had_no_room:
            self._on_room()
        return order
