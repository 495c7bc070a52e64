"""What is measured of a server, ours or another: greedy answers of known length, through its OpenAI API.

Prompts are token ids, so that both sides compute exactly as many; each is another one, so that no cache has it.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import httpx

from odctl.bench.server import Answer, Server

T = TypeVar("T")

FIRST_TOKEN, LAST_TOKEN = 300, 4000
REQUEST_S = 600.0
_prompts = itertools.count()


class Asked:
    """One answer with the moment at which it was asked for."""

    def __init__(self, sent_s: float, answer: Answer) -> None:
        self.sent_s = sent_s
        self.answer = answer

    @property
    def ttft_s(self) -> float:
        return self.answer.piece_s[0] - self.sent_s


def prompt_of(num_tokens: int, *, shared: Sequence[int] = ()) -> list[int]:
    """Random tokens that nothing asked before; `shared` are its first ones."""
    randomness = random.Random(next(_prompts))
    return [*shared, *(randomness.randint(FIRST_TOKEN, LAST_TOKEN) for _ in range(num_tokens - len(shared)))]


def decode(listen: str, model: str, *, prompt: int, tokens: int) -> float:
    """Tokens a second of one stream after its first token."""

    async def measure(server: Server) -> float:
        answer = (await ask(server, prompt_of(prompt), tokens)).answer
        return (answer.output_tokens - 1) / (answer.piece_s[-1] - answer.piece_s[0])

    return _with_server(listen, model, measure)


def prefill(listen: str, model: str, *, prompt: int) -> float:
    """Prompt tokens a second until the first token."""

    async def measure(server: Server) -> float:
        return prompt / (await ask(server, prompt_of(prompt), 1)).ttft_s

    return _with_server(listen, model, measure)


def streams(listen: str, model: str, *, count: int, prompt: int, tokens: int) -> float:
    """Tokens a second of all streams together, while all of them decode."""

    async def measure(server: Server) -> float:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(server, prompt_of(prompt), tokens)) for _ in range(count)]
        answers = [task.result().answer for task in tasks]
        begin = max(answer.piece_s[0] for answer in answers)
        end = min(answer.piece_s[-1] for answer in answers)
        if end <= begin:
            raise RuntimeError(f"{count} streams of {tokens} tokens never ran all at once")
        # A piece may hold several tokens: each stream's pieces count as much as it has tokens for them.
        within = sum(
            sum(begin < piece <= end for piece in answer.piece_s) * answer.output_tokens / len(answer.piece_s)
            for answer in answers
        )
        return within / (end - begin)

    return _with_server(listen, model, measure)


def first_token_s(listen: str, model: str, prompts: Sequence[list[int]], *, at_a_time: int, tokens: int) -> float:
    """Median seconds to the first token, with so many requests at a time."""

    async def measure(server: Server) -> float:
        room = asyncio.Semaphore(at_a_time)

        async def one(prompt: list[int]) -> float:
            async with room:
                return (await ask(server, prompt, tokens)).ttft_s

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(prompt)) for prompt in prompts]
        return statistics.median(task.result() for task in tasks)

    return _with_server(listen, model, measure)


def decode_text(listen: str, model: str, text: str, *, tokens: int) -> float:
    """Tokens a second of one stream behind a text, after its first token."""
    answer = answer_to(listen, model, text, tokens=tokens)
    return (answer.output_tokens - 1) / (answer.piece_s[-1] - answer.piece_s[0])


def answer_to(listen: str, model: str, text: str | list[int], *, tokens: int) -> Answer:
    async def measure(server: Server) -> Answer:
        return await server.ask(text, num_tokens=tokens)

    return _with_server(listen, model, measure)


async def ask(server: Server, prompt: list[int], tokens: int) -> Asked:
    sent_s = time.perf_counter()
    answer = await server.ask(prompt, num_tokens=tokens)
    if (answer.prompt_tokens, answer.output_tokens) != (len(prompt), tokens):
        counts = (answer.prompt_tokens, answer.output_tokens)
        raise RuntimeError(f"{server.label}: {counts} tokens in and out, not {(len(prompt), tokens)}")
    return Asked(sent_s, answer)


def _with_server(listen: str, model: str, measure: Callable[[Server], Awaitable[T]]) -> T:
    async def run() -> T:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=f"http://{listen}", limits=limits, trust_env=False) as client:
            server = Server(client, label=listen, api="openai", model=model, timeout_s=REQUEST_S)
            return await measure(server)

    return asyncio.run(run())
