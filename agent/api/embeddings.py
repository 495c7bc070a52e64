"""Embeddings in both protocols: the final hidden state of a text's last token, as a vector of length one.

All inputs of a request run through the scheduler side by side, as many at a time as there are slots.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from agent.api import ollama_forms, openai_forms
from agent.api.answer import EmbeddingAnswer, JsonAnswer
from agent.api.asker import Asker, asker_of
from agent.api.deployment import Face
from agent.api.fields import Fields, read_fields, token_ids
from agent.api.gateway import Gateway
from agent.api.generation import Draft, Generation, encode, monotonic_s
from agent.api.ollama_forms import ns
from agent.api.refusal import Refusal, bad_field
from agent.wire.rank import SamplingParams

MAX_INPUTS = 2048
"""OpenAI's limit."""


async def ollama_embed(request: HttpRequest) -> Response:
    arrived_s = monotonic_s()
    fields = await read_fields(request)
    face = _find(request, fields)
    inputs = _inputs(fields, face, may_be_empty=True)
    if not inputs:
        return JsonAnswer({"model": fields.string("model"), "embeddings": []})
    dimensions = fields.integer("dimensions", 0, at_least=0)
    room = face.attach.serving.context - 1
    prompts = []
    for each in inputs:
        prompt = await _tokens(face, each)
        if len(prompt) > room and not fields.boolean("truncate", True):
            raise Refusal(400, "the input length exceeds the context length")
        prompts.append(prompt[:room])
    generation = _generation(
        request, face, prompts, asker=asker_of(request, fields.fields("options")), arrived_s=arrived_s
    )

    def word(embeddings: Sequence[bytes]) -> dict[str, Any]:
        started_s = min(request.started_s or arrived_s for request in generation.requests)
        return {
            "model": fields.string("model"),
            "embeddings": [_vector(each, dimensions).tolist() for each in embeddings],
            "total_duration": ns(monotonic_s() - arrived_s),
            "load_duration": ns(started_s - arrived_s),
            "prompt_eval_count": sum(len(prompt) for prompt in prompts),
        }

    return EmbeddingAnswer(generation, word=word, refuse=ollama_forms.refuse)


async def ollama_embeddings(request: HttpRequest) -> Response:
    """Ollama's older endpoint: one prompt, and the vector as it is."""
    fields = await read_fields(request)
    face = _find(request, fields)
    prompt = fields.string("prompt")
    if not prompt:
        return JsonAnswer({"embedding": []})
    tokens = (await _tokens(face, prompt))[: face.attach.serving.context - 1]
    generation = _generation(
        request, face, [tokens], asker=asker_of(request, fields.fields("options")), arrived_s=monotonic_s()
    )
    return EmbeddingAnswer(
        generation,
        word=lambda embeddings: {"embedding": _floats(embeddings[0]).tolist()},
        refuse=ollama_forms.refuse,
    )


async def openai_embeddings(request: HttpRequest) -> Response:
    fields = await read_fields(request)
    face = _find(request, fields)
    inputs = _inputs(fields, face, may_be_empty=False)
    form = fields.string("encoding_format", "float")
    if form not in ("float", "base64"):
        raise bad_field("encoding_format", form, "`float` or `base64`")
    hidden_size = face.attach.model.hidden_size
    dimensions = fields.integer("dimensions", hidden_size, at_least=1, at_most=hidden_size)
    prompts = [await _tokens(face, each) for each in inputs]
    generation = _generation(request, face, prompts, asker=asker_of(request, fields), arrived_s=monotonic_s())
    num_tokens = sum(len(prompt) for prompt in prompts)

    def word(embeddings: Sequence[bytes]) -> dict[str, Any]:
        vectors = [_vector(each, dimensions) for each in embeddings]
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(vector.tobytes()).decode() if form == "base64" else vector.tolist(),
            }
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
        return {"object": "list", "data": data, "model": face.name, "usage": usage}

    return EmbeddingAnswer(generation, word=word, refuse=openai_forms.refuse)


def _generation(
    request: HttpRequest, face: Face, prompts: Sequence[tuple[int, ...]], *, asker: Asker, arrived_s: float
) -> Generation:
    drafts = [
        Draft(
            prompt=prompt,
            params=SamplingParams(),
            max_tokens=1,
            stop=(),
            arrived_s=arrived_s,
            asker=asker,
            embeds=True,
        )
        for prompt in prompts
    ]
    return Generation(_gateway(request), face, drafts)


def _inputs(fields: Fields, face: Face, *, may_be_empty: bool) -> list[str | tuple[int, ...]]:
    """`input`: a text or token ids, or a list of such."""
    value = fields.raw("input")
    if may_be_empty and value in (None, "", []):
        return []
    is_several = isinstance(value, list) and bool(value) and not isinstance(value[0], int)
    values: list[Any] = value if is_several else [value]
    if not values[0] or len(values) > MAX_INPUTS:
        raise bad_field("input", value, f"a text or token ids, or a list of up to {MAX_INPUTS} of them")
    return [
        each if isinstance(each, str) else token_ids("input", each, vocab_size=face.attach.model.vocab_size)
        for each in values
    ]


async def _tokens(face: Face, given: str | tuple[int, ...]) -> tuple[int, ...]:
    tokens = await encode(face, given, adds_special=True) if isinstance(given, str) else given
    if not tokens:
        raise bad_field("input", given, "made of texts of at least one token for this model")
    return tokens


def _floats(values: bytes) -> Any:
    """A numpy array; the library is loaded with the first embedding."""
    import numpy as np

    return np.frombuffer(values, dtype="<f4")


def _vector(values: bytes, dimensions: int) -> Any:
    """The first `dimensions` (0: all) of a vector, then scaled to length one, as Ollama does."""
    import numpy as np

    vector = _floats(values)[: dimensions or None]
    length = float(np.linalg.norm(vector.astype(np.float64)))
    return (vector / max(length, 1e-12)).astype("<f4")


def _find(request: HttpRequest, fields: Fields) -> Face:
    name = fields.string("model")
    if not name:
        raise Refusal(400, "`model` is required", param="model", code="missing_required_parameter")
    return _gateway(request).find(name)


def _gateway(request: HttpRequest) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway
