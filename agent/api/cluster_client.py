"""Calls from this agent to others over the cluster plane. Every failure is a FleetError that names the host."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import httpx
import msgspec

from agent.api.tls import client_context, watch_leaf
from agent.errors import ErrorDetail, FleetError
from agent.wire.agent import (
    Heartbeat,
    HostAddress,
    Instruction,
    InstructionReply,
    ModelManifest,
    ModelQuery,
    RangeRequest,
    StoreReply,
    StoreRequest,
)
from agent.wire.identity import dns_name
from agent.wire.rank import TlsFiles

CONNECT_TIMEOUT_S = 3.0
READ_STALL_S = 30.0
"""A stream of ranges that brings no byte for so long is given up."""
CANCEL_GRACE_S = 0.1
"""httpx closes its socket when its own timeout strikes, but not when it is cancelled: it goes first."""
KEEP_ALIVE_S = 60.0
"""Shorter than the server's, so that a request is not sent into a connection that is just being closed."""
MAX_CONNECTIONS = 512

T = TypeVar("T")


class ClusterClient:
    """One pool of connections to all other agents; shows our leaf and checks theirs by name."""

    def __init__(self, tls: TlsFiles, *, cluster: str) -> None:
        self._cluster = cluster
        self._tls = tls
        self._context = client_context(tls)
        self._client = httpx.AsyncClient(
            verify=self._context,
            trust_env=False,
            limits=httpx.Limits(
                max_connections=MAX_CONNECTIONS, max_keepalive_connections=None, keepalive_expiry=KEEP_ALIVE_S
            ),
        )

    async def watch(self) -> None:
        """Take up renewed leaves. Runs until cancelled."""
        await watch_leaf([self._context], self._tls)

    async def close(self) -> None:
        await self._client.aclose()

    async def call(
        self,
        address: HostAddress,
        route: str,
        body: msgspec.Struct | None,
        reply_type: type[T],
        *,
        timeout_s: float,
        params: dict[str, str] | None = None,
    ) -> T:
        """GET without a body, POST with one.

        Raises FleetError E206 when the agent cannot be reached in time, else what the agent itself raised.
        """
        with _unreachable_as_error(address, timeout_s):
            async with asyncio.timeout(timeout_s + CANCEL_GRACE_S):
                response = await self._client.send(self._request(address, route, body, timeout_s, params))
        if response.status_code != httpx.codes.OK:
            raise _remote_error(address, response.content)
        try:
            return msgspec.msgpack.decode(response.content, type=reply_type)
        except msgspec.DecodeError as error:
            raise FleetError(
                "E207",
                f"{route} was answered in a way we do not know: {error}",
                hint="its release differs from ours: run `odctl bootstrap`",
                host=address.host,
            ) from error

    async def instruct(
        self, address: HostAddress, instruction: Instruction, *, timeout_s: float
    ) -> InstructionReply:
        return await self.call(address, "/v1/instruct", instruction, InstructionReply, timeout_s=timeout_s)

    async def heartbeat(self, address: HostAddress, *, controller: str, timeout_s: float) -> Heartbeat:
        return await self.call(
            address, "/v1/heartbeat", None, Heartbeat, timeout_s=timeout_s, params={"controller": controller}
        )

    async def store(self, address: HostAddress, request: StoreRequest, *, timeout_s: float) -> StoreReply:
        return await self.call(address, "/v1/store", request, StoreReply, timeout_s=timeout_s)

    async def manifest(self, address: HostAddress, query: ModelQuery, *, timeout_s: float) -> ModelManifest:
        return await self.call(address, "/v1/manifest", query, ModelManifest, timeout_s=timeout_s)

    @contextlib.asynccontextmanager
    async def ranges(
        self, address: HostAddress, request: RangeRequest
    ) -> AsyncIterator[tuple[str, AsyncIterator[bytes]]]:
        """SHA-256 (hex) that the holder claims for the bytes, and the bytes as they come. The caller compares."""
        http_request = self._request(address, "/v1/ranges", request, READ_STALL_S, None)
        with _unreachable_as_error(address, READ_STALL_S):
            response = await self._client.send(http_request, stream=True)
            try:
                if response.status_code != httpx.codes.OK:
                    raise _remote_error(address, await response.aread())
                yield response.headers.get("x-sha256", ""), response.aiter_raw()
            finally:
                await response.aclose()

    def _request(
        self,
        address: HostAddress,
        route: str,
        body: msgspec.Struct | None,
        timeout_s: float,
        params: dict[str, str] | None,
    ) -> httpx.Request:
        place = f"[{address.address}]" if ":" in address.address else address.address
        return self._client.build_request(
            "GET" if body is None else "POST",
            f"https://{place}:{address.port}{route}",
            params=params,
            content=None if body is None else msgspec.msgpack.encode(body),
            headers={"accept": "application/msgpack"},
            timeout=httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s)),
            extensions={"sni_hostname": dns_name(address.host, self._cluster)},
        )


@contextlib.contextmanager
def _unreachable_as_error(address: HostAddress, timeout_s: float) -> Any:
    try:
        yield
    except (TimeoutError, httpx.TimeoutException) as error:
        message = f"its agent at {address.address}:{address.port} does not answer within {timeout_s:g} s"
        raise FleetError("E206", message, host=address.host) from error
    except (httpx.TransportError, ssl.SSLError, OSError) as error:
        raise FleetError(
            "E206",
            f"its agent at {address.address}:{address.port} cannot be reached: {_reason(error)}",
            hint=_way_out(error),
            host=address.host,
        ) from error


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _way_out(error: Exception) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return "its certificate is not this host's of this cluster: bootstrap it again"
    if isinstance(error, httpx.ReadError | httpx.RemoteProtocolError):
        # With TLS 1.3 a refused client learns of it only when it reads.
        return "it may have refused our certificate: bootstrap this host again"
    return "is the agent running there? `odctl bootstrap` starts it"


def _remote_error(address: HostAddress, body: bytes) -> FleetError:
    try:
        detail = msgspec.msgpack.decode(body, type=ErrorDetail)
    except msgspec.DecodeError:
        return FleetError(
            "E207", f"it answered with an error that is none of ours: {body[:200]!r}", host=address.host
        )
    return FleetError.from_detail(detail, host=address.host)
