"""One generation on behalf of an HTTP client: from checked options to a stream of events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import msgspec

from agent.api.deployment import Face
from agent.api.gateway import Gateway
from agent.serving.grammar import TokenGrammar
from agent.serving.request import Failed, Finished, Request, RequestEvent
from agent.wire.rank import SamplingParams

LONG_TEXT = 16_384
"""Characters from which a text is tokenised beside the event loop."""
UNLIMITED = 1 << 30


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asked for, checked. `max_tokens` None: up to the end of the context."""

    prompt: tuple[int, ...]
    params: SamplingParams
    max_tokens: int | None
    stop: tuple[str, ...]
    arrived_s: float
    """Monotonic."""
    grammar: TokenGrammar | None = None
    context: int | None = None
    """The client's own, smaller limit on prompt and answer together."""
    ignores_eos: bool = False
    """Go on past the model's end tokens, for measurements of a known length."""


class Generation:
    """A submitted request and the events that came of it so far. Raises Refusal when it is not taken."""

    def __init__(self, gateway: Gateway, face: Face, draft: Draft) -> None:
        self.face = face
        self._gateway = gateway
        self._events: asyncio.Queue[RequestEvent] = asyncio.Queue()
        limits = [draft.max_tokens or UNLIMITED]
        if draft.context is not None:
            limits.append(max(1, draft.context - len(draft.prompt)))
        self.request = Request(
            prompt=draft.prompt,
            params=draft.params,
            max_tokens=min(limits),
            eos_token_ids=frozenset() if draft.ignores_eos else face.tokens.eos_token_ids,
            text=face.tokens.stream(draft.prompt, stop=draft.stop),
            grammar=draft.grammar,
            arrived_s=draft.arrived_s,
            on_event=self._events.put_nowait,
        )
        gateway.submit(face, self.request)

    async def events(self) -> AsyncIterator[RequestEvent]:
        """All events, the last of which is Finished or Failed."""
        while True:
            event = await self._events.get()
            yield event
            if isinstance(event, Finished | Failed):
                return

    def cancel(self) -> None:
        """Free its slot; nothing happens when it is over."""
        if not self.request.is_over:
            self._gateway.cancel(self.face, self.request)


async def encode(face: Face, text: str, *, adds_special: bool) -> tuple[int, ...]:
    """Token ids of a text; long ones do not hold up other clients' streams."""
    if len(text) < LONG_TEXT:
        return face.tokens.encode(text, adds_special=adds_special)
    return await asyncio.to_thread(face.tokens.encode, text, adds_special=adds_special)


def monotonic_s() -> float:
    """The clock of `Request`'s times."""
    return time.monotonic()
