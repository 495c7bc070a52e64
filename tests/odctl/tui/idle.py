"""Waiting until the app has done what it was told, in less time than Textual's pilot takes."""

from __future__ import annotations

import asyncio
import time

SLICE_S = 0.004
BUSY_SHARE = 0.25
"""Of a slice; an app that has more to do than its clocks spends the whole of it."""


async def wait_for_idle(min_sleep: float = 2 * SLICE_S, max_sleep: float = 1.0) -> None:
    """Until this process has worked little for a slice of time, at most for `max_sleep`.

    Textual's own one sleeps for 20 ms and wants less than 1 ms of work in them, twice a key: hundreds of tests
    press thousands of keys, and on a slow machine an app that only keeps its clocks is never idle by that measure.
    """
    begun = time.monotonic()
    while True:
        slice_begun, cpu_begun = time.monotonic(), time.process_time()
        await asyncio.sleep(SLICE_S)
        now = time.monotonic()
        is_idle = time.process_time() - cpu_begun < BUSY_SHARE * SLICE_S and now - slice_begun < 2 * SLICE_S
        if now - begun >= max_sleep or (is_idle and now - begun >= min(min_sleep, 2 * SLICE_S)):
            return
