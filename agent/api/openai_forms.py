"""How OpenAI words its answers: chat completions and completions, whole or as server-sent events."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, assert_never

import msgspec
from starlette.responses import Response

from agent.api.answer import JsonAnswer, Outcome
from agent.api.deployment import Face
from agent.api.logprobs import completion_logprobs, entry_of
from agent.api.messages import fresh_id
from agent.api.refusal import Refusal, sentence_of
from agent.api.turn import Reading
from agent.errors import ErrorDetail
from agent.serving.request import Finished, Request, TextEmitted, TokenDrawn
from agent.serving.tools import Content, Part, Thinking, ToolCall


def refuse(refusal: Refusal) -> Response:
    return JsonAnswer(
        _error_body(refusal.message, status=refusal.status, param=refusal.param, code=refusal.code),
        status_code=refusal.status,
        headers=refusal.headers,
    )


class SseForm(ABC):
    """Server-sent events; trouble is an event with `error`, which OpenAI's clients raise."""

    stream_type = "text/event-stream; charset=utf-8"
    id_prefix = ""
    chunk_object = ""
    whole_object = ""

    def __init__(self, face: Face, *, num_top: int | None, includes_usage: bool, choices_a_prompt: int) -> None:
        self._face = face
        self._num_top = num_top
        self._includes_usage = includes_usage
        self._choices_a_prompt = choices_a_prompt
        self._head = {
            "id": f"{self.id_prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": face.name,
            "system_fingerprint": f"fp_{face.attach.plan_hash[:12]}",
        }

    def begin(self) -> bytes:
        return b""

    @abstractmethod
    def piece(self, index: int, event: TextEmitted, /) -> bytes: ...

    @abstractmethod
    def end(self, index: int, request: Request, finished: Finished, /) -> bytes: ...

    def close(self, requests: Sequence[Request], /) -> bytes:
        data = b""
        if self._includes_usage:
            usage = self._usage(requests)
            data = _event(self._head | {"object": self.chunk_object, "choices": [], "usage": usage})
        return data + b"data: [DONE]\n\n"

    def broken(self, error: ErrorDetail) -> bytes:
        return _event(_error_body(sentence_of(error), status=503, code=error.code)) + b"data: [DONE]\n\n"

    def whole(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        choices = [{"index": index} | self._whole_choice(index, outcome) for index, outcome in enumerate(outcomes)]
        usage = self._usage([outcome.request for outcome in outcomes])
        return self._head | {"object": self.whole_object, "choices": choices, "usage": usage}

    def refusal(self, refusal: Refusal) -> Response:
        return refuse(refusal)

    @abstractmethod
    def _whole_choice(self, index: int, outcome: Outcome, /) -> dict[str, Any]: ...

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        usage = {"usage": None} if self._includes_usage else {}
        return _event(self._head | {"object": self.chunk_object, "choices": [choice]} | usage)

    def _usage(self, requests: Sequence[Request]) -> dict[str, int]:
        """A prompt counts once, whatever the number of its choices."""
        prompt = sum(len(request.prompt) for request in requests[:: self._choices_a_prompt])
        generated = sum(len(request.generated) for request in requests)
        return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


class ChatForm(SseForm):
    id_prefix = "chatcmpl"
    chunk_object = "chat.completion.chunk"
    whole_object = "chat.completion"

    def __init__(
        self,
        face: Face,
        *,
        reading: Reading,
        num_top: int | None,
        includes_usage: bool,
        num_choices: int,
    ) -> None:
        super().__init__(face, num_top=num_top, includes_usage=includes_usage, choices_a_prompt=num_choices)
        self._reading = reading
        self._parsers = [reading.parser() for _ in range(num_choices)]
        self._tokens: list[list[TokenDrawn]] = [[] for _ in range(num_choices)]
        """Those whose text is held back, for their log probabilities."""
        self._num_calls = [0] * num_choices

    def begin(self) -> bytes:
        delta = {"role": "assistant", "content": ""}
        return b"".join(
            self._chunk({"index": index, "delta": delta, "logprobs": None, "finish_reason": None})
            for index in range(len(self._parsers))
        )

    def piece(self, index: int, event: TextEmitted, /) -> bytes:
        self._tokens[index].extend(event.tokens)
        return self._deltas(index, self._parsers[index].push(event.text))

    def end(self, index: int, _request: Request, finished: Finished, /) -> bytes:
        data = self._deltas(index, self._parsers[index].flush())
        if self._tokens[index] and self._num_top is not None:
            data += self._delta(index, {})
        reason = _reason(finished, self._num_calls[index])
        return data + self._chunk({"index": index, "delta": {}, "logprobs": None, "finish_reason": reason})

    def _deltas(self, index: int, parts: Sequence[Part]) -> bytes:
        data = b""
        for part in parts:
            match part:
                case Content(text=text):
                    data += self._delta(index, {"content": text})
                case Thinking(text=text):
                    data += self._delta(index, {"reasoning": text})
                case ToolCall():
                    number = self._num_calls[index]
                    call = self._call(index, number, part)
                    opening = call | {"function": call["function"] | {"arguments": ""}}
                    data += self._delta(index, {"tool_calls": [{"index": number} | opening]})
                    arguments = {"index": number, "function": {"arguments": part.arguments}}
                    data += self._delta(index, {"tool_calls": [arguments]})
                    self._num_calls[index] += 1
                case _:
                    assert_never(part)
        return data

    def _delta(self, index: int, delta: dict[str, Any]) -> bytes:
        tokens, self._tokens[index] = self._tokens[index], []
        logprobs = self._logprobs(tokens)
        return self._chunk({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None})

    def _whole_choice(self, index: int, outcome: Outcome, /) -> dict[str, Any]:
        parser = self._parsers[index]
        parts = [*parser.push(outcome.text), *parser.flush()]
        content = "".join(part.text for part in parts if isinstance(part, Content))
        reasoning = "".join(part.text for part in parts if isinstance(part, Thinking))
        calls = [part for part in parts if isinstance(part, ToolCall)]
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if reasoning:
            message["reasoning"] = reasoning
        if calls:
            message["content"] = content or None
            message["tool_calls"] = [self._call(index, number, call) for number, call in enumerate(calls)]
        return {
            "message": message,
            "logprobs": self._logprobs(outcome.tokens),
            "finish_reason": _reason(outcome.finished, len(calls)),
        }

    def _call(self, index: int, number: int, call: ToolCall) -> dict[str, Any]:
        entropy = f"{self._head['id']} {index} {number}".encode()
        return {
            "id": fresh_id(self._reading.tools, entropy),
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }

    def _logprobs(self, tokens: Sequence[TokenDrawn]) -> dict[str, Any] | None:
        if self._num_top is None:
            return None
        entries = [entry_of(self._face.tokens, drawn, self._num_top) for drawn in tokens]
        return {"content": entries, "refusal": None}


class CompletionForm(SseForm):
    id_prefix = "cmpl"
    chunk_object = "text_completion"
    whole_object = "text_completion"

    def __init__(self, face: Face, *, num_top: int | None, includes_usage: bool, choices_a_prompt: int) -> None:
        super().__init__(face, num_top=num_top, includes_usage=includes_usage, choices_a_prompt=choices_a_prompt)
        self._num_characters: dict[int, int] = {}

    def piece(self, index: int, event: TextEmitted, /) -> bytes:
        offset = self._num_characters.get(index, 0)
        self._num_characters[index] = offset + len(event.text)
        logprobs = self._logprobs(event.tokens, offset)
        return self._chunk({"index": index, "text": event.text, "logprobs": logprobs, "finish_reason": None})

    def end(self, index: int, _request: Request, finished: Finished, /) -> bytes:
        return self._chunk({"index": index, "text": "", "logprobs": None, "finish_reason": finished.reason})

    def _whole_choice(self, _index: int, outcome: Outcome, /) -> dict[str, Any]:
        return {
            "text": outcome.text,
            "logprobs": self._logprobs(outcome.tokens, 0),
            "finish_reason": outcome.finished.reason,
        }

    def _logprobs(self, tokens: tuple[TokenDrawn, ...], offset: int) -> dict[str, Any] | None:
        if self._num_top is None:
            return None
        return completion_logprobs(self._face.tokens, tokens, self._num_top, offset)


def _reason(finished: Finished, num_calls: int) -> str:
    return "tool_calls" if num_calls and finished.reason == "stop" else finished.reason


def _error_body(message: str, *, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kinds = {401: "authentication_error", 404: "not_found_error", 503: "service_unavailable_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _event(body: Mapping[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(body) + b"\n\n"
