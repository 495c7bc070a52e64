"""The canary: a generation may serve once decoding and prefilling agree on every replica."""

from __future__ import annotations

import asyncio
import time

import msgspec

from agent.api.backend import Backend, Replica
from agent.api.refusal import sentence_of
from agent.errors import ErrorDetail
from agent.serving.request import Failed, Finished, Request, RequestEvent, TextEmitted, TokenDrawn
from agent.serving.scheduler import QueueFull
from agent.wire.gateway import CheckReport
from agent.wire.rank import SamplingParams

PROMPT = "The ship came into the harbour at dawn, and the people on the quay began to"
NUM_TOKENS = 8
NUM_TIMED_TOKENS = 17
"""For the times alone, when all is warm: without log probabilities, as most clients ask."""
CHECK_TIMEOUT_S = 240.0
"""Two runs through a large model on slow hosts; shorter than the supervisor waits for us."""
TIE_MARGIN = {"float32": 0.002, "bfloat16": 0.15, "float16": 0.03}
"""Nats. One row decoded and many rows prefilled round differently: candidates this close may swap places."""
NUM_ALTERNATIVES = 5


class _Run(msgspec.Struct, frozen=True, kw_only=True):
    tokens: tuple[TokenDrawn, ...]
    ttft_s: float
    time_per_token_s: float


class CanaryFailed(Exception):
    """Says what did not agree; becomes `CheckReport.reason`."""


async def check_backend(backend: Backend) -> CheckReport:
    """Decode greedily, then prefill prompt and tokens up to each of them: the next token must be the same."""
    prompt = _prompt(backend)
    worst = _Run(tokens=(), ttft_s=0.0, time_per_token_s=0.0)
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            for index, replica in enumerate(backend.replicas):
                run = await _check_replica(backend, replica, index, prompt)
                worst = run if run.ttft_s + run.time_per_token_s >= worst.ttft_s + worst.time_per_token_s else worst
    except TimeoutError:
        return _report(prompt, worst, f"no answer within {CHECK_TIMEOUT_S:.0f} s")
    except CanaryFailed as failure:
        return _report(prompt, worst, str(failure))
    return _report(prompt, worst, "")


async def _check_replica(backend: Backend, replica: Replica, index: int, prompt: tuple[int, ...]) -> _Run:
    count = max(1, min(NUM_TOKENS, backend.attach.serving.context - len(prompt)))
    cold = await _generate(backend, replica, prompt, count)
    warm = await _generate(backend, replica, prompt, count)
    tokens = [drawn.token for drawn in warm.tokens]
    if tokens != [drawn.token for drawn in cold.tokens]:
        raise CanaryFailed(
            f"replica {index} decoded {[drawn.token for drawn in cold.tokens]} and then {tokens} "
            "from the same prompt"
        )
    margin = TIE_MARGIN[backend.attach.serving.dtype]
    for length in range(1, count):
        # One after the other: prompts that share a step are cut, and then lean on the KV cache themselves.
        prefill = await _generate(backend, replica, (*prompt, *tokens[:length]), 1)
        _compare(index, length, decoded=tokens[length], prefilled=prefill.tokens[0], margin=margin)
    room = max(1, min(NUM_TIMED_TOKENS, backend.attach.serving.context - len(prompt)))
    timed = await _generate(backend, replica, prompt, room, num_logprobs=-1)
    return msgspec.structs.replace(warm, ttft_s=timed.ttft_s, time_per_token_s=timed.time_per_token_s)


def _compare(index: int, length: int, *, decoded: int, prefilled: TokenDrawn, margin: float) -> None:
    if prefilled.token == decoded:
        return
    chances = dict(prefilled.logprobs)
    if decoded in chances and chances[prefilled.token] - chances[decoded] <= margin:
        return
    raise CanaryFailed(
        f"replica {index} decoded token {decoded} after {length} tokens, but prefilling the same text gives "
        f"{prefilled.token}: KV cache, positions or links are wrong"
    )


async def _generate(
    backend: Backend,
    replica: Replica,
    prompt: tuple[int, ...],
    count: int,
    *,
    num_logprobs: int = NUM_ALTERNATIVES,
) -> _Run:
    tokens: list[TokenDrawn] = []
    ended: asyncio.Future[ErrorDetail | None] = asyncio.get_running_loop().create_future()

    def note(event: RequestEvent) -> None:
        match event:
            case TextEmitted():
                tokens.extend(event.tokens)
            case Finished():
                ended.set_result(None)
            case Failed():
                ended.set_result(event.error)

    request = Request(
        prompt=prompt,
        params=SamplingParams(logprobs=num_logprobs),
        max_tokens=count,
        arrived_s=time.monotonic(),
        is_probe=True,
        on_event=note,
    )
    if replica.is_broken:
        raise CanaryFailed("a replica is broken: " + (sentence_of(backend.error) if backend.error else "unknown"))
    try:
        backend.submit(request, replica=replica)
    except QueueFull as error:
        raise CanaryFailed("the replica's queue is full") from error
    try:
        failure = await ended
    finally:
        if not request.is_over:
            backend.cancel(request)
    if failure is not None:
        raise CanaryFailed(sentence_of(failure))
    assert request.first_token_s is not None and request.last_token_s is not None  # noqa: PT018
    return _Run(
        tokens=tuple(tokens),
        ttft_s=request.first_token_s - request.arrived_s,
        time_per_token_s=(request.last_token_s - request.first_token_s) / max(1, count - 1),
    )


def _prompt(backend: Backend) -> tuple[int, ...]:
    """A sentence, cut so that with all tokens it fits the context, and one step without the KV cache's help."""
    serving = backend.attach.serving
    room = min(serving.context - 1, serving.prefill_chunk) - NUM_TOKENS
    tokens = backend.tokens.encode(PROMPT, adds_special=True)[: max(1, room)]
    return tokens or (0,)


def _report(prompt: tuple[int, ...], run: _Run, reason: str) -> CheckReport:
    return CheckReport(
        is_ok=not reason,
        reason=reason,
        prompt_tokens=len(prompt),
        ttft_s=run.ttft_s,
        time_per_token_s=run.time_per_token_s,
        tokens=tuple(drawn.token for drawn in run.tokens),
    )
