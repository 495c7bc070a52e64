"""Progress of a long operation, for any number of followers; a late one sees it from the start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from agent.wire.agent import ApplyEvent


class ProgressLog:
    """Events of one apply or destroy. Bounded by what emits them: a line a phase, host and rank."""

    def __init__(self) -> None:
        self._events: list[ApplyEvent] = []
        self._changed = asyncio.Condition()
        self.is_over = False

    async def emit(self, event: ApplyEvent, *, is_last: bool = False) -> None:
        async with self._changed:
            self._events.append(event)
            self.is_over = is_last
            self._changed.notify_all()

    async def follow(self) -> AsyncIterator[ApplyEvent]:
        seen = 0
        while True:
            async with self._changed:
                while len(self._events) == seen and not self.is_over:
                    await self._changed.wait()
                fresh = self._events[seen:]
                is_over = self.is_over
            for event in fresh:
                yield event
            seen += len(fresh)
            if is_over and seen == len(self._events):
                return
