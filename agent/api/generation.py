"""Generations on behalf of an HTTP client: from checked options to one stream of events."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence

import msgspec

from agent.api.asker import Asker
from agent.api.deployment import Face
from agent.api.gateway import Gateway
from agent.api.in_flight import CALL_PREFIX, UNLIMITED
from agent.api.refusal import Refusal
from agent.errors import ErrorDetail
from agent.serving.grammar import TokenGrammar
from agent.serving.request import Embedded, Failed, Finished, Request, RequestEvent
from agent.wire.rank import SamplingParams

LONG_TEXT = 16_384
"""Characters from which a text is tokenised beside the event loop."""
BUSY_STATUS = 503
CALL_HEADER = "x-request-id"


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asked for, checked. `max_tokens` None: up to the end of the context."""

    prompt: tuple[int, ...]
    params: SamplingParams
    max_tokens: int | None
    stop: tuple[str, ...]
    arrived_s: float
    """Monotonic."""
    grammar: TokenGrammar | None = None
    shown: tuple[str, ...] = ()
    """Special tokens that the reader of the answer looks for."""
    context: int | None = None
    """The client's own, smaller limit on prompt and answer together."""
    ignores_eos: bool = False
    """Go on past the model's end tokens, for measurements of a known length."""
    asker: Asker = Asker()
    embeds: bool = False
    """The prompt's embedding is wanted, and no text."""


class Generation:
    """Requests of one HTTP call and the events that come of them.

    As many run at a time as the model has slots: a large call does not fill the queue that others wait in. Raises
    Refusal when not even the first one is taken.
    """

    def __init__(self, gateway: Gateway, face: Face, drafts: Sequence[Draft], *, call_id: str = "") -> None:
        """`call_id` is what operators and the client call it by; one is made where none is given."""
        self.face = face
        self.call_id = call_id or fresh_call_id()
        self._gateway = gateway
        self._events: asyncio.Queue[tuple[int, RequestEvent]] = asyncio.Queue()
        self.requests = [self._request(index, draft) for index, draft in enumerate(drafts)]
        self._unsubmitted = deque(self.requests)
        self._num_open = 0
        self._submit()

    async def events(self) -> AsyncIterator[tuple[int, RequestEvent]]:
        """(choice, event) until every choice has ended, or one has failed: then the others are worth nothing."""
        while self._num_open:
            index, event = await self._events.get()
            if isinstance(event, Finished | Embedded):
                self._num_open -= 1
                yield index, event
                try:
                    self._submit()
                except Refusal as refusal:
                    error = ErrorDetail(code="E815", message=refusal.message)
                    yield index, Failed(error=error, retry_after_s=refusal.retry_after_s)
                    return
            else:
                yield index, event
                if isinstance(event, Failed):
                    return

    def cancel(self) -> None:
        """Free their slots; nothing happens to those that are over."""
        self._unsubmitted.clear()
        for request in self.requests:
            if not request.is_over:
                self._gateway.cancel(self.face, request)

    def _submit(self) -> None:
        """Raises Refusal when none is taken and none runs; otherwise what runs makes room."""
        while self._unsubmitted and self._num_open < self.face.attach.serving.batch:
            try:
                self._gateway.submit(self.face, self._unsubmitted[0])
            except Refusal as refusal:
                if not self._num_open or refusal.status != BUSY_STATUS:
                    self.cancel()
                    raise
                return
            self._unsubmitted.popleft()
            self._num_open += 1

    def _request(self, index: int, draft: Draft) -> Request:
        limits = [draft.max_tokens or UNLIMITED]
        if draft.context is not None:
            limits.append(max(1, draft.context - len(draft.prompt)))
        tokens = self.face.tokens
        return Request(
            prompt=draft.prompt,
            params=draft.params,
            max_tokens=min(limits),
            eos_token_ids=frozenset() if draft.ignores_eos else tokens.eos_token_ids,
            text=None if draft.embeds else tokens.stream(draft.prompt, stop=draft.stop, shown=draft.shown),
            grammar=draft.grammar,
            embeds=draft.embeds,
            priority=draft.asker.priority,
            client=draft.asker.client,
            request_id=f"{self.call_id}.{index}" if index else self.call_id,
            arrived_s=draft.arrived_s,
            on_event=lambda event: self._events.put_nowait((index, event)),
        )


def fresh_call_id() -> str:
    return f"{CALL_PREFIX}{secrets.token_hex(12)}"


async def encode(face: Face, text: str, *, adds_special: bool) -> tuple[int, ...]:
    """Token ids of a text; long ones do not hold up other clients' streams."""
    if len(text) < LONG_TEXT:
        return face.tokens.encode(text, adds_special=adds_special)
    return await asyncio.to_thread(face.tokens.encode, text, adds_special=adds_special)


def monotonic_s() -> float:
    """The clock of `Request`'s times."""
    return time.monotonic()
