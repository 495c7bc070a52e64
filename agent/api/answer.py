"""HTTP answers to generations: whole or streamed, ended by an error rather than in silence.

A client that goes away is noticed whether or not anything is being sent to it, and its slot is freed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from agent.api.generation import Generation
from agent.api.refusal import Refusal
from agent.errors import ErrorDetail
from agent.serving.request import Failed, Finished, Request, TextEmitted, TokenDrawn


class Form(Protocol):
    """How one endpoint words its answer."""

    stream_type: str

    def begin(self) -> bytes:
        """What a stream starts with; may be empty."""
        ...

    def piece(self, event: TextEmitted) -> bytes: ...

    def end(self, request: Request, finished: Finished) -> bytes: ...

    def broken(self, error: ErrorDetail) -> bytes:
        """The end of a stream that cannot go on: its client must see an error."""
        ...

    def whole(self, request: Request, text: str, tokens: tuple[TokenDrawn, ...], finished: Finished) -> object:
        """The JSON body of an answer in one piece."""
        ...

    def refusal(self, refusal: Refusal) -> Response: ...


class _ClientLeft(Exception):
    """Ends the answer's task group; nobody else sees it."""


class GenerationAnswer(Response):
    """Headers are sent with the first output, so trouble before that has a status code of its own."""

    def __init__(
        self, generation: Generation, form: Form, *, streams: bool, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(headers=headers)
        self._generation = generation
        self._form = form
        self._streams = streams
        self._extra_headers = dict(headers or {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(_watch(receive))
                await (self._stream(scope, receive, send) if self._streams else self._answer(scope, receive, send))
                watch.cancel()
        except* (_ClientLeft, ConnectionError):
            # There is nobody left to tell.
            pass
        finally:
            self._generation.cancel()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        texts: list[str] = []
        tokens: list[TokenDrawn] = []
        async for event in self._generation.events():
            match event:
                case TextEmitted():
                    texts.append(event.text)
                    tokens.extend(event.tokens)
                case Finished():
                    body = self._form.whole(self._generation.request, "".join(texts), tuple(tokens), event)
                    await JsonAnswer(body, headers=self._extra_headers)(scope, receive, send)
                case Failed():
                    await self._form.refusal(Refusal.of_failure(event))(scope, receive, send)

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False
        async for event in self._generation.events():
            if isinstance(event, Failed) and not has_begun:
                await self._form.refusal(Refusal.of_failure(event))(scope, receive, send)
                return
            body = b""
            if not has_begun:
                has_begun = True
                await send(self._head())
                body = self._form.begin()
            match event:
                case TextEmitted():
                    body += self._form.piece(event)
                case Finished():
                    body += self._form.end(self._generation.request, event)
                case Failed():
                    body += self._form.broken(event.error)
            if body:
                await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _head(self) -> dict[str, Any]:
        headers = {"content-type": self._form.stream_type, "cache-control": "no-cache", **self._extra_headers}
        return {
            "type": "http.response.start",
            "status": 200,
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }


class JsonAnswer(Response):
    media_type = "application/json"

    def render(self, content: object) -> bytes:
        return msgspec.json.encode(content)


async def _watch(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise _ClientLeft
