"""A TCP link that a test can make go silent: nothing is closed, nothing arrives any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class SilentProxy:
    def __init__(self, port: int) -> None:
        self.port = 0
        self._target = port
        self._open = asyncio.Event()
        self._open.set()

    def go_silent(self) -> None:
        self._open.clear()

    def recover(self) -> None:
        self._open.set()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, far_writer))
                group.create_task(self._pump(far_reader, writer))
        except asyncio.CancelledError:
            # asyncio.streams asks a cancelled handler for its exception, and logs that there is none.
            return

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while block := await reader.read(65536):
                await self._open.wait()
                writer.write(block)
                await writer.drain()
        except ConnectionError:
            pass  # one side hung up
        finally:
            writer.close()


@asynccontextmanager
async def silent_proxy(port: int) -> AsyncIterator[SilentProxy]:
    proxy = SilentProxy(port)
    server = await asyncio.start_server(proxy.carry, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    async with server:
        yield proxy
        proxy.recover()
