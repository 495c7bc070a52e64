"""HTTP to an agent's unix socket, through whatever reaches its host. No local listener, nothing left on disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import httpcore
import httpx
from httpcore import SOCKET_OPTION, AsyncNetworkBackend, AsyncNetworkStream

from agent.errors import FleetError
from odctl.ssh.transport import ByteStream, Transport

CONNECT_S = 30.0
"""An SSH handshake may be part of the first request."""
MAX_CONNECTIONS = 16

_HTTPX_ERRORS: dict[type[Exception], type[httpx.TransportError]] = {
    httpcore.ConnectTimeout: httpx.ConnectTimeout,
    httpcore.ReadTimeout: httpx.ReadTimeout,
    httpcore.WriteTimeout: httpx.WriteTimeout,
    httpcore.PoolTimeout: httpx.PoolTimeout,
    httpcore.ConnectError: httpx.ConnectError,
    httpcore.ReadError: httpx.ReadError,
    httpcore.WriteError: httpx.WriteError,
    httpcore.LocalProtocolError: httpx.LocalProtocolError,
    httpcore.RemoteProtocolError: httpx.RemoteProtocolError,
}


def agent_client(transport: Transport, socket_path: str, *, timeout_s: float = 60.0) -> httpx.AsyncClient:
    """A client for the agent on `socket_path` of the transport's host; URLs are paths (`/v1/facts`).

    Use it on one event loop. A host that cannot be reached, or a socket that is not there, raises FleetError
    E2xx; trouble after that is httpx's own. Streams that rest for long need `timeout=None` at the request.
    """
    return httpx.AsyncClient(
        base_url="http://agent",
        transport=_HttpOverStream(transport, socket_path),
        timeout=httpx.Timeout(timeout_s, connect=CONNECT_S),
        # The operator's proxy settings have no say on the way through SSH.
        trust_env=False,
    )


class _HttpOverStream(httpx.AsyncBaseTransport):
    def __init__(self, transport: Transport, socket_path: str) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            max_connections=MAX_CONNECTIONS, network_backend=_Backend(transport, socket_path)
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert isinstance(request.stream, httpx.AsyncByteStream)
        url = httpcore.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        )
        with _in_words_of_httpx():
            response = await self._pool.handle_async_request(
                httpcore.Request(
                    method=request.method,
                    url=url,
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        return httpx.Response(
            status_code=response.status,
            headers=response.headers,
            stream=_Body(response),
            extensions=response.extensions,
        )

    async def __aenter__(self) -> Self:
        await self._pool.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self._pool.__aexit__(exc_type, exc_value, traceback)

    async def aclose(self) -> None:
        await self._pool.aclose()


class _Body(httpx.AsyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _in_words_of_httpx():
            async for block in self._response.aiter_stream():
                yield block

    async def aclose(self) -> None:
        with _in_words_of_httpx():
            await self._response.aclose()


class _Backend(AsyncNetworkBackend):
    """Whatever address the URL has: there is one socket behind this client."""

    def __init__(self, transport: Transport, socket_path: str) -> None:
        self._transport = transport
        self._socket_path = socket_path

    async def connect_tcp(
        self,
        host: str,  # noqa: ARG002 - httpcore's signature
        port: int,  # noqa: ARG002
        timeout: float | None = None,
        local_address: str | None = None,  # noqa: ARG002
        socket_options: Iterable[SOCKET_OPTION] | None = None,  # noqa: ARG002
    ) -> AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                return _Stream(await self._transport.open_unix(self._socket_path))
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(f"no connection to {self._transport.host} in {timeout} s") from error

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Stream(AsyncNetworkStream):
    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            async with asyncio.timeout(timeout):
                return await self._stream.read(max_bytes)
        except FleetError as error:
            raise httpcore.ReadError(str(error)) from error
        except TimeoutError as error:
            raise httpcore.ReadTimeout(f"nothing came in {timeout} s") from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        try:
            async with asyncio.timeout(timeout):
                await self._stream.write(buffer)
        except FleetError as error:
            raise httpcore.WriteError(str(error)) from error
        except TimeoutError as error:
            raise httpcore.WriteTimeout(f"nothing was taken in {timeout} s") from error

    async def aclose(self) -> None:
        await self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        # "Readable while idle" would mean that the other side closed; only a read can tell over SSH.
        return False if info == "is_readable" else None


@contextmanager
def _in_words_of_httpx() -> Any:
    try:
        yield
    except tuple(_HTTPX_ERRORS) as error:
        raise _HTTPX_ERRORS[type(error)](str(error)) from error
