"""The gateway's channel: TCP under mutual TLS 1.3. Steps come in and go to the inbox, results go out."""

from __future__ import annotations

import asyncio
import logging
import ssl
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec

from agent.engine.inbox import Inbox, StepOrder
from agent.engine.tls import server_context
from agent.errors import ErrorDetail
from agent.wire.framing import StreamClosed, decode, encode_frame, read_frame
from agent.wire.rank import (
    GatewayMessage,
    OpenStep,
    RankMessage,
    RankStatus,
    Step,
    StepDone,
    StepFailed,
    StepOpened,
    StepRefused,
    TlsFiles,
)

log = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT_S = 10.0


class StepSession:
    """One gateway's connection. `post` may be called from any thread; everything else is the I/O thread's."""

    def __init__(self, writer: asyncio.StreamWriter, *, generation: int) -> None:
        self.generation = generation
        self.is_retired = False
        """Its steps are not taken any more; it still learns what became of those that were."""
        self._writer = writer
        self._loop = asyncio.get_running_loop()

    def post(self, message: StepDone | StepFailed) -> None:
        try:
            self._loop.call_soon_threadsafe(self.write, message)
        except RuntimeError:
            log.debug("result after the end", extra={"step": message.step_id})  # the loop is closed: we are leaving

    def write(self, message: RankMessage) -> None:
        if not self._writer.is_closing():
            self._writer.write(encode_frame(message))

    def close(self) -> None:
        self.is_retired = True
        self._writer.close()


class StepChannel:
    """At most one session at a time: a gateway that connects anew replaces the one that was."""

    def __init__(self, *, tls: TlsFiles, inbox: Inbox, read_status: Callable[[], RankStatus]) -> None:
        self._tls = tls
        self._inbox = inbox
        self._read_status = read_status
        self._session: StepSession | None = None
        self._has_room = asyncio.Event()

    def wake(self) -> None:
        """The inbox has room again."""
        self._has_room.set()

    def retire_session(self) -> None:
        """Take no further step of this gateway: the links that its steps are meant for are going."""
        if self._session is not None:
            self._session.is_retired = True
            self._has_room.set()

    def close_session(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    @asynccontextmanager
    async def serve(self, address: str) -> AsyncIterator[int]:
        """Listen on an ephemeral port of `address`; yields the port."""
        server = await asyncio.start_server(
            self._converse,
            address,
            0,
            ssl=_lasting_context(self._tls),
            ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
        )
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            self.close_session()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session: StepSession | None = None
        try:
            session = await self._open(reader, writer)
            while session is not None:
                await self._receive_step(session, await read_frame(reader))
        except (StreamClosed, ConnectionError, TimeoutError, ssl.SSLError, msgspec.DecodeError) as error:
            log.info("gateway left", extra={"reason": str(error)})
        finally:
            if self._session is session:
                self._session = None
            writer.close()

    async def _open(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> StepSession | None:
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            hello = decode(await read_frame(reader), GatewayMessage)
        status = self._read_status()
        refusal = _refusal(hello, status)
        if refusal is not None:
            writer.write(encode_frame(StepRefused(error=refusal)))
            await writer.drain()
            return None
        self.close_session()
        session = self._session = StepSession(writer, generation=status.generation)
        session.write(StepOpened(rank_id=status.rank_id, generation=status.generation))
        return session

    async def _receive_step(self, session: StepSession, body: bytes) -> None:
        message = decode(body, GatewayMessage)
        if not isinstance(message, Step):
            raise StreamClosed("a gateway opens a connection once")
        order = StepOrder(step=message, checksum=zlib.crc32(body), replies=session)
        while not session.is_retired and not self._inbox.put_step(order):
            self._has_room.clear()
            if self._inbox.put_step(order):  # room was made before the flag fell
                return
            await self._has_room.wait()


def _lasting_context(tls: TlsFiles) -> ssl.SSLContext:
    """For a server that outlives its leaf: certificates are read anew for each connection."""
    context = server_context(tls)

    def take_current_leaf(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        # leaves live for days and ranks for months: a rotated one must be presented without a restart
        connection.context = server_context(tls)

    context.sni_callback = take_current_leaf
    return context


def _refusal(hello: OpenStep | Step, status: RankStatus) -> ErrorDetail | None:
    problem = ""
    if not isinstance(hello, OpenStep):
        problem = "a gateway must open the connection before it sends steps"
    elif (hello.deployment, hello.generation) != (status.deployment, status.generation):
        problem = (
            f"it serves {status.deployment} generation {status.generation}, "
            f"not {hello.deployment} generation {hello.generation}"
        )
    elif status.state != "linked":
        why = f": {status.error.message}" if status.error is not None else ""
        problem = f"it is {status.state}, not linked{why}"
    if not problem:
        return None
    return ErrorDetail(code="E801", message=f"rank {status.rank_id} refused the gateway: {problem}")
