"""Requests to agents: one HTTP client a host over its transport, opened on first use and kept.

A `Fleet` belongs to the event loop that opened it. Every failure is a FleetError that names its host.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

import msgspec

from agent.errors import ErrorDetail, FleetError
from agent.wire.framing import StreamClosed
from odctl.fleet.frames import FrameSplitter
from odctl.fleet.guard import WriteGuard
from odctl.inventory import NO_SUCH_HOST, Inventory, select
from odctl.ssh.failures import NO_SOCKET, connection_lost
from odctl.ssh.transport import Transport

if TYPE_CHECKING:
    # Needed once a host is spoken to; until then the UI has painted, or a verb has refused its arguments.
    import httpx

T = TypeVar("T")

MAX_PARALLEL_HOSTS = 32
"""Requests under way at once in `get_all`: enough to hide latency, few enough for one laptop's uplink."""
REQUEST_TIMEOUT_S = 15.0
HOME_TIMEOUT_S = 20.0
CLOSE_TIMEOUT_S = 5.0
GET_ATTEMPTS = 4
MSGPACK = "application/msgpack"
NO_ANSWER = "E211"
"""An agent that is there, and silent."""

OpenClient = Callable[[Transport, str], "httpx.AsyncClient"]


class HostAccess(msgspec.Struct, frozen=True, kw_only=True):
    """How one host is reached: its transport, and the prefix that the agent was installed under."""

    name: str
    transport: Transport
    prefix: str
    """May begin with `~/`, which is the remote user's home."""


class Fleet:
    """All hosts of an inventory, or some of them.

    With a `guard`, what may change a host is refused with E121 while that is locked, whoever asks.
    """

    def __init__(
        self,
        hosts: Iterable[HostAccess],
        *,
        cluster: str,
        open_client: OpenClient,
        is_network_trusted: bool = False,
        guard: WriteGuard | None = None,
        select: Callable[[str], tuple[str, ...]] | None = None,
    ) -> None:
        self.cluster = cluster
        self._guard = guard
        self._select = select
        self.is_network_trusted = is_network_trusted
        self._hosts = {host.name: host for host in hosts}
        self._open_client = open_client
        self._clients: dict[tuple[str, str], httpx.AsyncClient] = {}
        self._prefixes: dict[str, str] = {}
        self._locks = {name: asyncio.Lock() for name in self._hosts}
        self._slots = asyncio.Semaphore(MAX_PARALLEL_HOSTS)

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names, sorted."""
        return tuple(sorted(self._hosts))

    def select(self, selector: str) -> tuple[str, ...]:
        """Hosts that a selector means, as the inventory has it. Raises FleetError E108 for what matches nothing."""
        if self._select is None:
            raise FleetError(NO_SUCH_HOST, f"`{selector}` selects nothing here", hint="name the hosts one by one")
        return self._select(selector)

    def transport(self, host: str) -> Transport:
        found = self._host(host).transport
        return self._guard.guarded(found) if self._guard is not None else found

    async def prefix(self, host: str) -> str:
        """The agent's prefix on that host, absolute. A leading `~` is asked for once, on the host itself."""
        async with self._lock(host):
            if host not in self._prefixes:
                self._prefixes[host] = await _absolute_prefix(self._host(host))
            return self._prefixes[host]

    async def get(self, host: str, route: str, kind: type[T], *, timeout_s: float = REQUEST_TIMEOUT_S) -> T:
        """GET a route of that host's agent. `kind` may be `str` for a text route."""
        return await self._request(host, "GET", route, body=None, kind=kind, timeout_s=timeout_s)

    async def post(
        self, host: str, route: str, body: msgspec.Struct, kind: type[T], *, timeout_s: float = REQUEST_TIMEOUT_S
    ) -> T:
        """POST a message to that host's agent."""
        return await self._request(host, "POST", route, body=body, kind=kind, timeout_s=timeout_s)

    async def get_all(
        self,
        route: str,
        kind: type[T],
        *,
        hosts: Iterable[str] | None = None,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> dict[str, T | FleetError]:
        """The answer of every host, or why there is none, by name in sorted order."""
        names = sorted(self.hosts if hosts is None else hosts)

        async def ask(host: str) -> T | FleetError:
            async with self._slots:
                try:
                    return await self.get(host, route, kind, timeout_s=timeout_s)
                except FleetError as error:
                    return error

        async with asyncio.TaskGroup() as group:
            tasks = {name: group.create_task(ask(name)) for name in names}
        return {name: task.result() for name, task in tasks.items()}

    async def stream(
        self, host: str, method: str, route: str, body: msgspec.Struct | None, kind: type[T]
    ) -> AsyncGenerator[T, None]:
        """Frames of a streaming route until its clean end. Close the iterator (`aclosing`) to hang up early."""
        splitter = FrameSplitter()
        self._check(host, method, route)
        with _naming(host):
            async with (
                self._client_for(host, method) as client,
                client.stream(
                    method, route, content=_encode(body), headers=_headers(body), timeout=_stream_timeout()
                ) as response,
            ):
                if response.is_error:
                    await response.aread()
                    raise _remote_error(host, response)
                async for chunk in response.aiter_bytes():
                    for frame in splitter.feed(chunk):
                        yield msgspec.msgpack.decode(frame, type=kind)
            if not splitter.is_between_frames:
                raise StreamClosed("the stream ended inside a frame")

    async def client_of(self, host: str, socket_path: str) -> httpx.AsyncClient:
        """An HTTP client for any unix socket of that host, such as a gateway's. The fleet closes it."""
        key = (host, socket_path)
        if key not in self._clients:
            self._clients[key] = self._open(host, socket_path)
        return self._clients[key]

    @asynccontextmanager
    async def own_client_of(self, host: str, socket_path: str) -> AsyncIterator[httpx.AsyncClient]:
        """One that ends with the block. A kept one may hold connections to what listened there before."""
        async with self._open(host, socket_path) as client:
            yield client

    def _open(self, host: str, socket_path: str) -> httpx.AsyncClient:
        client = self._open_client(self._host(host).transport, socket_path)
        if self._guard is not None:
            client.event_hooks["request"].append(self._guard.request_hook(host))
        return client

    def _check(self, host: str, method: str, route: str) -> None:
        """Before anything is connected: a refusal must not depend on whether the host answers."""
        if self._guard is not None:
            self._guard.check_request(method, route, host=host)

    async def close(self) -> None:
        """Close clients, then transports, each within a limit."""
        import httpx

        closers = [client.aclose for client in self._clients.values()]
        closers += [host.transport.close for host in self._hosts.values()]
        for close in closers:
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await close()
            except (TimeoutError, OSError, httpx.HTTPError, FleetError):
                continue  # a connection that cannot say goodbye is gone all the same
        self._clients.clear()

    def _host(self, name: str) -> HostAccess:
        if name not in self._hosts:
            known = ", ".join(self.hosts) or "none"
            raise FleetError(
                NO_SUCH_HOST, f"`{name}` is not in the inventory", hint=f"known hosts: {known}", host=name
            )
        return self._hosts[name]

    def _lock(self, name: str) -> asyncio.Lock:
        self._host(name)
        return self._locks[name]

    async def _request(
        self,
        host: str,
        method: str,
        route: str,
        *,
        body: msgspec.Struct | None,
        kind: type[T],
        timeout_s: float,
    ) -> T:
        self._check(host, method, route)
        with _naming(host):
            async with asyncio.timeout(timeout_s):
                response = await self._send(host, method, route, body)
        if response.is_error:
            raise _remote_error(host, response)
        return _decode_reply(host, route, response, kind)

    async def _send(self, host: str, method: str, route: str, body: msgspec.Struct | None) -> httpx.Response:
        """One request. A GET that meets kept connections which an agent's restart closed is asked anew."""
        import httpx

        attempts = GET_ATTEMPTS
        while True:
            attempts -= 1
            try:
                async with self._client_for(host, method) as client:
                    return await client.request(
                        method, route, content=_encode(body), headers=_headers(body), timeout=None
                    )
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                if attempts == 0 or method != "GET":
                    raise

    @asynccontextmanager
    async def _client_for(self, host: str, method: str) -> AsyncIterator[httpx.AsyncClient]:
        """The kept client for a GET; for all else a connection of its own, since it must not be sent twice and a
        kept connection may be dead without knowing it.
        """
        path = f"{await self.prefix(host)}/run/agent.sock"
        if method == "GET":
            yield await self.client_of(host, path)
            return
        async with self.own_client_of(host, path) as client:
            yield client


@asynccontextmanager
async def open_fleet(
    inventory: Inventory, *, hosts: Iterable[str] | None = None, guard: WriteGuard | None = None
) -> AsyncIterator[Fleet]:
    """A fleet over the inventory's hosts (or those named). Nothing is connected before it is asked for.

    Without a `guard` changes are allowed: a verb has asked before.

    Raises FleetError E108 for a name that the inventory lacks.
    """
    from odctl.ssh.connect import transport_for
    from odctl.ssh.http import agent_client

    chosen = inventory.hosts if hosts is None else tuple(inventory.host(name) for name in hosts)
    accesses = [
        HostAccess(name=host.name, transport=transport_for(inventory, host.name), prefix=host.prefix)
        for host in chosen
    ]
    fleet = Fleet(
        accesses,
        cluster=inventory.cluster,
        open_client=agent_client,
        is_network_trusted=inventory.trusted_network,
        select=lambda selector: tuple(host.name for host in select(inventory, selector)),
        guard=guard,
    )
    try:
        yield fleet
    finally:
        await fleet.close()


async def _absolute_prefix(host: HostAccess) -> str:
    if not host.prefix.startswith("~"):
        return host.prefix.rstrip("/")
    result = await host.transport.run(["sh", "-c", 'printf %s "$HOME"'], timeout_s=HOME_TIMEOUT_S, check=True)
    home = result.text.strip().splitlines()[-1] if result.text.strip() else ""
    if not home.startswith("/"):
        raise FleetError("E301", f"$HOME is {home!r}, not a directory", hint="set prefix", host=host.name)
    return (home.rstrip("/") + host.prefix[1:]).rstrip("/")


def _encode(body: msgspec.Struct | None) -> bytes | None:
    return None if body is None else msgspec.msgpack.encode(body)


def _headers(body: msgspec.Struct | None) -> dict[str, str]:
    return {"accept": MSGPACK} if body is None else {"accept": MSGPACK, "content-type": MSGPACK}


def _stream_timeout() -> httpx.Timeout:
    """A stream may be silent for as long as nothing happens; getting it started may not."""
    import httpx

    return httpx.Timeout(REQUEST_TIMEOUT_S, read=None)


def _decode_reply(host: str, route: str, response: httpx.Response, kind: type[T]) -> T:
    if kind is str:
        return response.text  # type: ignore[return-value] # kind is str, so T is
    try:
        return msgspec.msgpack.decode(response.content, type=kind)
    except msgspec.MsgspecError as error:
        raise FleetError(
            "E303",
            f"the agent's answer to {route} is not what we expect: {error}",
            hint="agent and odctl differ in version: `odctl bootstrap` updates the agent",
            host=host,
        ) from error


def _remote_error(host: str, response: httpx.Response) -> FleetError:
    """The agent's own ErrorDetail, or what can be said of an answer without one."""
    for decode in (msgspec.msgpack.decode, msgspec.json.decode):
        try:
            return FleetError.from_detail(decode(response.content, type=ErrorDetail), host=host)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
    text = response.text.strip()[:200] or response.reason_phrase
    return FleetError("E302", f"the agent answered {response.status_code}: {text}", host=host)


class _naming:  # noqa: N801 - reads as a verb at its call sites
    """Turns what HTTP and sockets raise into FleetErrors that name the host; leaves FleetErrors their code."""

    def __init__(self, host: str) -> None:
        self._host = host

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        import httpx

        match error:
            case FleetError(code=code) if code == NO_SOCKET:
                raise _no_agent(self._host) from error
            case FleetError() if not error.host:
                raise FleetError(error.code, error.message, hint=error.hint, host=self._host) from error
            case TimeoutError() | httpx.TimeoutException():
                raise FleetError(
                    NO_ANSWER,
                    "the agent did not answer in time",
                    hint="it may be overloaded or stopped: see `odctl status`",
                    host=self._host,
                ) from error
            case httpx.ConnectError():
                raise _no_agent(self._host) from error
            case StreamClosed() | httpx.TransportError() | OSError():
                raise connection_lost(self._host, str(error) or type(error).__name__) from error
            case msgspec.MsgspecError():
                raise FleetError(
                    "E303",
                    f"the agent's stream is not what we expect: {error}",
                    hint="agent and odctl differ in version: `odctl bootstrap` updates the agent",
                    host=self._host,
                ) from error
            case _:
                return


def _no_agent(host: str) -> FleetError:
    return FleetError(
        NO_SOCKET,
        "no agent answers on this host",
        hint=f"`odctl bootstrap {host}` installs and starts it",
        host=host,
    )
