"""All SSH of this process runs on one event loop in one thread of its own, so that no UI stutters for it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

CLEANUP_S = 8.0
"""How long a cancelled caller waits for the remote side to be stopped."""

_starting = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def ssh_loop() -> asyncio.AbstractEventLoop:
    """The shared loop; its thread starts at the first call and ends with the process."""
    global _loop  # noqa: PLW0603 - one loop a process is the point
    with _starting:
        if _loop is None:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="ssh", daemon=True).start()
            _loop = loop
        return _loop


async def on_ssh_loop(work: Coroutine[Any, Any, T]) -> T:
    """Await `work` on the SSH loop, from any loop. Cancelling cancels it there and waits for its clean-up."""
    ended: concurrent.futures.Future[None] = concurrent.futures.Future()

    async def run() -> T:
        try:
            return await work
        finally:
            ended.set_result(None)

    running = asyncio.run_coroutine_threadsafe(run(), ssh_loop())
    try:
        return await asyncio.wrap_future(running)
    except asyncio.CancelledError:
        # Without this wait, a command line that exits now would leave its remote command alive.
        await asyncio.wait([asyncio.wrap_future(ended)], timeout=CLEANUP_S)
        raise
