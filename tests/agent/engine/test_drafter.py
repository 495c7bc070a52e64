"""A draft model changes how fast tokens come, never which: the scheduler's steps on real ranks that have one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor

from agent.engine.drafter import Drafter
from agent.engine.graphs import Record
from agent.facts.model import Dtype, ModelSpec
from agent.planner.shards import shard_weight_bytes, whole_extent
from agent.serving.request import Request
from agent.serving.scheduler import SchedulerCounts
from agent.wire.rank import SamplingParams, SequenceSlice
from tests.agent.engine.models import Reference, stage, write_model
from tests.agent.engine.test_graphs import Recorder
from tests.agent.engine.test_scheduled import CONTEXT, SLOTS, make_requests, make_scheduler, serve
from tests.agent.engine.threads import Stages, run_threads

KV_BLOCKS = 8
"""One context: sequences give way to each other."""
WAYS = {
    "greedy": SamplingParams(),
    "seeded": SamplingParams(seed=9, temperature=0.9, top_p=0.9, repeat_penalty=1.2),
}
LAYOUTS: dict[str, Callable[[ModelSpec], Stages]] = {
    "whole": lambda spec: [stage(spec, (0, 4))],
    "pipeline_2": lambda spec: [stage(spec, (0, 3)), stage(spec, (3, 4))],
    "tensor_2": lambda spec: [stage(spec, (0, 4), (3, 1))],
}


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Of another family and with other weights than what it drafts for."""
    return write_model("qwen2", tmp_path_factory.mktemp("drafts") / "other", seed=5)


def answer(
    model: Reference,
    stages: Stages,
    folder: Path,
    requests: list[Request],
    *,
    draft: Reference | None,
    kv_blocks: int = SLOTS * CONTEXT // 16,
    max_drafts: int = 4,
    dtype: Dtype = "float32",
    is_exact: bool = False,
    record: Record | None = None,
) -> SchedulerCounts:
    scheduler = make_scheduler(
        num_stages=len(stages),
        max_drafts=max_drafts if draft is not None else 0,
        kv_blocks=kv_blocks,
        draft_cost=0.0 if draft is not None else None,
    )
    with run_threads(
        model.spec,
        stages,
        model_dir=model.path,
        folder=folder,
        dtype=dtype,
        context=CONTEXT,
        batch=SLOTS,
        kv_blocks=kv_blocks,
        is_exact=is_exact,
        record=record,
        draft=(draft.spec, draft.path) if draft is not None else None,
    ) as replica:
        serve(replica, scheduler, requests)
    return scheduler.counts


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_draft_model_changes_no_token(
    layout: str, way: str, reference: Callable[[str], Reference], other_model: Reference, folder: Path
) -> None:
    """Several sequences, prompts in chunks, shared prefixes, and blocks for half of them."""
    model = reference("llama3")
    stages = LAYOUTS[layout](model.spec)
    plain, guessed = make_requests(WAYS[way]), make_requests(WAYS[way])
    answer(model, stages, folder, plain, draft=None)
    counts = answer(model, stages, folder, guessed, draft=other_model, kv_blocks=KV_BLOCKS)
    assert [request.generated for request in guessed] == [request.generated for request in plain]
    assert counts.preemptions > 0
    assert counts.prefix_hit_tokens > 0
    assert counts.drafts_accepted < counts.drafts_proposed / 4


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_guess_of_the_model_itself_is_right(
    layout: str, way: str, reference: Callable[[str], Reference], folder: Path
) -> None:
    model = reference("llama3")
    requests = make_requests(WAYS[way])
    counts = answer(
        model, LAYOUTS[layout](model.spec), folder, requests, draft=model, kv_blocks=KV_BLOCKS, max_drafts=6
    )
    assert counts.preemptions > 0
    assert counts.prefix_hit_tokens > 0
    assert counts.drafts_accepted == counts.drafts_proposed
    assert counts.drafts_accepted > sum(len(request.generated) for request in requests) / 2


def test_every_guess_is_right_that_another_ones_blocks_lead_to(
    reference: Callable[[str], Reference], folder: Path
) -> None:
    """A conversation: the next prompt holds the answer before, in blocks that were computed guess by guess."""
    model = reference("llama3")
    first, *_ = make_requests(WAYS["seeded"])
    scheduler = make_scheduler(num_stages=1, max_drafts=4, kv_blocks=16, draft_cost=0.0)
    with run_threads(
        model.spec,
        LAYOUTS["whole"](model.spec),
        model_dir=model.path,
        folder=folder,
        context=CONTEXT,
        batch=SLOTS,
        kv_blocks=16,
        draft=(model.spec, model.path),
    ) as replica:
        serve(replica, scheduler, [first])
        before = scheduler.counts
        second = Request(
            prompt=(*first.prompt, *first.generated, 5),
            params=WAYS["seeded"],
            max_tokens=30,
            arrived_s=0.0,
            eos_token_ids=frozenset(),
            on_event=lambda _: None,
        )
        serve(replica, scheduler, [second])
    assert scheduler.counts.prefix_hit_tokens - before.prefix_hit_tokens >= len(first.prompt) // 16 * 16
    assert scheduler.counts.drafts_accepted == scheduler.counts.drafts_proposed > before.drafts_proposed


@pytest.mark.parametrize("way", WAYS)
def test_in_exact_mode_the_tokens_are_those_of_a_request_alone(
    way: str, reference: Callable[[str], Reference], folder: Path
) -> None:
    model = reference("llama3")
    stages = LAYOUTS["whole"](model.spec)
    plain, guessed = make_requests(WAYS[way]), make_requests(WAYS[way])
    for request in plain:
        answer(model, stages, folder, [request], draft=None, dtype="bfloat16", is_exact=True)
    counts = answer(
        model, stages, folder, guessed, draft=model, dtype="bfloat16", is_exact=True, kv_blocks=KV_BLOCKS
    )
    assert [request.generated for request in guessed] == [request.generated for request in plain]
    assert counts.drafts_accepted > counts.drafts_proposed / 2


def test_what_was_skipped_is_computed_before_anything_is_guessed_from_it(
    reference: Callable[[str], Reference], folder: Path
) -> None:
    """1. sixty tokens without a guess wanted  2. more is missing than a step computes: none yet, then right ones
    3. the same for a sequence that begins with blocks which the draft model has passed over.
    """
    model = reference("llama3")
    prompt = [7, 8, 9, 10, 11]
    tokens = [*prompt, *model.generate(prompt, 80)]
    with run_threads(
        model.spec,
        LAYOUTS["whole"](model.spec),
        model_dir=model.path,
        folder=folder,
        draft=(model.spec, model.path),
    ) as replica:

        def guesses_behind(piece: SequenceSlice) -> list[list[int]]:
            replica.put([piece])
            done = replica.answers.next()
            end = piece.start + len(piece.tokens)
            assert [each.token for each in done.tokens] == tokens[end : end + 1]
            return done.guesses

        assert guesses_behind(SequenceSlice(0, 0, prompt, True, SamplingParams())) == []
        for position in range(5, 65):
            assert guesses_behind(SequenceSlice(0, position, [tokens[position]], True)) == []
        shared = replica.blocks.of(0)[:4]
        begun = SequenceSlice(1, 64, tokens[64:66], True, SamplingParams(), history=tokens[:64])
        begun = msgspec.structs.replace(begun, new_blocks=[*shared, replica.blocks.take()])
        assert guesses_behind(begun) == []
        for slot, first in ((0, 65), (1, 66)):
            missing = SequenceSlice(slot, first, tokens[first : first + 1], True, guesses_wanted=3)
            assert guesses_behind(missing) == []
            found = SequenceSlice(slot, first + 1, tokens[first + 1 : first + 2], True, guesses_wanted=3)
            assert guesses_behind(found) == [tokens[first + 3 : first + 6]]


def test_there_are_as_many_guesses_as_there_are_places(reference: Callable[[str], Reference], folder: Path) -> None:
    model = reference("llama3")
    prompt = list(range(12))
    expected = model.generate(prompt, 8)
    with run_threads(
        model.spec,
        LAYOUTS["whole"](model.spec),
        model_dir=model.path,
        folder=folder,
        draft=(model.spec, model.path),
    ) as replica:
        replica.put([SequenceSlice(2, 0, prompt, True, SamplingParams(), guesses_wanted=9)])
        assert replica.answers.next().guesses == [expected[1:5]], "one block of 16, 12 of the prompt, one drawn"


def test_a_gpus_way_of_small_steps_is_the_draft_models_too(
    reference: Callable[[str], Reference], folder: Path
) -> None:
    """A group's sums keep the target from graphs; its leader's draft model sums over nobody."""
    model = reference("llama3")
    stages = LAYOUTS["tensor_2"](model.spec)
    plain, guessed = make_requests(WAYS["greedy"]), make_requests(WAYS["greedy"])
    answer(model, stages, folder, plain, draft=None)
    record = Recorder()
    counts = answer(model, stages, folder, guessed, draft=model, record=record)
    assert [request.generated for request in guessed] == [request.generated for request in plain]
    assert counts.drafts_accepted == counts.drafts_proposed > 0
    assert record.replayed > record.recorded > 0


def test_the_bytes_of_the_draft_model_are_counted_with_the_leaders(
    reference: Callable[[str], Reference], other_model: Reference, folder: Path
) -> None:
    model, spec = reference("llama3"), other_model.spec
    stages = LAYOUTS["tensor_2"](model.spec)
    with run_threads(
        model.spec,
        stages,
        model_dir=model.path,
        folder=folder,
        context=CONTEXT,
        batch=SLOTS,
        kv_blocks=KV_BLOCKS,
        draft=(spec, other_model.path),
    ) as replica:
        leader, member = replica.boards["r0s0t0"], replica.boards["r0s0t1"]
        draft_bytes = shard_weight_bytes(spec, whole_extent(spec), "float32")
        own = [shard_weight_bytes(model.spec, extent, "float32") for extent in stages[0]]
        assert [leader.weight_bytes, member.weight_bytes] == [own[0] + draft_bytes, own[1]]
        positions = KV_BLOCKS * 16
        draft_cache = 2 * positions * spec.num_layers * spec.num_kv_heads * spec.head_size * 4
        assert leader.kv_cache_bytes == 3 * member.kv_cache_bytes + draft_cache


@pytest.mark.parametrize("vocab_size", [97, 131, 160])
def test_vocabularies_may_be_padded_to_other_sizes(
    vocab_size: int, reference: Callable[[str], Reference], folder: Path, tmp_path: Path
) -> None:
    model = reference("llama3")
    draft = write_model("llama3", tmp_path / "draft", vocab_size=vocab_size)
    plain, guessed = make_requests(WAYS["seeded"]), make_requests(WAYS["seeded"])
    stages = LAYOUTS["whole"](model.spec)
    answer(model, stages, folder, plain, draft=None)
    counts = answer(model, stages, folder, guessed, draft=draft)
    assert [request.generated for request in guessed] == [request.generated for request in plain]
    assert counts.drafts_proposed > 0


def test_a_draft_model_that_fails_costs_guesses_and_no_token(
    reference: Callable[[str], Reference],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = reference("llama3")
    stages = LAYOUTS["whole"](model.spec)
    plain = make_requests(WAYS["greedy"])
    answer(model, stages, folder, plain, draft=None)
    whole_run = Drafter._run

    def not_finite(self: Drafter, parts: list[SequenceSlice]) -> Tensor | None:
        logits_RV = whole_run(self, parts)
        return None if logits_RV is None else logits_RV * torch.nan

    def broken(self: Drafter, parts: list[SequenceSlice]) -> Tensor | None:
        raise RuntimeError("no such kernel")

    for failing, why in ((not_finite, "its logits are not finite"), (broken, "no such kernel")):
        caplog.clear()
        monkeypatch.setattr(Drafter, "_run", failing)
        requests = make_requests(WAYS["greedy"])
        with caplog.at_level(logging.WARNING, logger="agent.engine.drafter"):
            counts = answer(model, stages, folder, requests, draft=model)
        assert [request.generated for request in requests] == [request.generated for request in plain]
        assert counts.drafts_proposed == 0
        assert [record.__dict__["why"] for record in caplog.records] == [why]
