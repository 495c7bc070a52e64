"""The fleet on a thread and event loop of its own, so that SSH, HTTP and decoding never make the screen stutter."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Protocol, TypeVar, runtime_checkable

import msgspec

from agent.errors import FleetError
from odctl.fleet import Fleet, FleetSnapshot, WriteGuard, open_fleet, watch_fleet
from odctl.fleet.clock import Clock
from odctl.inventory import Inventory, Learning

T = TypeVar("T")
STREAM_BUFFER = 256
"""Items of a stream that wait for the screen; then the sender waits."""
STOP_TIMEOUT_S = 10.0


class _End(msgspec.Struct, frozen=True, kw_only=True):
    error: FleetError | None = None


class Feed(Protocol):
    """Where the screens get the fleet from."""

    @property
    def cluster(self) -> str: ...

    @property
    def learning(self) -> Learning:
        """What the inventory says of learning."""
        ...

    def start(
        self, on_snapshot: Callable[[FleetSnapshot], None], on_failure: Callable[[BaseException], None]
    ) -> None:
        """Begin. Both are called from another thread; after `on_failure`, which is a bug's, nothing comes."""
        ...

    async def call(self, work: Callable[[Fleet], Awaitable[T]]) -> T:
        """Run `work` beside the fleet and wait for it here; being cancelled here cancels it there."""
        ...

    def stream(self, work: Callable[[Fleet], AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
        """Items of a generator that runs beside the fleet."""
        ...

    async def stop(self) -> None: ...


@runtime_checkable
class GuardedFeed(Protocol):
    """A feed through which a fleet could be changed. One that cannot change anything needs no guard."""

    guard: WriteGuard


class FleetFeed:
    """A Feed over the hosts of an inventory. Its guard is locked until somebody unlocks it."""

    def __init__(self, inventory: Inventory, clock: Clock, *, guard: WriteGuard | None = None) -> None:
        self.guard = guard or WriteGuard()
        self.cluster = inventory.cluster
        self.learning = inventory.learning
        self._inventory = inventory
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._fleet: Fleet | None = None
        self._watch: asyncio.Task[None] | None = None
        self._is_ready = threading.Event()
        self._thread: threading.Thread | None = None

    def start(
        self, on_snapshot: Callable[[FleetSnapshot], None], on_failure: Callable[[BaseException], None]
    ) -> None:
        def run() -> None:
            try:
                asyncio.run(self._run(on_snapshot))
            except Exception as error:  # the thread's last line of defence: without it the screen would stand still
                on_failure(error)

        self._thread = threading.Thread(target=run, name="fleet", daemon=True)
        self._thread.start()

    async def call(self, work: Callable[[Fleet], Awaitable[T]]) -> T:
        loop, fleet = await self._ready()

        async def run() -> T:
            with self.guard.working():
                return await work(fleet)

        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(run(), loop))

    async def stream(self, work: Callable[[Fleet], AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
        queue: asyncio.Queue[T | _End] = asyncio.Queue(STREAM_BUFFER)
        async with asyncio.TaskGroup() as group:
            pumping = group.create_task(self._pump(work, queue))
            try:
                while not isinstance(item := await queue.get(), _End):
                    yield item
            except GeneratorExit:
                # The group would wrap it; closing an iterator is no error.
                return
            finally:
                pumping.cancel()
        if item.error is not None:
            raise item.error

    async def _pump(self, work: Callable[[Fleet], AsyncGenerator[T, None]], queue: asyncio.Queue[T | _End]) -> None:
        here = asyncio.get_running_loop()

        async def pump(fleet: Fleet) -> None:
            async with aclosing(work(fleet)) as items:
                async for item in items:
                    await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(queue.put(item), here))

        try:
            await self.call(pump)
        except FleetError as error:
            await queue.put(_End(error=error))
        else:
            await queue.put(_End())

    async def stop(self) -> None:
        """Stop watching and close every connection, within a limit."""
        if self._thread is None or self._loop is None or self._watch is None:
            return
        try:
            self._loop.call_soon_threadsafe(self._watch.cancel)
        except RuntimeError:
            return  # the loop is closed: the thread has ended by itself
        await asyncio.to_thread(self._thread.join, STOP_TIMEOUT_S)

    async def _ready(self) -> tuple[asyncio.AbstractEventLoop, Fleet]:
        await asyncio.to_thread(self._is_ready.wait, STOP_TIMEOUT_S)
        if self._loop is None or self._fleet is None:
            raise FleetError("E901", "the fleet's thread did not start")
        return self._loop, self._fleet

    async def _run(self, on_snapshot: Callable[[FleetSnapshot], None]) -> None:
        self._loop, self._watch = asyncio.get_running_loop(), asyncio.current_task()
        try:
            async with open_fleet(self._inventory, guard=self.guard) as fleet:
                self._fleet = fleet
                self._is_ready.set()
                async with aclosing(watch_fleet(fleet, self._clock)) as snapshots:
                    async for snapshot in snapshots:
                        on_snapshot(snapshot)
        except asyncio.CancelledError:
            # `stop` cancelled this task, which is the thread's whole work: it ends here.
            return
