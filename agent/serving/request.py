"""One client's request: what to generate, how far it is, and the events it emits. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import msgspec

from agent.errors import ErrorDetail
from agent.serving.tokens import TextStream
from agent.wire.rank import SampledToken, SamplingParams

FinishReason = Literal["stop", "length"]
RequestState = Literal["queued", "running", "finished", "failed", "cancelled"]


class TokenDrawn(msgspec.Struct, frozen=True, kw_only=True):
    """A drawn token; `logprobs` are (token, natural logarithm), the chosen token first."""

    token: int
    logprobs: tuple[tuple[int, float], ...] = ()


class TextEmitted(msgspec.Struct, frozen=True, kw_only=True):
    """Text that is certain, and the tokens that have become text since the last event."""

    text: str
    tokens: tuple[TokenDrawn, ...]


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    reason: FinishReason


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """The request ends here without being complete. `retry_after_s` is None when a retry would not help."""

    error: ErrorDetail
    retry_after_s: int | None = None


class Embedded(msgspec.Struct, frozen=True, kw_only=True):
    """The only event of a request that embeds: the final hidden state of its last token, float32."""

    values: bytes


RequestEvent = TextEmitted | Embedded | Finished | Failed


class GrammarBroken(Exception):
    """A constrained request cannot go on; the text says why."""


class Grammar(Protocol):
    """What may be drawn next. A function of the accepted tokens alone: replaying them gives the same state."""

    @property
    def is_complete(self) -> bool:
        """Nothing can follow what was accepted."""
        ...

    def mask(self) -> bytes:
        """Tokens that may come next, as `SequenceSlice.masks` has them; an end token only where it may end."""
        ...

    def accept(self, token: int) -> None:
        """Raises GrammarBroken when the token cannot follow; `Request.deliver` handles it."""
        ...


class Request:
    """Mutable record of one generation. The scheduler moves `state` and `generated`; the rest is told to it.

    `prompt` is never empty. `text` is None where nobody reads text (the canary). Ends with exactly one
    `Finished`, `Embedded` or `Failed`, or silently when its client cancelled it.
    """

    def __init__(
        self,
        *,
        prompt: tuple[int, ...],
        params: SamplingParams,
        max_tokens: int,
        arrived_s: float,
        eos_token_ids: frozenset[int] = frozenset(),
        text: TextStream | None = None,
        grammar: Grammar | None = None,
        embeds: bool = False,
        is_probe: bool = False,
        priority: int = 0,
        client: str = "",
        request_id: str = "",
        on_event: Callable[[RequestEvent], None],
    ) -> None:
        assert prompt, "a prompt has at least one token"
        assert max_tokens >= 1, f"max_tokens {max_tokens}"
        self.prompt = prompt
        self.params = params
        self.max_tokens = max_tokens
        self.eos_token_ids = eos_token_ids
        self.embeds = embeds
        """Asks for the embedding of its prompt; nothing is generated."""
        self.is_probe = is_probe
        """Ours, not a client's: left out of the metrics, and computed from its first token on without guesses."""
        self.priority = priority
        """Smaller comes first, strictly (vLLM's convention). 0 is what clients get who say nothing."""
        self.client = client
        """Among whom slots are shared fairly: an API key's name or a remote address."""
        self.request_id = request_id
        """What operators call it by; empty for probes, which nobody lists."""
        self.turn = -1
        """Its place in the order of arrival; the scheduler's."""
        self.state: RequestState = "queued"
        self.generated: list[int] = []
        self.arrived_s = arrived_s
        self.started_s: float | None = None
        """When its first step was sent, in the same clock as `arrived_s`."""
        self.first_token_s: float | None = None
        self.last_token_s: float | None = None
        self.grammar = grammar
        """Constrains every token; such a request takes no drafts."""
        self._text = text
        self._on_event = on_event
        self._unsent: list[TokenDrawn] = []

    @property
    def is_over(self) -> bool:
        return self.state in ("finished", "failed", "cancelled")

    def next_mask(self) -> bytes:
        """`SequenceSlice.masks` for the next draw; empty where any token may come."""
        return b"" if self.grammar is None else self.grammar.mask()

    def deliver(self, sampled: SampledToken, finish: FinishReason | None, now_s: float) -> bool:
        """Emit what a drawn token makes certain. True when a stop string or its grammar ended the request here.

        `finish` is the scheduler's verdict: `stop` for an end-of-sequence token, which has no text.
        """
        assert not self.is_over, f"a token for a {self.state} request"
        if self.grammar is not None:
            try:
                self.grammar.accept(sampled.token)
            except GrammarBroken as broken:
                self.fail(ErrorDetail(code="E818", message=f"structured output: {broken}"))
                return True
        if self.first_token_s is None:
            self.first_token_s = now_s
        self.last_token_s = now_s
        piece, is_stopped = "", False
        if finish != "stop":
            self._unsent.append(TokenDrawn(token=sampled.token, logprobs=tuple(sampled.logprobs)))
            if self._text is not None:
                piece, is_stopped = self._text.push(sampled.token)
        if is_stopped:
            finish = "stop"
            del self.generated[sampled.position - len(self.prompt) + 1 :]
        elif finish != "stop" and self.grammar is not None and self.grammar.is_complete:
            is_stopped, finish = True, "stop"
            piece += self._text.flush()[0] if self._text is not None else ""
        elif finish is not None and self._text is not None:
            tail, is_cut = self._text.flush()
            piece += tail
            finish = "stop" if is_cut else finish
        self._emit_text(piece, is_last=finish is not None)
        if finish is not None:
            self.state = "finished"
            self._on_event(Finished(reason=finish))
        return is_stopped

    def deliver_embedding(self, values: bytes, now_s: float) -> None:
        """The end of a request that embeds."""
        assert self.embeds, "only what was asked for is delivered"
        assert not self.is_over, f"an embedding for a {self.state} request"
        self.first_token_s = self.last_token_s = now_s
        self.state = "finished"
        self._on_event(Embedded(values=values))

    def fail(self, error: ErrorDetail, *, retry_after_s: int | None = None) -> None:
        """End with an error. Nothing happens when it is over already."""
        if not self.is_over:
            self.state = "failed"
            self._on_event(Failed(error=error, retry_after_s=retry_after_s))

    def tell_cancelled(self, error: ErrorDetail) -> None:
        """Somebody else than its client has cancelled it: the client hears why."""
        assert self.state == "cancelled", f"a {self.state} request was not cancelled"
        self._on_event(Failed(error=error))

    def _emit_text(self, piece: str, *, is_last: bool) -> None:
        if piece or (is_last and self._unsent):
            self._on_event(TextEmitted(text=piece, tokens=tuple(self._unsent)))
            self._unsent.clear()
