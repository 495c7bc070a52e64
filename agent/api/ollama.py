"""Ollama's HTTP API, as its own clients and Open WebUI speak it (contract: ollama/server/routes.go)."""

from __future__ import annotations

import secrets
import time
from datetime import timedelta
from typing import Any

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from agent.api.answer import GenerationAnswer, JsonAnswer
from agent.api.asker import asker_of
from agent.api.deployment import Face
from agent.api.embeddings import ollama_embed, ollama_embeddings
from agent.api.fields import Fields, read_fields
from agent.api.gateway import Gateway
from agent.api.generation import CALL_HEADER, Draft, Generation, encode, monotonic_s
from agent.api.messages import read_messages, read_tools
from agent.api.ollama_forms import ChatForm, GenerateForm, NdjsonForm, refuse, stamp
from agent.api.refusal import Refusal, bad_field, not_supported
from agent.api.structured import ollama_format
from agent.api.turn import Reading, Turn, WantedCalls, grammar_of, reading_of, render
from agent.facts.model import DTYPE_BYTES
from agent.wire.rank import SamplingParams

__all__ = ["ROUTES", "refuse"]

VERSION = "0.12.0"
"""Of the API, not ours: clients compare its dotted integers to decide what they may use."""
SEED_BITS = 63
MAX_STOP = 16
_DTYPE_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


async def root(_request: HttpRequest) -> Response:
    return PlainTextResponse("Ollama is running")


async def version(_request: HttpRequest) -> Response:
    return JsonAnswer({"version": VERSION})


async def tags(request: HttpRequest) -> Response:
    return JsonAnswer({"models": [_tag(face) for face in _gateway(request).faces()]})


async def running(request: HttpRequest) -> Response:
    """A deployment is resident until its operator takes it down, so it expires in the far future."""
    expires = stamp(time.time() + timedelta(days=3650).total_seconds())
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
            "capabilities": [
                "completion",
                *(["tools"] if face.chat.tool_format is not None else []),
                *(["thinking"] if face.chat.thinks else []),
            ],
            "modified_at": stamp(face.since_s),
        }
    )


async def generate(request: HttpRequest) -> Response:
    arrived_s = monotonic_s()
    fields = await read_fields(request)
    face = _find(request, fields)
    _refuse_unsupported(fields, "suffix", "template", "images")
    prompt, context = fields.string("prompt"), fields.tokens("context", vocab_size=face.attach.model.vocab_size)
    if not prompt and not fields.has("context"):
        return _loaded(fields, {"response": ""})
    is_raw = fields.boolean("raw", False)
    turn, reading, stop = Turn(json=ollama_format(fields), thinks=_thinks(fields)), Reading(), tuple[str, ...]()
    if is_raw or face.chat.is_plain:
        system = "" if is_raw else fields.string("system")
        text = f"{system}\n\n{prompt}" if system else prompt
        tokens = await encode(face, text, adds_special=not context)
    else:
        messages = [{"role": "user", "content": prompt}]
        if fields.string("system"):
            messages.insert(0, {"role": "system", "content": fields.string("system")})
        text = render(face, messages, turn)
        tokens, stop, reading = (
            await encode(face, text, adds_special=False),
            face.chat.stop,
            reading_of(face, turn, text),
        )
    prepared = _Prepared(prompt=(*context, *tokens), stop=stop, turn=turn, reading=reading, arrived_s=arrived_s)
    return await _answer(request, fields, face, prepared, GenerateForm)


async def chat(request: HttpRequest) -> Response:
    arrived_s = monotonic_s()
    fields = await read_fields(request)
    face = _find(request, fields)
    messages = read_messages(fields.objects("messages"), face.chat.tool_format)
    if not messages:
        return _loaded(fields, {"message": {"role": "assistant", "content": ""}})
    described, tools = read_tools(fields)
    turn = Turn(
        calls=WantedCalls(described=described, tools=tools), json=ollama_format(fields), thinks=_thinks(fields)
    )
    limit = _context_limit(fields, face)
    while True:
        text = render(face, messages, turn)
        tokens = await encode(face, text, adds_special=False)
        droppable = [index for index, message in enumerate(messages[:-1]) if message["role"] != "system"]
        if len(tokens) < limit or not droppable or not fields.boolean("truncate", True):
            break
        # As Ollama does: the oldest words go first, the system's and the last ones stay.
        del messages[droppable[0]]
    reading = reading_of(face, turn, text)
    prepared = _Prepared(prompt=tokens, stop=face.chat.stop, turn=turn, reading=reading, arrived_s=arrived_s)
    return await _answer(request, fields, face, prepared, ChatForm)


async def not_implemented(request: HttpRequest) -> Response:
    raise Refusal(501, f"{request.url.path} is not offered by odctl: models are deployed with `odctl apply`")


ROUTES = [
    Route("/", root, methods=["GET"]),
    Route("/api/version", version, methods=["GET"]),
    Route("/api/tags", tags, methods=["GET"]),
    Route("/api/ps", running, methods=["GET"]),
    Route("/api/show", show, methods=["POST"]),
    Route("/api/generate", generate, methods=["POST"]),
    Route("/api/chat", chat, methods=["POST"]),
    Route("/api/embed", ollama_embed, methods=["POST"]),
    Route("/api/embeddings", ollama_embeddings, methods=["POST"]),
    *[Route(f"/api/{verb}", not_implemented, methods=["POST"]) for verb in ("pull", "push", "create", "copy")],
    Route("/api/delete", not_implemented, methods=["DELETE"]),
    Route("/api/blobs/{digest}", not_implemented, methods=["GET", "HEAD", "POST"]),
]


class _Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt, and how its answer is constrained and read."""

    prompt: tuple[int, ...]
    stop: tuple[str, ...]
    turn: Turn
    reading: Reading
    arrived_s: float


async def _answer(
    request: HttpRequest, fields: Fields, face: Face, prepared: _Prepared, form: type[NdjsonForm]
) -> Response:
    options = fields.fields("options", face.chat.options)
    num_top = fields.integer("top_logprobs", 0, at_least=0, at_most=20)
    num_logprobs = num_top if fields.boolean("logprobs", False) else -1
    num_predict = options.integer("num_predict", -1, at_least=-2)
    streams = fields.boolean("stream", True)
    _check_keep_alive(fields)
    if not prepared.prompt:
        raise bad_field("prompt", "", "a text of at least one token for this model")
    draft = Draft(
        prompt=prepared.prompt,
        params=_sampling(options, num_logprobs),
        # Zero and less: as much as fits.
        max_tokens=num_predict if num_predict > 0 else None,
        stop=(*options.stop(at_most=MAX_STOP), *prepared.stop),
        arrived_s=prepared.arrived_s,
        asker=asker_of(request, options),
        grammar=await grammar_of(face, prepared.turn, prepared.reading),
        shown=prepared.reading.shown,
        context=_context_limit(fields, face),
        ignores_eos=options.boolean("ignore_eos", False),
    )
    generation = Generation(_gateway(request), face, [draft])
    worded = form(fields.string("model"), face, reading=prepared.reading, num_top=num_top)
    return GenerationAnswer(generation, worded, streams=streams, headers={CALL_HEADER: generation.call_id})


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
        "created_at": stamp(time.time()),
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


def _thinks(fields: Fields) -> bool | None:
    """`think`: true, false, or how hard; models that we serve know no degrees."""
    value = fields.raw("think")
    if value is None or isinstance(value, bool):
        return value
    if value in ("low", "medium", "high", "max"):
        return True
    raise bad_field("think", value, "true, false, or one of low, medium, high")


def _refuse_unsupported(fields: Fields, *names: str) -> None:
    """What would change the answer and cannot be honoured is refused rather than ignored."""
    reasons = {
        "suffix": "the model has no fill-in-the-middle template",
        "template": "the model's own chat template is used; send `raw` for a prompt of your own",
        "images": "the model reads text only",
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
        "modified_at": stamp(face.since_s),
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


def _gateway(request: HttpRequest) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway
