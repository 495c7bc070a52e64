"""How Ollama words its answers: lines of JSON, or one object."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from starlette.responses import Response

from agent.api.answer import JsonAnswer, Outcome
from agent.api.deployment import Face
from agent.api.logprobs import entry_of
from agent.api.messages import fresh_id
from agent.api.refusal import Refusal, sentence_of
from agent.api.turn import Reading
from agent.errors import ErrorDetail
from agent.serving.request import Finished, Request, TextEmitted, TokenDrawn
from agent.serving.tools import Content, Part, Thinking, ToolCall


def refuse(refusal: Refusal) -> Response:
    return JsonAnswer({"error": refusal.message}, status_code=refusal.status, headers=refusal.headers)


def stamp(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class NdjsonForm(ABC):
    """An error is a line too, which Ollama's clients raise."""

    stream_type = "application/x-ndjson"

    def __init__(self, model: str, face: Face, *, reading: Reading, num_top: int) -> None:
        self._model = model
        self._face = face
        self._reading = reading
        self._num_top = num_top
        self._parser = reading.parser()
        self._tokens: list[TokenDrawn] = []
        """Those whose text is held back, for their log probabilities."""
        self._num_calls = 0

    def begin(self) -> bytes:
        return b""

    def piece(self, _index: int, event: TextEmitted, /) -> bytes:
        self._tokens.extend(event.tokens)
        return self._lines(self._parser.push(event.text))

    def end(self, _index: int, request: Request, finished: Finished, /) -> bytes:
        lines = self._lines(self._parser.flush())
        return lines + _line(self._body([], self._take_tokens()) | self._final(request, finished))

    def close(self, _requests: Sequence[Request], /) -> bytes:
        return b""

    def broken(self, error: ErrorDetail) -> bytes:
        return _line({"error": sentence_of(error)})

    def whole(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        [outcome] = outcomes
        parts = [*self._parser.push(outcome.text), *self._parser.flush()]
        return self._body(parts, outcome.tokens) | self._final(outcome.request, outcome.finished)

    def refusal(self, refusal: Refusal) -> Response:
        return refuse(refusal)

    @abstractmethod
    def _content(self, text: str, thinking: str, calls: list[dict[str, Any]], /) -> dict[str, Any]: ...

    def _lines(self, parts: Sequence[Part]) -> bytes:
        """One for each part; where none is certain yet, one for the log probabilities, if they are wanted."""
        has_logprobs = any(each.logprobs for each in self._tokens)
        return b"".join(
            _line(self._body(some, self._take_tokens()) | {"done": False})
            for some in ([[part] for part in parts] or ([[]] if has_logprobs else []))
        )

    def _take_tokens(self) -> tuple[TokenDrawn, ...]:
        tokens, self._tokens = tuple(self._tokens), []
        return tokens

    def _body(self, parts: Sequence[Part], tokens: tuple[TokenDrawn, ...]) -> dict[str, Any]:
        text = "".join(part.text for part in parts if isinstance(part, Content))
        thinking = "".join(part.text for part in parts if isinstance(part, Thinking))
        calls = [self._call(part) for part in parts if isinstance(part, ToolCall)]
        head = {"model": self._model, "created_at": stamp(time.time())}
        return head | self._content(text, thinking, calls) | self._logprobs(tokens)

    def _call(self, call: ToolCall) -> dict[str, Any]:
        index, self._num_calls = self._num_calls, self._num_calls + 1
        arguments = msgspec.json.decode(call.arguments)
        return {
            "id": fresh_id(self._reading.tools, secrets.token_bytes(16)),
            "function": {"index": index, "name": call.name, "arguments": arguments},
        }

    def _logprobs(self, tokens: tuple[TokenDrawn, ...]) -> dict[str, Any]:
        drawn = [each for each in tokens if each.logprobs]
        if not drawn:
            return {}
        return {"logprobs": [entry_of(self._face.tokens, each, self._num_top) for each in drawn]}

    def _final(self, request: Request, finished: Finished) -> dict[str, Any]:
        return {"done": True, "done_reason": finished.reason} | _durations(request)


class GenerateForm(NdjsonForm):
    def _content(self, text: str, thinking: str, _calls: list[dict[str, Any]], /) -> dict[str, Any]:
        return {"response": text} | ({"thinking": thinking} if thinking else {})

    def _final(self, request: Request, finished: Finished) -> dict[str, Any]:
        return super()._final(request, finished) | {"context": [*request.prompt, *request.generated]}


class ChatForm(NdjsonForm):
    def _content(self, text: str, thinking: str, calls: list[dict[str, Any]], /) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if thinking:
            message["thinking"] = thinking
        if calls:
            message["tool_calls"] = calls
        return {"message": message}


def _durations(request: Request) -> dict[str, int]:
    """Nanoseconds: waiting for a slot counts as load, computing the prompt ends with the first token."""
    assert request.started_s is not None, "a finished request had a first step"
    assert request.first_token_s is not None, "a finished request has a token"
    assert request.last_token_s is not None, "a finished request has a token"
    return {
        "total_duration": ns(request.last_token_s - request.arrived_s),
        "load_duration": ns(request.started_s - request.arrived_s),
        "prompt_eval_count": len(request.prompt),
        "prompt_eval_duration": ns(request.first_token_s - request.started_s),
        "eval_count": len(request.generated),
        "eval_duration": ns(request.last_token_s - request.first_token_s),
    }


def ns(seconds: float) -> int:
    """At least one, because clients divide by it."""
    return max(1, round(seconds * 1e9))


def _line(body: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(body) + b"\n"
