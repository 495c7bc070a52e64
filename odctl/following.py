"""An apply followed on a terminal: its progress as lines on stderr, and what Ctrl-C means meanwhile."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from agent.errors import FleetError
from agent.wire.agent import ApplyEvent, ApplyPhase
from agent.wire.history import Cause
from odctl.apply import ApplyPreview, abort_apply, apply_plan
from odctl.fleet import Fleet
from odctl.fleet.operator import operator_name

T = TypeVar("T")
MAX_WAITING = 16
"""Presses that nobody has looked at yet; more say nothing new."""


class Presses:
    """Ctrl-C as something to wait for. `count` is of all so far, also those that somebody has looked at."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[None] = asyncio.Queue(MAX_WAITING)
        self.count = 0

    def press(self) -> None:
        self.count += 1
        if not self._waiting.full():
            self._waiting.put_nowait(None)

    async def get(self) -> None:
        """Returns at the next press that nobody has looked at yet."""
        await self._waiting.get()


@contextmanager
def ctrl_c(*, and_sigterm: bool = False) -> Iterator[Presses]:
    """Ctrl-C, within, is a press and no exception. Afterwards it is what it was before.

    With `and_sigterm` that signal is a press, too: for a verb that must not leave behind what it has begun.
    """
    presses = Presses()
    loop, before = asyncio.get_running_loop(), signal.getsignal(signal.SIGINT)
    loop.add_signal_handler(signal.SIGINT, presses.press)
    if and_sigterm:
        loop.add_signal_handler(signal.SIGTERM, presses.press)
    try:
        yield presses
    finally:
        if and_sigterm:
            loop.remove_signal_handler(signal.SIGTERM)
        loop.remove_signal_handler(signal.SIGINT)
        if before is not None:
            signal.signal(signal.SIGINT, before)


async def until_pressed(work: Coroutine[Any, Any, T], presses: Presses) -> T:
    """The work's outcome; a press ends it and raises KeyboardInterrupt."""
    outcome: list[T | Exception] = []

    async def perform() -> None:
        try:
            outcome.append(await work)
        except Exception as error:
            outcome.append(error)

    async with asyncio.TaskGroup() as group:
        working, pressing = group.create_task(perform()), group.create_task(presses.get())
        await asyncio.wait({working, pressing}, return_when=asyncio.FIRST_COMPLETED)
        working.cancel()
        pressing.cancel()
    if not outcome:
        raise KeyboardInterrupt
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


async def apply_interruptibly(
    fleet: Fleet,
    preview: ApplyPreview,
    *,
    presses: Presses,
    detach: bool = False,
    stop_after: ApplyPhase | None = None,
    cause: Cause = "apply",
    reason: str = "",
) -> ApplyEvent | None:
    """Follow the apply to its end. Ctrl-C once: roll back; twice: let go. None when detached.

    Raises KeyboardInterrupt when it was rolled back, E901 when it was let go, and what the controller raised.
    """
    holder = operator_name()
    show = ProgressLines()
    is_handed_over = asyncio.Event()
    was_aborted = False

    async def on_event(event: ApplyEvent) -> None:
        show(event)
        if event.phase not in ("prepare", "roll_back") and event.state != "failed":
            is_handed_over.set()

    async def follow() -> ApplyEvent | FleetError:
        try:
            return await apply_plan(
                fleet, preview, on_event=on_event, holder=holder, stop_after=stop_after, cause=cause, reason=reason
            )
        except FleetError as error:
            return error

    async with asyncio.TaskGroup() as group:
        following = group.create_task(follow())
        waiting: set[asyncio.Task[Any]] = {following, group.create_task(presses.get())}
        if detach:
            waiting.add(group.create_task(_wait(is_handed_over)))
        while not following.done():
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if following.done() or (detach and is_handed_over.is_set()) or was_aborted:
                break
            was_aborted = True
            sys.stderr.write("interrupted: asking the controller to roll back (again: let go)\n")
            sys.stderr.write(await abort_apply(fleet, preview.plan, holder=holder) + "\n")
            waiting = {following, group.create_task(presses.get())}
        for task in waiting:
            task.cancel()
    if following.cancelled():
        if detach and not was_aborted:
            return None
        raise FleetError(
            "E901", "let go: the controller goes on by itself", hint="odctl status shows where it stands"
        )
    outcome = following.result()
    if isinstance(outcome, FleetError):
        if was_aborted:
            raise KeyboardInterrupt
        raise outcome
    return outcome


class ProgressLines:
    """Phases and hosts on stderr, a line per change, with seconds since the start."""

    def __init__(self) -> None:
        self._started_at = time.monotonic()

    def __call__(self, event: ApplyEvent) -> None:
        at = time.monotonic() - self._started_at
        host = f" {event.host}" if event.host else ""
        message = f": {event.message}" if event.message else ""
        if event.state in {"progress", "failed"} or event.phase == "roll_back":
            amount = f" {event.done}/{event.total}" if event.total and event.done != event.total else ""
            sys.stderr.write(f"{at:6.1f}s  {event.phase:<9}{host} {event.state}{amount}{message}\n")
        elif event.state == "started":
            sys.stderr.write(f"{at:6.1f}s  {event.phase}\n")
        sys.stderr.flush()


async def _wait(event: asyncio.Event) -> None:
    await event.wait()
