"""Whether the fleet may be changed: one guard that every request of a `Fleet` passes.

It stands below the screens. A key, a click, the palette or a command that forgets to ask meets it all the same:
while it is locked no request that changes anything leaves this machine.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from agent.errors import FleetError
from odctl.ssh.transport import ByteStream, RemoteResult, Transport

if TYPE_CHECKING:
    import httpx

READ_ONLY = "E121"
WAY_OUT = "^x or :unlock allows changes for ten minutes; `odctl --write` starts with them"

READING_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
READING_POSTS = frozenset({"/v1/manifest", "/v1/ranges"})
"""Routes of an agent that are asked with a body, and change nothing."""
ASKING_POSTS = frozenset(
    {
        "/api/chat",
        "/api/generate",
        "/api/show",
        "/api/embed",
        "/api/embeddings",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
    }
)
"""Routes of a gateway: to ask a model is to use the fleet, not to change it."""

_may_finish: ContextVar[bool] = ContextVar("odctl_may_finish", default=False)


def is_change(method: str, route: str) -> bool:
    """Whether a request may change anything. `route` may have a query. What is not known to read is a change."""
    return method.upper() not in READING_METHODS and route.partition("?")[0] not in READING_POSTS | ASKING_POSTS


class WriteGuard:
    """Locked until it is unlocked, and again when its time is over: nobody has to remember to lock it.

    Safe to use from several threads: its state is one number. `never` is the reason why a session may not be
    unlocked at all; empty: it may. `steady_clock` gives seconds that only grow.
    """

    def __init__(self, *, steady_clock: Callable[[], float] = time.monotonic, never: str = "") -> None:
        self._steady_clock = steady_clock
        self._never = never
        self._locks_at_s = float("-inf")

    @property
    def never(self) -> str:
        """Why this session can never be unlocked; empty where it can."""
        return self._never

    @property
    def is_locked(self) -> bool:
        return self.unlocked_for_s <= 0

    @property
    def unlocked_for_s(self) -> float:
        """Seconds until it locks by itself; 0 while it is locked."""
        return max(0.0, self._locks_at_s - self._steady_clock())

    def unlock(self, for_s: float) -> None:
        """Allow changes from now on, for that many seconds. Raises FleetError E121 where they may never be."""
        if self._never:
            raise FleetError(READ_ONLY, f"this session stays read-only: {self._never}")
        self._locks_at_s = self._steady_clock() + for_s

    def lock(self) -> None:
        """Refuse changes from now on. What is under way finishes."""
        self._locks_at_s = float("-inf")

    @contextmanager
    def working(self) -> Iterator[None]:
        """One piece of work: what begins while changes are allowed may finish, however long it takes.

        Without this a clock could cut an apply in two, between the upload of its model and its switch.
        """
        token = _may_finish.set(not self.is_locked)
        try:
            yield
        finally:
            _may_finish.reset(token)

    def check(self, what: str, *, host: str = "") -> None:
        """Raises FleetError E121, naming what was refused, unless changes are allowed now."""
        if self.is_locked and not _may_finish.get():
            hint = self._never or WAY_OUT
            raise FleetError(READ_ONLY, f"this session is read-only: {what} was not sent", hint=hint, host=host)

    def check_request(self, method: str, route: str, *, host: str = "") -> None:
        """Raises FleetError E121 for a request that may change something, as `check` does."""
        if is_change(method, route):
            self.check(f"{method.upper()} {route.partition('?')[0]}", host=host)

    def request_hook(self, host: str) -> Callable[[httpx.Request], Awaitable[None]]:
        """What an HTTP client of that host calls before each request, whoever makes it."""

        async def check(request: httpx.Request) -> None:
            self.check_request(request.method, request.url.path, host=host)

        return check

    def guarded(self, transport: Transport) -> Transport:
        """The transport, with what may change its host refused while this is locked."""
        return _GuardedTransport(transport, self)


class _GuardedTransport:
    """Reads and connects as before. A command may do anything, so none runs while the guard is locked."""

    def __init__(self, transport: Transport, guard: WriteGuard) -> None:
        self._transport = transport
        self._guard = guard

    @property
    def host(self) -> str:
        return self._transport.host

    async def connect(self) -> None:
        await self._transport.connect()

    async def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 60.0, check: bool = False
    ) -> RemoteResult:
        self._guard.check(f"the command `{argv[0]}`", host=self.host)
        return await self._transport.run(argv, stdin=stdin, timeout_s=timeout_s, check=check)

    async def put(
        self,
        source: Path,
        target: str,
        *,
        mode: int = 0o644,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._guard.check(f"a copy to {target}", host=self.host)
        await self._transport.put(source, target, mode=mode, on_progress=on_progress)

    async def put_bytes(self, data: bytes, target: str, *, mode: int = 0o644) -> None:
        self._guard.check(f"a copy to {target}", host=self.host)
        await self._transport.put_bytes(data, target, mode=mode)

    async def get(self, source: str, target: Path) -> None:
        await self._transport.get(source, target)

    async def open_unix(self, path: str) -> ByteStream:
        return await self._transport.open_unix(path)

    async def close(self) -> None:
        await self._transport.close()
