"""HTTP answers to generations: whole or streamed, ended by an error rather than in silence.

A client that goes away is noticed whether or not anything is being sent to it, and its slots are freed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from agent.api.generation import Generation
from agent.api.refusal import Refusal
from agent.errors import ErrorDetail
from agent.serving.request import Embedded, Failed, Finished, Request, TextEmitted, TokenDrawn


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One choice, complete."""

    request: Request
    text: str
    tokens: tuple[TokenDrawn, ...]
    finished: Finished


class Form(Protocol):
    """How one endpoint words its answer."""

    stream_type: str

    def begin(self) -> bytes:
        """What a stream starts with; may be empty."""
        ...

    def piece(self, index: int, event: TextEmitted, /) -> bytes: ...

    def end(self, index: int, request: Request, finished: Finished, /) -> bytes:
        """The end of one choice."""
        ...

    def close(self, requests: Sequence[Request], /) -> bytes:
        """The end of the stream, when every choice has ended."""
        ...

    def broken(self, error: ErrorDetail) -> bytes:
        """The end of a stream that cannot go on: its client must see an error."""
        ...

    def whole(self, outcomes: Sequence[Outcome]) -> object:
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
        answer = self._stream if self._streams else self._answer
        await _while_listening(self._generation, receive, lambda: answer(scope, receive, send))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        requests = self._generation.requests
        texts: list[list[str]] = [[] for _ in requests]
        tokens: list[list[TokenDrawn]] = [[] for _ in requests]
        ends: dict[int, Finished] = {}
        async for index, event in self._generation.events():
            match event:
                case TextEmitted():
                    texts[index].append(event.text)
                    tokens[index].extend(event.tokens)
                case Finished():
                    ends[index] = event
                case Failed():
                    await self._form.refusal(Refusal.of_failure(event))(scope, receive, send)
                    return
        outcomes = [
            Outcome(request=request, text="".join(texts[index]), tokens=tuple(tokens[index]), finished=ends[index])
            for index, request in enumerate(requests)
        ]
        await JsonAnswer(self._form.whole(outcomes), headers=self._extra_headers)(scope, receive, send)

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False
        async for index, event in self._generation.events():
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
                    body += self._form.piece(index, event)
                case Finished():
                    body += self._form.end(index, self._generation.requests[index], event)
                case Failed():
                    body += self._form.broken(event.error)
            if body:
                await send({"type": "http.response.body", "body": body, "more_body": True})
        is_whole = all(request.state == "finished" for request in self._generation.requests)
        last = self._form.close(self._generation.requests) if is_whole else b""
        await send({"type": "http.response.body", "body": last, "more_body": False})

    def _head(self) -> dict[str, Any]:
        headers = {"content-type": self._form.stream_type, "cache-control": "no-cache", **self._extra_headers}
        return {
            "type": "http.response.start",
            "status": 200,
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }


class EmbeddingAnswer(Response):
    """`word` makes the JSON body of the embeddings, float32 bytes in the order of the inputs."""

    def __init__(
        self,
        generation: Generation,
        *,
        word: Callable[[Sequence[bytes]], object],
        refuse: Callable[[Refusal], Response],
    ) -> None:
        super().__init__()
        self._generation = generation
        self._word = word
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def answer() -> None:
            embeddings: dict[int, bytes] = {}
            async for index, event in self._generation.events():
                match event:
                    case Embedded():
                        embeddings[index] = event.values
                    case Failed():
                        await self._refuse(Refusal.of_failure(event))(scope, receive, send)
                        return
            in_order = [embeddings[index] for index in range(len(embeddings))]
            await JsonAnswer(self._word(in_order))(scope, receive, send)

        await _while_listening(self._generation, receive, answer)


class JsonAnswer(Response):
    media_type = "application/json"

    def render(self, content: object) -> bytes:
        return msgspec.json.encode(content)


async def _while_listening(generation: Generation, receive: Receive, answer: Callable[[], Awaitable[None]]) -> None:
    """Answer unless the client leaves; in the end no request of it runs on."""
    try:
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(_watch(receive))
            await answer()
            watch.cancel()
    except* (_ClientLeft, ConnectionError):
        # There is nobody left to tell.
        pass
    finally:
        generation.cancel()


async def _watch(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise _ClientLeft
