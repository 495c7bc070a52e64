"""Waiting for a condition, with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], bool], *, timeout_s: float = 10.0) -> None:
    """Return once the condition holds. Raises TimeoutError at the deadline."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - conditions of other tasks have no event to wait on
            await asyncio.sleep(0.01)
