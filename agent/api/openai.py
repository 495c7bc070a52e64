"""OpenAI's HTTP API: models, chat completions, completions and embeddings, as requests are read."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from agent.api.answer import GenerationAnswer, JsonAnswer
from agent.api.asker import asker_of
from agent.api.deployment import Face
from agent.api.embeddings import openai_embeddings
from agent.api.fields import Fields, read_fields, token_ids
from agent.api.gateway import Gateway
from agent.api.generation import CALL_HEADER, Draft, Generation, encode, monotonic_s
from agent.api.messages import read_messages, read_tools
from agent.api.openai_forms import ChatForm, CompletionForm, SseForm, refuse
from agent.api.refusal import Refusal, bad_field, not_supported
from agent.api.structured import openai_format, tool_choice
from agent.api.turn import Reading, Turn, grammar_of, reading_of, render
from agent.wire.rank import SamplingParams

__all__ = ["ROUTES", "refuse"]

SEED_BITS = 63
MAX_STOP = 16
"""OpenAI takes four; clients of local models send more."""
MAX_CHOICES = 128
"""Of one request, all its prompts together; OpenAI's own limit on `n`."""
COMPLETION_MAX_TOKENS = 16
"""OpenAI's default for text completions."""


async def list_models(request: HttpRequest) -> Response:
    return JsonAnswer({"object": "list", "data": [_model(face) for face in _gateway(request).faces()]})


async def get_model(request: HttpRequest) -> Response:
    return JsonAnswer(_model(_gateway(request).find(request.path_params["model"])))


async def chat_completions(request: HttpRequest) -> Response:
    arrived_s = monotonic_s()
    fields = await read_fields(request)
    face = _find(request, fields)
    messages = read_messages(fields.objects("messages"), face.chat.tool_format)
    if not messages:
        raise bad_field("messages", fields.raw("messages"), "a list of at least one message")
    _refuse_unsupported(fields)
    num_choices = fields.integer("n", 1, at_least=1, at_most=MAX_CHOICES)
    num_top = fields.integer("top_logprobs", 0, at_least=0, at_most=20)
    has_logprobs = fields.boolean("logprobs", False)
    if num_top and not has_logprobs:
        raise bad_field("top_logprobs", num_top, "left out unless `logprobs` is true")
    limit = "max_completion_tokens" if fields.has("max_completion_tokens") else "max_tokens"
    turn = Turn(
        calls=tool_choice(fields, *read_tools(fields)), json=openai_format(fields), thinks=_thinks(fields, face)
    )
    text = render(face, messages, turn)
    reading = reading_of(face, turn, text)
    prompt = await encode(face, text, adds_special=False)
    draft = Draft(
        prompt=prompt,
        params=_sampling(fields, num_top if has_logprobs else -1),
        max_tokens=fields.integer(limit, 0, at_least=1) or None,
        stop=(*fields.stop(at_most=MAX_STOP), *face.chat.stop),
        arrived_s=arrived_s,
        asker=asker_of(request, fields),
        grammar=await grammar_of(face, turn, reading),
        shown=reading.shown,
        ignores_eos=fields.boolean("ignore_eos", False),
    )
    form = ChatForm(
        face,
        reading=reading,
        num_top=num_top if has_logprobs else None,
        includes_usage=_includes_usage(fields),
        num_choices=num_choices,
    )
    return _answer(request, fields, face, drafts=_choices(draft, num_choices), form=form)


async def completions(request: HttpRequest) -> Response:
    arrived_s = monotonic_s()
    fields = await read_fields(request)
    face = _find(request, fields)
    _refuse_unsupported(fields)
    prompts = await _prompts(fields, face)
    num_choices = fields.integer("n", 1, at_least=1, at_most=MAX_CHOICES // len(prompts))
    if fields.integer("best_of", num_choices, at_least=1) != num_choices:
        raise bad_field("best_of", fields.raw("best_of"), "left out, or as large as `n`")
    num_top = fields.integer("logprobs", -1, at_least=0, at_most=5)
    draft = Draft(
        prompt=(),
        params=_sampling(fields, num_top),
        max_tokens=fields.integer("max_tokens", COMPLETION_MAX_TOKENS, at_least=1),
        stop=fields.stop(at_most=MAX_STOP),
        arrived_s=arrived_s,
        asker=asker_of(request, fields),
        grammar=await grammar_of(face, Turn(json=openai_format(fields)), Reading()),
        ignores_eos=fields.boolean("ignore_eos", False),
    )
    drafts = [
        each for prompt in prompts for each in _choices(msgspec.structs.replace(draft, prompt=prompt), num_choices)
    ]
    form = CompletionForm(
        face,
        num_top=num_top if num_top >= 0 else None,
        includes_usage=_includes_usage(fields),
        choices_a_prompt=num_choices,
    )
    return _answer(request, fields, face, drafts=drafts, form=form)


async def not_implemented(request: HttpRequest) -> Response:
    raise Refusal(501, f"{request.url.path} is not offered by odctl", code="not_implemented")


ROUTES = [
    Route("/v1/models", list_models, methods=["GET"]),
    Route("/v1/models/{model:path}", get_model, methods=["GET"]),
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    Route("/v1/completions", completions, methods=["POST"]),
    Route("/v1/embeddings", openai_embeddings, methods=["POST"]),
    *[
        Route(f"/v1/{path}", not_implemented, methods=["GET", "POST", "DELETE"])
        for path in (
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


def _answer(
    request: HttpRequest, fields: Fields, face: Face, *, drafts: Sequence[Draft], form: SseForm
) -> Response:
    generation = Generation(_gateway(request), face, drafts)
    return GenerationAnswer(
        generation, form, streams=fields.boolean("stream", False), headers={CALL_HEADER: generation.call_id}
    )


def _choices(draft: Draft, count: int) -> list[Draft]:
    """Independent requests: the seeds follow each other, so that a seed still repeats them all."""
    params = msgspec.structs.replace(draft.params, penalties_from=len(draft.prompt))
    return [
        msgspec.structs.replace(
            draft,
            params=msgspec.structs.replace(params, seed=(params.seed + index) & ((1 << SEED_BITS) - 1)),
            grammar=draft.grammar.fork() if draft.grammar is not None else None,
        )
        for index in range(count)
    ]


def _includes_usage(fields: Fields) -> bool:
    if fields.has("stream_options") and not fields.boolean("stream", False):
        raise bad_field("stream_options", fields.raw("stream_options"), "left out unless `stream` is true")
    return fields.fields("stream_options").boolean("include_usage", False)


def _thinks(fields: Fields, face: Face) -> bool | None:
    """`reasoning_effort` as OpenAI has it, `chat_template_kwargs.enable_thinking` as vLLM has it."""
    switch = fields.fields("chat_template_kwargs")
    if switch.has("enable_thinking"):
        return switch.boolean("enable_thinking", True) and face.chat.thinks
    if not fields.has("reasoning_effort") or not face.chat.thinks:
        return None
    return fields.string("reasoning_effort") != "none"


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


async def _prompts(fields: Fields, face: Face) -> list[tuple[int, ...]]:
    """A text or token ids, or a list of such prompts."""
    value = fields.raw("prompt")
    is_list_of_prompts = isinstance(value, list) and value and not isinstance(value[0], int)
    values: list[Any] = value if is_list_of_prompts else [value]
    if len(values) > MAX_CHOICES:
        raise bad_field("prompt", f"{len(values)} prompts", f"at most {MAX_CHOICES}")
    prompts = []
    for each in values:
        if isinstance(each, str):
            tokens = await encode(face, each, adds_special=True)
        else:
            tokens = token_ids("prompt", each, vocab_size=face.attach.model.vocab_size)
        if not tokens:
            raise bad_field("prompt", each, "a text of at least one token for this model")
        prompts.append(tokens)
    return prompts


def _refuse_unsupported(fields: Fields) -> None:
    """What would change the answer and cannot be honoured is refused rather than ignored."""
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


def _gateway(request: HttpRequest) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway
