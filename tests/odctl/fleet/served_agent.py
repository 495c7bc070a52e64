"""An agent's wire on a real unix socket: real HTTP, real frames, answers that the test sets.

The product's agent is tried end to end in tests/integration; here the test must own what an agent says and when.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from agent.errors import ErrorDetail
from agent.wire.agent import Event
from agent.wire.framing import encode_frame
from odctl.fleet import HostAccess
from odctl.ssh.local import LocalTransport
from tests.odctl.fleet.until import until


class ServedAgent:
    """Answers by route; `samples` feeds every follower of the sample stream."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.answers: dict[str, Any] = {}
        self.errors: dict[str, ErrorDetail] = {}
        self.samples: list[msgspec.Struct] = []
        self.sample_queries: list[str] = []
        self.events: list[Event] = []
        self.event_queries: list[str] = []
        self.knows_kinds = True
        """False: an agent of an earlier release, to which `kinds` says nothing."""
        self.is_cut_inside_frame = False
        self._more = asyncio.Event()
        self._hang_up = asyncio.Event()
        self.app = Starlette(
            routes=[
                Route("/v1/samples", self._stream_samples),
                Route("/v1/logs", self._logs),
                Route("/v1/events", self._tell_events),
                Route("/v1/{rest:path}", self._answer, methods=["GET", "POST"]),
            ]
        )

    @property
    def socket(self) -> Path:
        return self.root / "run" / "agent.sock"

    def add_sample(self, sample: msgspec.Struct) -> None:
        self.samples.append(sample)
        self._more.set()

    def hang_up(self) -> None:
        """End every sample stream."""
        self._hang_up.set()
        self._more.set()

    def take_calls(self) -> None:
        self._hang_up.clear()

    async def _answer(self, request: Request) -> Response:
        route = request.url.path
        if route in self.errors:
            body = msgspec.msgpack.encode(self.errors[route])
            return Response(body, status_code=409, media_type="application/msgpack")
        if route not in self.answers:
            return PlainTextResponse("no such route", status_code=404)
        answer = self.answers[route]
        if callable(answer):
            answer = answer(await request.body())
        return Response(msgspec.msgpack.encode(answer), media_type="application/msgpack")

    async def _logs(self, _request: Request) -> Response:
        return PlainTextResponse("first line\nsecond line\n")

    async def _tell_events(self, request: Request) -> Response:
        """As the agent does: the newest (of some kinds), or those after an id."""
        self.event_queries.append(request.url.query)
        if "/v1/events" in self.errors:
            body = msgspec.msgpack.encode(self.errors["/v1/events"])
            return Response(body, status_code=409, media_type="application/msgpack")
        query = request.query_params
        kinds = query.get("kinds", "") if self.knows_kinds else ""
        limit = int(query["limit"])
        if "after" in query:
            found = [event for event in self.events if event.event_id > int(query["after"])][:limit]
        else:
            found = [event for event in self.events if not kinds or event.kind in kinds.split(",")][-limit:]
        frames = b"".join(encode_frame(event) for event in found)
        return Response(frames, media_type="application/msgpack")

    async def _stream_samples(self, request: Request) -> Response:
        self.sample_queries.append(request.url.query)
        return StreamingResponse(self._frames(), media_type="application/msgpack")

    async def _frames(self) -> AsyncIterator[bytes]:
        sent = 0
        while not self._hang_up.is_set():
            while sent < len(self.samples):
                yield encode_frame(self.samples[sent])
                sent += 1
            if self.is_cut_inside_frame:
                yield b"\x00\x00\x01\x00half"
                return
            self._more.clear()
            await self._more.wait()


def access(name: str, root: Path, *, prefix: str | None = None) -> HostAccess:
    """This machine as a host whose home directory is `root`."""
    return HostAccess(name=name, transport=LocalTransport(name, home=root), prefix=prefix or str(root))


@asynccontextmanager
async def serving(agent: ServedAgent) -> AsyncIterator[ServedAgent]:
    agent.socket.parent.mkdir(parents=True, exist_ok=True)
    config = uvicorn.Config(
        agent.app, uds=str(agent.socket), log_level="error", lifespan="off", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined,unused-ignore]
    async with asyncio.TaskGroup() as group:
        task = group.create_task(server.serve())
        await until(lambda: server.started)
        try:
            yield agent
        finally:
            agent.hang_up()
            server.should_exit = True
            await task
            agent.socket.unlink(missing_ok=True)
