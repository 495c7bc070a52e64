"""How the members of a link find each other: who listens where is told through the rendezvous store.

Every member publishes its host and, unless it is the last one, an address with a token. It connects to each member
before it, twice (one connection a direction), and is connected to by each after it. Waiting is always for a member
with a lower index, so nobody waits in a circle.

The store's keys carry the generation, and a connection must show the token that was published under it: one of an
earlier generation, or of anybody else, is refused. With TLS both ends check certificates (`engine.tls`); within a
host the kernel says whether the other end is a process of our own user; without TLS the token is all there is.
"""

from __future__ import annotations

import hmac
import logging
import os
import secrets
import socket
import ssl
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from agent.engine.links.connection import reason_of, shut_down
from agent.engine.store import AgentStore
from agent.engine.tls import check_agent, client_context, server_context
from agent.wire.framing import receive_frame, send_frame
from agent.wire.rank import TlsFiles

log = logging.getLogger(__name__)

GREETING_LIMIT_S = 5.0
"""For a connection to prove itself: a stranger that says nothing holds the others up no longer."""
BACKLOG = 64
SEND_BUFFER_BYTES = 4 << 20
"""Of a unix socket, as far as the kernel allows it; TCP's grow by themselves."""
# A host without power answers nothing: without these only a step's own timeout would tell. Longer than the blips
# of a few seconds that TCP gets over by itself.
KEEPALIVE = {
    socket.TCP_KEEPIDLE: 5,
    socket.TCP_KEEPINTVL: 2,
    socket.TCP_KEEPCNT: 5,
    socket.TCP_USER_TIMEOUT: 15_000,
}


class Whereabouts(msgspec.Struct, frozen=True, kw_only=True):
    """What a member publishes. A port of 0: `address` is the name of an abstract unix socket."""

    host: str
    address: str = ""
    port: int = 0
    token: str = ""


class Greeting(msgspec.Struct, frozen=True, kw_only=True):
    """What a connection says first."""

    host: str
    from_index: int
    sends: bool
    """Whether messages go from the one that connects to the one that listens."""
    token: str


@dataclass
class Streams:
    """Connected sockets by the index of the member at the other end."""

    incoming: dict[int, socket.socket] = field(default_factory=dict)
    outgoing: dict[int, socket.socket] = field(default_factory=dict)


class Meeting:
    """Of the members of one link, under one prefix of the store. `abort` may be called from any thread."""

    def __init__(
        self,
        *,
        store: AgentStore,
        index: int,
        size: int,
        kind: Literal["tls", "tcp", "unix"],
        address: str,
        cluster: str,
        host: str,
        tls: TlsFiles,
        deadline: float,
    ) -> None:
        self._store = store
        self._index = index
        self._size = size
        self._kind = kind
        self._address = address
        self._cluster = cluster
        self._host = host
        self._tls = tls
        self._deadline = deadline
        self._token = secrets.token_hex(16)
        self._streams = Streams()
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self._is_aborted = False
        self._refused = ""

    def meet(self) -> Streams:
        """Connections to every other member. Raises RuntimeError, or FleetError from the store."""
        listener: socket.socket | None = None
        try:
            if self._index < self._size - 1:
                listener = self._listen()
            self._publish(listener)
            for other in range(self._index):
                whereabouts = msgspec.msgpack.decode(self._store.get(str(other)), type=Whereabouts)
                for sends in (True, False):
                    self._connect(other, whereabouts, sends=sends)
            if listener is not None:
                self._accept_all(listener)
        except (OSError, msgspec.MsgspecError) as error:
            self._close_all()
            reason = reason_of(error) if isinstance(error, OSError) else str(error)
            raise RuntimeError("linking was aborted" if self._is_aborted else reason) from error
        except BaseException:
            self._close_all()
            raise
        finally:
            if listener is not None:
                listener.close()
        return self._streams

    def abort(self) -> None:
        with self._lock:
            self._is_aborted = True
            for connection in self._open:
                shut_down(connection)

    # --- the one that listens -----------------------------------------------------------------------------

    def _listen(self) -> socket.socket:
        if self._kind != "unix":
            family, kind, protocol, _, endpoint = socket.getaddrinfo(self._address, 0, type=socket.SOCK_STREAM)[0]
            listener = self._keep(socket.socket(family, kind, protocol))
            listener.bind(endpoint)
        else:
            listener = self._keep(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            # abstract: no file that a killed rank would leave behind
            listener.bind(f"\0odctl-{secrets.token_hex(16)}")
        listener.listen(BACKLOG)
        return listener

    def _publish(self, listener: socket.socket | None) -> None:
        whereabouts = Whereabouts(host=self._host)
        if listener is not None and self._kind != "unix":
            port = listener.getsockname()[1]
            whereabouts = Whereabouts(host=self._host, address=self._address, port=port, token=self._token)
        elif listener is not None:
            name = listener.getsockname().decode()
            whereabouts = Whereabouts(host=self._host, address=name, token=self._token)
        self._store.set(str(self._index), msgspec.msgpack.encode(whereabouts))

    def _accept_all(self, listener: socket.socket) -> None:
        context = server_context(self._tls) if self._kind == "tls" else None
        while missing := [i for i in range(self._index + 1, self._size) if not self._has(i)]:
            listener.settimeout(self._left_s())
            try:
                accepted, _ = listener.accept()
            except TimeoutError as error:
                refused = f"; a connection was refused: {self._refused}" if self._refused else ""
                raise RuntimeError(f"{_members(missing)} did not connect in time{refused}") from error
            accepted.settimeout(min(GREETING_LIMIT_S, self._left_s()))
            connection = accepted
            try:
                if context is not None:
                    connection = context.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)
                self._accept(self._keep(connection))
            except (OSError, RuntimeError, msgspec.MsgspecError) as error:
                connection.close()
                if self._is_aborted:
                    raise
                self._refused = reason_of(error) if isinstance(error, OSError) else str(error)
                log.warning("link refused", extra={"reason": self._refused, "index": self._index})

    def _accept(self, connection: socket.socket) -> None:
        if isinstance(connection, ssl.SSLSocket):
            connection.do_handshake()
        elif self._kind == "unix":
            _check_user(connection)
        greeting = msgspec.msgpack.decode(receive_frame(connection), type=Greeting)
        self._check_greeting(greeting)
        if isinstance(connection, ssl.SSLSocket):
            check_agent(connection, cluster=self._cluster, host=greeting.host)
        _tune(connection)
        connection.sendall(b"\x01")
        side = self._streams.incoming if greeting.sends else self._streams.outgoing
        side[greeting.from_index] = connection

    def _check_greeting(self, greeting: Greeting) -> None:
        if not hmac.compare_digest(greeting.token.encode(), self._token.encode()):
            raise RuntimeError(f"a connection from {greeting.host} is of another generation")
        side = self._streams.incoming if greeting.sends else self._streams.outgoing
        if not self._index < greeting.from_index < self._size or greeting.from_index in side:
            raise RuntimeError(f"a connection from {greeting.host} is of no member that is missing")

    # --- the one that connects ----------------------------------------------------------------------------

    def _connect(self, other: int, to: Whereabouts, *, sends: bool) -> None:
        if not to.address:
            raise RuntimeError(f"member {other} published no address")
        if self._kind == "unix":
            connection = self._keep(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            connection.settimeout(self._left_s())
            connection.connect(to.address)
            _check_user(connection)
        else:
            connection = self._connect_tcp(to)
        greeting = Greeting(host=self._host, from_index=self._index, sends=sends, token=to.token)
        send_frame(connection, greeting)
        if connection.recv(1) != b"\x01":
            raise RuntimeError(f"{to.host} refused the connection: it is linking another generation, or not us")
        _tune(connection)
        side = self._streams.outgoing if sends else self._streams.incoming
        side[other] = connection

    def _connect_tcp(self, to: Whereabouts) -> socket.socket:
        family, kind, protocol, _, endpoint = socket.getaddrinfo(to.address, to.port, type=socket.SOCK_STREAM)[0]
        plain = self._keep(socket.socket(family, kind, protocol))
        plain.settimeout(self._left_s())
        own = socket.getaddrinfo(self._address, 0, type=socket.SOCK_STREAM)[0]
        if own[0] == family:
            # From the address that the inventory gives this host: where it has several, its links take that one's
            # network both ways.
            plain.bind(own[4])
        plain.connect(endpoint)
        if self._kind == "tcp":
            return plain
        connection = client_context(self._tls).wrap_socket(plain, do_handshake_on_connect=False)
        self._keep(connection)
        connection.do_handshake()
        check_agent(connection, cluster=self._cluster, host=to.host)
        return connection

    # --- both ---------------------------------------------------------------------------------------------

    def _keep(self, connection: socket.socket) -> socket.socket:
        """Known to `abort` from now on."""
        with self._lock:
            if self._is_aborted:
                connection.close()
                raise RuntimeError("linking was aborted")
            self._open.append(connection)
        return connection

    def _close_all(self) -> None:
        with self._lock:
            connections, self._open = self._open, []
        for connection in connections:
            connection.close()

    def _has(self, index: int) -> bool:
        return index in self._streams.incoming and index in self._streams.outgoing

    def _left_s(self) -> float:
        return max(self._deadline - time.monotonic(), 0.01)


def _check_user(connection: socket.socket) -> None:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, user, _ = struct.unpack("3i", credentials)
    if user != os.getuid():
        raise RuntimeError(f"process {pid} of user {user} is none of ours")


def _tune(connection: socket.socket) -> None:
    if connection.family == socket.AF_UNIX:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        return
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE.items():
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _members(indices: list[int]) -> str:
    return f"member {indices[0]}" if len(indices) == 1 else f"members {', '.join(map(str, indices))}"
