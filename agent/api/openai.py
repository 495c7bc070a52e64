"""OpenAI's HTTP API: models, chat completions and completions, whole or as server-sent events."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from agent.api.answer import GenerationAnswer, JsonAnswer
from agent.api.deployment import Face
from agent.api.fields import Fields, read_fields, token_ids
from agent.api.gateway import Gateway
from agent.api.generation import Draft, Generation, encode, monotonic_s
from agent.api.logprobs import completion_logprobs, entry_of
from agent.api.refusal import Refusal, bad_field, not_supported, sentence_of
from agent.api.structured import openai_format
from agent.errors import ErrorDetail
from agent.serving.chat import TemplateRefused
from agent.serving.request import Finished, Request, TextEmitted, TokenDrawn
from agent.wire.rank import SamplingParams

SEED_BITS = 63
MAX_STOP = 16
"""OpenAI takes four; clients of local models send more."""
COMPLETION_MAX_TOKENS = 16
"""OpenAI's default for text completions."""
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


def refuse(refusal: Refusal) -> Response:
    return JsonAnswer(
        _error_body(refusal.message, status=refusal.status, param=refusal.param, code=refusal.code),
        status_code=refusal.status,
        headers=refusal.headers,
    )


async def list_models(request: HttpRequest) -> Response:
    return JsonAnswer({"object": "list", "data": [_model(face) for face in _gateway(request).faces()]})


async def get_model(request: HttpRequest) -> Response:
    return JsonAnswer(_model(_gateway(request).find(request.path_params["model"])))


async def chat_completions(request: HttpRequest) -> Response:
    arrived_s = monotonic_s()
    fields = await read_fields(request)
    face = _find(request, fields)
    messages = [_message(each, index) for index, each in enumerate(fields.objects("messages"))]
    if not messages:
        raise bad_field("messages", fields.raw("messages"), "a list of at least one message")
    _refuse_unsupported(fields)
    limit = "max_completion_tokens" if fields.has("max_completion_tokens") else "max_tokens"
    num_top = fields.integer("top_logprobs", 0, at_least=0, at_most=20)
    has_logprobs = fields.boolean("logprobs", False)
    if num_top and not has_logprobs:
        raise bad_field("top_logprobs", num_top, "left out unless `logprobs` is true")
    try:
        text = face.chat.render(messages)
    except TemplateRefused as error:
        raise Refusal(
            400, f"the model's chat template refuses these messages: {error}", param="messages"
        ) from error
    draft = Draft(
        prompt=await encode(face, text, adds_special=False),
        params=_sampling(fields, num_top if has_logprobs else -1),
        max_tokens=fields.integer(limit, 0, at_least=1) or None,
        stop=(*fields.stop(at_most=MAX_STOP), *face.chat.stop),
        arrived_s=arrived_s,
        grammar=await openai_format(fields, face),
        ignores_eos=fields.boolean("ignore_eos", False),
    )
    return _answer(
        request,
        fields,
        face=face,
        draft=draft,
        form=_ChatForm,
        num_top=num_top if has_logprobs else None,
    )


async def completions(request: HttpRequest) -> Response:
    arrived_s = monotonic_s()
    fields = await read_fields(request)
    face = _find(request, fields)
    _refuse_unsupported(fields)
    num_top = fields.integer("logprobs", -1, at_least=0, at_most=5)
    draft = Draft(
        prompt=await _prompt(fields, face),
        params=_sampling(fields, num_top),
        max_tokens=fields.integer("max_tokens", COMPLETION_MAX_TOKENS, at_least=1),
        stop=fields.stop(at_most=MAX_STOP),
        arrived_s=arrived_s,
        grammar=await openai_format(fields, face),
        ignores_eos=fields.boolean("ignore_eos", False),
    )
    return _answer(
        request,
        fields,
        face=face,
        draft=draft,
        form=_CompletionForm,
        num_top=num_top if num_top >= 0 else None,
    )


async def not_implemented(request: HttpRequest) -> Response:
    raise Refusal(501, f"{request.url.path} is not offered by odctl", code="not_implemented")


ROUTES = [
    Route("/v1/models", list_models, methods=["GET"]),
    Route("/v1/models/{model:path}", get_model, methods=["GET"]),
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    Route("/v1/completions", completions, methods=["POST"]),
    *[
        Route(f"/v1/{path}", not_implemented, methods=["GET", "POST", "DELETE"])
        for path in (
            "embeddings",
            "responses",
            "responses/{rest:path}",
            "messages",
            "moderations",
            "images/{rest:path}",
            "audio/{rest:path}",
            "files",
            "files/{rest:path}",
            "batches",
            "batches/{rest:path}",
            "fine_tuning/{rest:path}",
        )
    ],
]


class _SseForm(ABC):
    """Server-sent events; trouble is an event with `error`, which OpenAI's clients raise."""

    stream_type = "text/event-stream; charset=utf-8"
    id_prefix = ""
    chunk_object = ""
    whole_object = ""

    def __init__(self, face: Face, *, num_top: int | None, includes_usage: bool) -> None:
        self._face = face
        self._num_top = num_top
        self._includes_usage = includes_usage
        self._num_characters = 0
        self._head = {
            "id": f"{self.id_prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": face.name,
            "system_fingerprint": f"fp_{face.attach.plan_hash[:12]}",
        }

    def begin(self) -> bytes:
        return b""

    def piece(self, event: TextEmitted) -> bytes:
        choice = self._choice_of_piece(event)
        self._num_characters += len(event.text)
        return self._chunk([choice])

    def end(self, request: Request, finished: Finished) -> bytes:
        data = self._chunk([self._choice_of_end(finished)])
        if self._includes_usage:
            data += _event(self._head | {"object": self.chunk_object, "choices": [], "usage": _usage(request)})
        return data + b"data: [DONE]\n\n"

    def broken(self, error: ErrorDetail) -> bytes:
        return _event(_error_body(sentence_of(error), status=503, code=error.code)) + b"data: [DONE]\n\n"

    def whole(
        self, request: Request, text: str, tokens: tuple[TokenDrawn, ...], finished: Finished
    ) -> dict[str, Any]:
        choice = self._whole_choice(text, tokens) | {"index": 0, "finish_reason": finished.reason}
        return self._head | {"object": self.whole_object, "choices": [choice], "usage": _usage(request)}

    def refusal(self, refusal: Refusal) -> Response:
        return refuse(refusal)

    @abstractmethod
    def _choice_of_piece(self, event: TextEmitted) -> dict[str, Any]: ...

    @abstractmethod
    def _choice_of_end(self, finished: Finished) -> dict[str, Any]: ...

    @abstractmethod
    def _whole_choice(self, text: str, tokens: tuple[TokenDrawn, ...]) -> dict[str, Any]: ...

    def _chunk(self, choices: list[dict[str, Any]]) -> bytes:
        usage = {"usage": None} if self._includes_usage else {}
        return _event(self._head | {"object": self.chunk_object, "choices": choices} | usage)


class _ChatForm(_SseForm):
    id_prefix = "chatcmpl"
    chunk_object = "chat.completion.chunk"
    whole_object = "chat.completion"

    def begin(self) -> bytes:
        delta = {"role": "assistant", "content": ""}
        return self._chunk([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}])

    def _choice_of_piece(self, event: TextEmitted) -> dict[str, Any]:
        return {
            "index": 0,
            "delta": {"content": event.text},
            "logprobs": self._logprobs(event.tokens),
            "finish_reason": None,
        }

    def _choice_of_end(self, finished: Finished) -> dict[str, Any]:
        return {"index": 0, "delta": {}, "logprobs": None, "finish_reason": finished.reason}

    def _whole_choice(self, text: str, tokens: tuple[TokenDrawn, ...]) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"message": message, "logprobs": self._logprobs(tokens)}

    def _logprobs(self, tokens: tuple[TokenDrawn, ...]) -> dict[str, Any] | None:
        if self._num_top is None:
            return None
        entries = [entry_of(self._face.tokens, drawn, self._num_top) for drawn in tokens]
        return {"content": entries, "refusal": None}


class _CompletionForm(_SseForm):
    id_prefix = "cmpl"
    chunk_object = "text_completion"
    whole_object = "text_completion"

    def _choice_of_piece(self, event: TextEmitted) -> dict[str, Any]:
        logprobs = self._logprobs(event.tokens)
        return {"index": 0, "text": event.text, "logprobs": logprobs, "finish_reason": None}

    def _choice_of_end(self, finished: Finished) -> dict[str, Any]:
        return {"index": 0, "text": "", "logprobs": None, "finish_reason": finished.reason}

    def _whole_choice(self, text: str, tokens: tuple[TokenDrawn, ...]) -> dict[str, Any]:
        return {"text": text, "logprobs": self._logprobs(tokens)}

    def _logprobs(self, tokens: tuple[TokenDrawn, ...]) -> dict[str, Any] | None:
        if self._num_top is None:
            return None
        return completion_logprobs(self._face.tokens, tokens, self._num_top, self._num_characters)


def _answer(
    request: HttpRequest,
    fields: Fields,
    *,
    face: Face,
    draft: Draft,
    form: type[_SseForm],
    num_top: int | None,
) -> Response:
    streams = fields.boolean("stream", False)
    if fields.has("stream_options") and not streams:
        raise bad_field("stream_options", fields.raw("stream_options"), "left out unless `stream` is true")
    includes_usage = fields.fields("stream_options").boolean("include_usage", False)
    generation = Generation(_gateway(request), face, draft)
    return GenerationAnswer(
        generation,
        form(face, num_top=num_top, includes_usage=includes_usage),
        streams=streams,
        headers={"x-request-id": f"req_{secrets.token_hex(12)}"},
    )


def _sampling(fields: Fields, num_logprobs: int) -> SamplingParams:
    """OpenAI's defaults; `top_k`, `min_p` and `repetition_penalty` as vLLM adds them."""
    seed = fields.integer("seed", -1)
    return SamplingParams(
        seed=secrets.randbits(SEED_BITS) if not fields.has("seed") else seed & ((1 << SEED_BITS) - 1),
        temperature=fields.number("temperature", 1.0, at_least=0, at_most=2),
        top_k=max(0, fields.integer("top_k", 0, at_least=-1)),
        top_p=fields.number("top_p", 1.0, at_least=0, at_most=1),
        min_p=fields.number("min_p", 0.0, at_least=0, at_most=1),
        repeat_penalty=fields.number("repetition_penalty", 1.0, at_least=0.01),
        repeat_last_n=-1,
        presence_penalty=fields.number("presence_penalty", 0.0, at_least=-2, at_most=2),
        frequency_penalty=fields.number("frequency_penalty", 0.0, at_least=-2, at_most=2),
        logprobs=num_logprobs,
    )


async def _prompt(fields: Fields, face: Face) -> tuple[int, ...]:
    """A text or token ids, or a list with one such prompt."""
    value = fields.raw("prompt")
    if isinstance(value, list) and value and not isinstance(value[0], int):
        if len(value) > 1:
            raise bad_field("prompt", value, "one prompt: send a request for each")
        value = value[0]
    if isinstance(value, str):
        tokens = await encode(face, value, adds_special=True)
    else:
        tokens = token_ids("prompt", value, vocab_size=face.attach.model.vocab_size)
    if not tokens:
        raise bad_field("prompt", value, "a text of at least one token for this model")
    return tokens


def _message(message: Mapping[str, Any], index: int) -> dict[str, Any]:
    role = message.get("role")
    if role not in _ROLES:
        raise bad_field(f"messages[{index}].role", role, f"one of {', '.join(_ROLES)}")
    content = _text_of(message.get("content"), f"messages[{index}].content")
    return {**message, "role": "system" if role == "developer" else role, "content": content}


def _text_of(content: object, name: str) -> str:
    """A string, or a list of text parts; templates of text models want one string."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad_field(name, content, "a string or a list of text parts")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise bad_field(name, kind or part, "made of parts with type `text`: the model reads text only")
        texts.append(part["text"])
    return "".join(texts)


def _refuse_unsupported(fields: Fields) -> None:
    """What would change the answer and cannot be honoured is refused rather than ignored."""
    for name in ("n", "best_of"):
        if fields.integer(name, 1, at_least=1) != 1:
            raise bad_field(name, fields.raw(name), "1: send a request for each choice")
    if fields.raw("tools") and fields.raw("tool_choice") != "none":
        raise not_supported("tools", "tool calls are not built yet")
    for name in ("functions", "logit_bias", "suffix"):
        if fields.raw(name):
            raise not_supported(name, "it would change the answer and is not built")
    if fields.boolean("echo", False):
        raise not_supported("echo", "prompts are not sent back")


def _find(request: HttpRequest, fields: Fields) -> Face:
    name = fields.string("model")
    if not name:
        raise Refusal(400, "`model` is required", param="model", code="missing_required_parameter")
    return _gateway(request).find(name)


def _model(face: Face) -> dict[str, Any]:
    return {"id": face.name, "object": "model", "created": int(face.since_s), "owned_by": "odctl"}


def _usage(request: Request) -> dict[str, int]:
    prompt, generated = len(request.prompt), len(request.generated)
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


def _error_body(message: str, *, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kinds = {401: "authentication_error", 404: "not_found_error", 503: "service_unavailable_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _event(body: Mapping[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def _gateway(request: HttpRequest) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway
