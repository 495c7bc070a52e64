"""The supervisor's channel: a unix socket that answers whatever the engine thread is doing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from agent.wire.framing import StreamClosed, decode, encode_frame, read_frame
from agent.wire.rank import RankRequest, RankStatus, StopRank

Answer = Callable[[RankRequest], Awaitable[RankStatus]]


@asynccontextmanager
async def serve_control(path: str, answer: Answer, *, on_stop: Callable[[], None]) -> AsyncIterator[None]:
    """Listen on `path` (mode 0600), one request at a time per connection, any number of connections.

    `on_stop` is called once a StopRank has been answered.
    """

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = decode(await read_frame(reader), RankRequest)
                writer.write(encode_frame(await answer(request)))
                await writer.drain()
                if isinstance(request, StopRank):
                    on_stop()
        except (StreamClosed, ConnectionError, msgspec.DecodeError):
            pass  # it left, or does not speak our protocol: either way this connection is over
        finally:
            writer.close()

    _remove(path)
    previous = os.umask(0o177)  # so that the socket is never open to others, not even for a moment
    try:
        server = await asyncio.start_unix_server(converse, path)
    finally:
        os.umask(previous)
    try:
        yield
    finally:
        server.close()
        _remove(path)


def _remove(path: str) -> None:
    Path(path).unlink(missing_ok=True)
