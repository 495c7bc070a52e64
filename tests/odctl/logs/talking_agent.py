"""An agent that has a journal and logs to follow, on a real socket; the test says what is written to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from agent.wire.agent import Event
from agent.wire.framing import encode_frame
from agent.wire.host import LogLines
from tests.odctl.fleet.served_agent import ServedAgent


class TalkingAgent(ServedAgent):
    """`events` and `lines` may be added to at any time; followers hear of them."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.events: list[Event] = []
        self.lines: list[LogLines] = []
        self.event_queries: list[str] = []
        self.is_over = False
        self.app = Starlette(routes=[Route("/v1/events", self._events), Route("/v1/logs", self._follow_logs)])

    @property
    def host(self) -> str:
        return self.root.name

    def happens(self, kind: str, *, at_s: float, body: str = "{}") -> None:
        event = Event(
            event_id=len(self.events) + 1,
            at_s=at_s,
            host=self.host,
            kind=kind,
            deployment="",
            generation=0,
            plan_hash="",
            body=body,
        )
        self.events.append(event)

    def hang_up(self) -> None:
        super().hang_up()
        self.is_over = True

    async def _events(self, request: Request) -> Response:
        self.event_queries.append(request.url.query)
        after = int(request.query_params.get("after", "0"))
        if request.query_params.get("follow"):
            return StreamingResponse(self._told(self.events, after))
        return Response(b"".join(encode_frame(event) for event in self.events))

    async def _follow_logs(self, request: Request) -> Response:
        if request.query_params.get("follow"):
            return StreamingResponse(self._told(self.lines, 0))
        return Response(b"".join(encode_frame(lines) for lines in self.lines))

    async def _told(self, messages: Sequence[msgspec.Struct], sent: int) -> AsyncIterator[bytes]:
        while not self.is_over:
            while sent < len(messages):
                yield encode_frame(messages[sent])
                sent += 1
            await asyncio.sleep(0.01)
