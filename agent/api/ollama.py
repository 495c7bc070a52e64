"""Ollama's HTTP API, as its own clients and Open WebUI speak it (contract: ollama/server/routes.go)."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from agent.api.answer import GenerationAnswer, JsonAnswer
from agent.api.deployment import Face
from agent.api.fields import Fields, read_fields
from agent.api.gateway import Gateway
from agent.api.generation import Draft, Generation, encode, monotonic_s
from agent.api.logprobs import entry_of
from agent.api.refusal import Refusal, bad_field, not_supported, sentence_of
from agent.api.structured import ollama_format
from agent.errors import ErrorDetail
from agent.facts.model import DTYPE_BYTES
from agent.serving.chat import TemplateRefused
from agent.serving.request import Finished, Request, TextEmitted, TokenDrawn
from agent.wire.rank import SamplingParams

VERSION = "0.12.0"
"""Of the API, not ours: clients compare its dotted integers to decide what they may use."""
SEED_BITS = 63
MAX_STOP = 16
_DTYPE_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def refuse(refusal: Refusal) -> Response:
    return JsonAnswer({"error": refusal.message}, status_code=refusal.status, headers=refusal.headers)


async def root(_request: HttpRequest) -> Response:
    return PlainTextResponse("Ollama is running")


async def version(_request: HttpRequest) -> Response:
    return JsonAnswer({"version": VERSION})


async def tags(request: HttpRequest) -> Response:
    return JsonAnswer({"models": [_tag(face) for face in _gateway(request).faces()]})


async def running(request: HttpRequest) -> Response:
    """A deployment is resident until its operator takes it down, so it expires in the far future."""
    expires = _stamp(time.time() + timedelta(days=3650).total_seconds())
    models = []
    for face in _gateway(request).faces():
        entry = _tag(face)
        del entry["modified_at"]
        context = face.attach.serving.context
        models.append({**entry, "expires_at": expires, "size_vram": entry["size"], "context_length": context})
    return JsonAnswer({"models": models})


async def show(request: HttpRequest) -> Response:
    fields = await read_fields(request)
    face = _find(request, fields)
    model, serving = face.attach.model, face.attach.serving
    family = model.family.name
    facts = {
        "general.architecture": family,
        "general.basename": model.name,
        "general.parameter_count": model.num_parameters,
        f"{family}.attention.head_count": model.num_heads,
        f"{family}.attention.head_count_kv": model.num_kv_heads,
        f"{family}.attention.layer_norm_rms_epsilon": model.rms_norm_eps,
        f"{family}.block_count": model.num_layers,
        f"{family}.context_length": model.max_context,
        f"{family}.embedding_length": model.hidden_size,
        f"{family}.feed_forward_length": model.intermediate_size,
        f"{family}.rope.freq_base": model.rope.theta,
        f"{family}.vocab_size": model.vocab_size,
        "odctl.plan_hash": face.attach.plan_hash,
        "odctl.generation": face.attach.generation,
    }
    return JsonAnswer(
        {
            "modelfile": f"# served by odctl\nFROM {model.name}\nPARAMETER num_ctx {serving.context}\n",
            "parameters": f"num_ctx {serving.context}",
            "template": face.chat.source,
            "details": _details(face),
            "model_info": facts,
            "capabilities": ["completion"],
            "modified_at": _stamp(face.since_s),
        }
    )


async def generate(request: HttpRequest) -> Response:
    arrived_s = monotonic_s()
    fields = await read_fields(request)
    face = _find(request, fields)
    _refuse_unsupported(fields, "suffix", "template", "images", "think")
    prompt, context = fields.string("prompt"), fields.tokens("context", vocab_size=face.attach.model.vocab_size)
    if not prompt and not fields.has("context"):
        return _loaded(fields, {"response": ""})
    is_raw = fields.boolean("raw", False)
    stop: tuple[str, ...] = ()
    if is_raw or face.chat.is_plain:
        system = "" if is_raw else fields.string("system")
        text = f"{system}\n\n{prompt}" if system else prompt
        tokens = await encode(face, text, adds_special=not context)
    else:
        messages = [{"role": "user", "content": prompt}]
        if fields.string("system"):
            messages.insert(0, {"role": "system", "content": fields.string("system")})
        tokens, stop = await encode(face, _render(face, messages), adds_special=False), face.chat.stop
    return await _answer(
        request,
        fields,
        face,
        prompt=(*context, *tokens),
        stop=stop,
        form=_GenerateForm,
        arrived_s=arrived_s,
    )


async def chat(request: HttpRequest) -> Response:
    arrived_s = monotonic_s()
    fields = await read_fields(request)
    face = _find(request, fields)
    _refuse_unsupported(fields, "tools", "think")
    messages = [_message(each, index) for index, each in enumerate(fields.objects("messages"))]
    if not messages:
        return _loaded(fields, {"message": {"role": "assistant", "content": ""}})
    limit = _context_limit(fields, face)
    while True:
        tokens = await encode(face, _render(face, messages), adds_special=False)
        droppable = [index for index, message in enumerate(messages[:-1]) if message["role"] != "system"]
        if len(tokens) < limit or not droppable or not fields.boolean("truncate", True):
            break
        # As Ollama does: the oldest words go first, the system's and the last ones stay.
        del messages[droppable[0]]
    return await _answer(
        request, fields, face, prompt=tokens, stop=face.chat.stop, form=_ChatForm, arrived_s=arrived_s
    )


async def not_implemented(request: HttpRequest) -> Response:
    raise Refusal(501, f"{request.url.path} is not offered by odctl: models are deployed with `odctl apply`")


async def embeddings(_request: HttpRequest) -> Response:
    raise Refusal(501, "embeddings are not offered by odctl: its models generate text")


ROUTES = [
    Route("/", root, methods=["GET"]),
    Route("/api/version", version, methods=["GET"]),
    Route("/api/tags", tags, methods=["GET"]),
    Route("/api/ps", running, methods=["GET"]),
    Route("/api/show", show, methods=["POST"]),
    Route("/api/generate", generate, methods=["POST"]),
    Route("/api/chat", chat, methods=["POST"]),
    Route("/api/embed", embeddings, methods=["POST"]),
    Route("/api/embeddings", embeddings, methods=["POST"]),
    *[Route(f"/api/{verb}", not_implemented, methods=["POST"]) for verb in ("pull", "push", "create", "copy")],
    Route("/api/delete", not_implemented, methods=["DELETE"]),
    Route("/api/blobs/{digest}", not_implemented, methods=["GET", "HEAD", "POST"]),
]


class _NdjsonForm(ABC):
    """Lines of JSON; an error is a line too, which Ollama's clients raise."""

    stream_type = "application/x-ndjson"

    def __init__(self, model: str, face: Face, num_top: int) -> None:
        self._model = model
        self._face = face
        self._num_top = num_top

    def begin(self) -> bytes:
        return b""

    def piece(self, event: TextEmitted) -> bytes:
        if not event.text and not self._logprobs(event.tokens):
            return b""
        return _line(self._body(event.text, event.tokens) | {"done": False})

    def end(self, request: Request, finished: Finished) -> bytes:
        return _line(self._body("", ()) | self._final(request, finished))

    def broken(self, error: ErrorDetail) -> bytes:
        return _line({"error": sentence_of(error)})

    def whole(
        self, request: Request, text: str, tokens: tuple[TokenDrawn, ...], finished: Finished
    ) -> dict[str, Any]:
        return self._body(text, tokens) | self._final(request, finished)

    def refusal(self, refusal: Refusal) -> Response:
        return refuse(refusal)

    @abstractmethod
    def _content(self, text: str) -> dict[str, Any]: ...

    def _body(self, text: str, tokens: tuple[TokenDrawn, ...]) -> dict[str, Any]:
        head = {"model": self._model, "created_at": _stamp(time.time())}
        return head | self._content(text) | self._logprobs(tokens)

    def _logprobs(self, tokens: tuple[TokenDrawn, ...]) -> dict[str, Any]:
        drawn = [each for each in tokens if each.logprobs]
        if not drawn:
            return {}
        return {"logprobs": [entry_of(self._face.tokens, each, self._num_top) for each in drawn]}

    def _final(self, request: Request, finished: Finished) -> dict[str, Any]:
        return {"done": True, "done_reason": finished.reason} | _durations(request)


class _GenerateForm(_NdjsonForm):
    def _content(self, text: str) -> dict[str, Any]:
        return {"response": text}

    def _final(self, request: Request, finished: Finished) -> dict[str, Any]:
        return super()._final(request, finished) | {"context": [*request.prompt, *request.generated]}


class _ChatForm(_NdjsonForm):
    def _content(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}}


def _durations(request: Request) -> dict[str, int]:
    """Nanoseconds: waiting for a slot counts as load, computing the prompt ends with the first token."""
    assert request.started_s is not None, "a finished request had a first step"
    assert request.first_token_s is not None, "a finished request has a token"
    assert request.last_token_s is not None, "a finished request has a token"
    return {
        "total_duration": _ns(request.last_token_s - request.arrived_s),
        "load_duration": _ns(request.started_s - request.arrived_s),
        "prompt_eval_count": len(request.prompt),
        "prompt_eval_duration": _ns(request.first_token_s - request.started_s),
        "eval_count": len(request.generated),
        "eval_duration": _ns(request.last_token_s - request.first_token_s),
    }


def _ns(seconds: float) -> int:
    """At least one, because clients divide by it."""
    return max(1, round(seconds * 1e9))


async def _answer(
    request: HttpRequest,
    fields: Fields,
    face: Face,
    *,
    prompt: tuple[int, ...],
    stop: tuple[str, ...],
    form: type[_NdjsonForm],
    arrived_s: float,
) -> Response:
    options = fields.fields("options", face.chat.options)
    num_top = fields.integer("top_logprobs", 0, at_least=0, at_most=20)
    num_logprobs = num_top if fields.boolean("logprobs", False) else -1
    num_predict = options.integer("num_predict", -1, at_least=-2)
    streams = fields.boolean("stream", True)
    _check_keep_alive(fields)
    if not prompt:
        raise bad_field("prompt", "", "a text of at least one token for this model")
    draft = Draft(
        prompt=prompt,
        params=_sampling(options, num_logprobs),
        # Zero and less: as much as fits.
        max_tokens=num_predict if num_predict > 0 else None,
        stop=(*options.stop(at_most=MAX_STOP), *stop),
        arrived_s=arrived_s,
        grammar=await ollama_format(fields, face),
        context=_context_limit(fields, face),
        ignores_eos=options.boolean("ignore_eos", False),
    )
    generation = Generation(_gateway(request), face, draft)
    return GenerationAnswer(generation, form(fields.string("model"), face, num_top), streams=streams)


def _sampling(options: Fields, num_logprobs: int) -> SamplingParams:
    """Ollama's defaults (api/types.go, DefaultOptions); a negative or missing seed is a fresh random one."""
    seed = options.integer("seed", -1)
    return SamplingParams(
        seed=secrets.randbits(SEED_BITS) if seed < 0 else seed & ((1 << SEED_BITS) - 1),
        temperature=options.number("temperature", 0.8, at_least=0),
        top_k=max(0, options.integer("top_k", 40, at_least=-1)),
        top_p=options.number("top_p", 0.9, at_least=0, at_most=1),
        min_p=options.number("min_p", 0.0, at_least=0, at_most=1),
        repeat_penalty=options.number("repeat_penalty", 1.1, at_least=0.01),
        repeat_last_n=options.integer("repeat_last_n", 64, at_least=-1),
        presence_penalty=options.number("presence_penalty", 0.0),
        frequency_penalty=options.number("frequency_penalty", 0.0),
        logprobs=num_logprobs,
    )


def _context_limit(fields: Fields, face: Face) -> int:
    """`num_ctx` can lower the deployment's context for this request; raising it takes another plan."""
    served = face.attach.serving.context
    return min(served, fields.fields("options").integer("num_ctx", served, at_least=1))


def _loaded(fields: Fields, content: dict[str, Any]) -> Response:
    """An empty prompt asks to load, or to unload; ours is resident, so both are done."""
    is_unload = _check_keep_alive(fields)
    body = {
        "model": fields.string("model"),
        "created_at": _stamp(time.time()),
        **content,
        "done": True,
        "done_reason": "unload" if is_unload else "load",
    }
    return JsonAnswer(body)


def _check_keep_alive(fields: Fields) -> bool:
    """True when it is zero. How long a model stays is the plan's business, so nothing else is made of it."""
    value = fields.raw("keep_alive")
    if value is None:
        return False
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise bad_field("keep_alive", value, "a duration like `5m` or a number of seconds")
    return str(value).strip().rstrip("hmns") in ("0", "0.0")


def _message(message: Mapping[str, Any], index: int) -> dict[str, Any]:
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "user", "assistant", "tool"):
        raise bad_field(f"messages[{index}].role", role, "one of system, user, assistant, tool")
    if content is not None and not isinstance(content, str):
        raise bad_field(f"messages[{index}].content", content, "a string")
    if message.get("images"):
        raise not_supported(f"messages[{index}].images", "the model reads text only")
    return {**message, "content": content or ""}


def _render(face: Face, messages: list[dict[str, Any]]) -> str:
    try:
        return face.chat.render(messages)
    except TemplateRefused as error:
        raise Refusal(400, f"the model's chat template refuses these messages: {error}") from error


def _refuse_unsupported(fields: Fields, *names: str) -> None:
    """What would change the answer and cannot be honoured is refused rather than ignored."""
    reasons = {
        "suffix": "the model has no fill-in-the-middle template",
        "template": "the model's own chat template is used; send `raw` for a prompt of your own",
        "images": "the model reads text only",
        "think": "the model does not separate its thinking",
        "tools": "tool calls are not built yet",
    }
    for name in names:
        if fields.raw(name) not in (None, "", False, [], {}):
            raise not_supported(name, reasons[name])


def _find(request: HttpRequest, fields: Fields) -> Face:
    name = fields.string("model") or fields.string("name")
    if not name:
        raise Refusal(400, "`model` is required", param="model")
    return _gateway(request).find(name)


def _tag(face: Face) -> dict[str, Any]:
    model = face.attach.model
    name = face.name if ":" in face.name else f"{face.name}:latest"
    return {
        "name": name,
        "model": name,
        "modified_at": _stamp(face.since_s),
        "size": sum(entry.length for entry in model.tensors) or model.num_parameters * DTYPE_BYTES[model.dtype],
        "digest": model.digest,
        "details": _details(face),
    }


def _details(face: Face) -> dict[str, Any]:
    model = face.attach.model
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": model.family.name,
        "families": [model.family.name],
        "parameter_size": _parameter_size(model.num_parameters),
        "quantization_level": _DTYPE_NAMES[face.attach.serving.dtype],
    }


def _parameter_size(count: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)


def _stamp(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _line(body: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(body) + b"\n"


def _gateway(request: HttpRequest) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway
