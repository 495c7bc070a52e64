"""The scheduler's steps on real ranks: whatever it shares, guesses and puts off, each request has one answer."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from agent.facts.model import Dtype, ModelSpec
from agent.serving.request import Request
from agent.serving.scheduler import Scheduler
from agent.wire.rank import SamplingParams
from tests.agent.engine.models import VOCAB_SIZE, Reference, stage
from tests.agent.engine.threads import Stages, ThreadReplica, run_threads

SLOTS = 4
CONTEXT = 128
KV_BLOCKS = 12
"""Fewer than four contexts of eight: the least important sequence gives way, and comes again."""
SEEDED = SamplingParams(seed=9, temperature=0.9, top_p=0.9, repeat_penalty=1.2)
LAYOUTS: dict[str, Callable[[ModelSpec], Stages]] = {
    "whole": lambda spec: [stage(spec, (0, 4))],
    "hybrid": lambda spec: [stage(spec, (0, 2)), stage(spec, (2, 4), (3, 1))],
}


def make_requests(params: SamplingParams) -> list[Request]:
    """Half of them begin alike, and the prompts repeat themselves, so that guesses come true."""
    chance = random.Random(12)
    prefix = chance.choices(range(VOCAB_SIZE), k=37)
    requests = []
    for index in range(8):
        own = chance.choices(range(VOCAB_SIZE), k=chance.randrange(3, 12))
        prompt = (prefix if index % 2 else []) + own * 3
        requests.append(
            Request(
                prompt=tuple(prompt),
                params=params,
                max_tokens=chance.randrange(20, 40),
                arrived_s=0.0,
                eos_token_ids=frozenset(),
                on_event=lambda _: None,
            )
        )
    return requests


def serve(replica: ThreadReplica, scheduler: Scheduler, requests: Sequence[Request]) -> None:
    for request in requests:
        scheduler.submit(request)
    while not scheduler.is_idle:
        while scheduler.num_in_flight < 2 and (step := scheduler.next_step()) is not None:
            replica.put_step(step)
        scheduler.complete(replica.answers.next())
    scheduler.check_integrity()


def make_scheduler(
    *, num_stages: int, max_drafts: int, kv_blocks: int, draft_cost: float | None = None
) -> Scheduler:
    return Scheduler(
        slots=SLOTS,
        num_stages=num_stages,
        prefill_chunk=24,
        context=CONTEXT,
        queue=16,
        kv_blocks=kv_blocks,
        max_drafts=max_drafts,
        draft_cost=draft_cost,
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_request_gets_transformers_answer(
    layout: str, reference: Callable[[str], Reference], folder: Path
) -> None:
    model = reference("llama3")
    stages = LAYOUTS[layout](model.spec)
    requests = make_requests(SamplingParams())
    scheduler = make_scheduler(num_stages=len(stages), max_drafts=4, kv_blocks=KV_BLOCKS)
    with run_threads(
        model.spec, stages, model_dir=model.path, folder=folder, context=CONTEXT, batch=SLOTS, kv_blocks=KV_BLOCKS
    ) as replica:
        serve(replica, scheduler, requests)
    for request in requests:
        assert request.generated == model.generate(list(request.prompt), request.max_tokens)
    assert scheduler.counts.prefix_hit_tokens > 0
    assert scheduler.counts.preemptions > 0
    assert 0 < scheduler.counts.drafts_accepted < scheduler.counts.drafts_proposed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_seeded_answers_are_those_of_a_request_alone(
    dtype: Dtype, reference: Callable[[str], Reference], folder: Path
) -> None:
    """Exactly: with shared prefixes, guesses, preemption and company, and without any of them."""
    model = reference("llama3")
    stages = LAYOUTS["whole"](model.spec)
    together, alone = make_requests(SEEDED), make_requests(SEEDED)
    with run_threads(
        model.spec,
        stages,
        model_dir=model.path,
        folder=folder,
        dtype=dtype,
        context=CONTEXT,
        batch=SLOTS,
        kv_blocks=KV_BLOCKS,
        is_exact=True,
    ) as replica:
        serve(replica, make_scheduler(num_stages=1, max_drafts=4, kv_blocks=KV_BLOCKS), together)
        for request in alone:
            serve(replica, make_scheduler(num_stages=1, max_drafts=0, kv_blocks=KV_BLOCKS), [request])
    assert [request.generated for request in together] == [request.generated for request in alone]
