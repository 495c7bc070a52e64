"""The scheduler against a model of a rank: every position once, nothing shared, everything ends."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

import msgspec
import pytest

from agent.errors import FleetError
from agent.planner.plan import Serving
from agent.serving.request import Finished, Request, RequestEvent
from agent.serving.scheduler import Advance, Embedding, QueueFull, Scheduler, longest_sequence
from agent.serving.speculation import RETRY_TOKENS, DraftLength
from agent.wire.rank import EmbeddedSlice, SampledToken, SamplingParams, Step, StepDone
from tests.agent.serving.simulated_rank import SimulatedRank, generate

EOS = 1


def make_request(
    prompt: int | tuple[int, ...],
    max_tokens: int = 4,
    events: list[RequestEvent] | None = None,
    *,
    embeds: bool = False,
    is_probe: bool = False,
    priority: int = 0,
) -> Request:
    tokens = tuple(range(100, 100 + prompt)) if isinstance(prompt, int) else prompt
    return Request(
        prompt=tokens,
        params=SamplingParams(),
        max_tokens=max_tokens,
        arrived_s=0.0,
        eos_token_ids=frozenset({EOS}),
        embeds=embeds,
        is_probe=is_probe,
        priority=priority,
        on_event=(events if events is not None else []).append,
    )


def make_scheduler(
    *,
    slots: int = 4,
    num_stages: int = 1,
    prefill_chunk: int = 8,
    context: int = 64,
    queue: int = 8,
    kv_blocks: int = 0,
    max_drafts: int = 0,
    draft_cost: float | None = None,
) -> Scheduler:
    return Scheduler(
        slots=slots,
        num_stages=num_stages,
        prefill_chunk=prefill_chunk,
        context=context,
        queue=queue,
        kv_blocks=kv_blocks,
        max_drafts=max_drafts,
        draft_cost=draft_cost,
    )


def draw(step: Step, token: int = 7) -> StepDone:
    return StepDone(
        step_id=step.step_id,
        tokens=[
            SampledToken(slot=part.slot, position=part.start + len(part.tokens), token=token)
            for part in step.slices
            if part.samples
        ],
        embeddings=[EmbeddedSlice(slot=part.slot, values=b"done") for part in step.slices if part.embeds],
    )


def next_step(scheduler: Scheduler) -> Step:
    step = scheduler.next_step()
    assert step is not None
    return step


def advance_all(advances: list[Advance | Embedding]) -> None:
    """Deliver as a backend does."""
    for advance in advances:
        request = advance.request
        if isinstance(advance, Advance) and not request.is_over:
            is_stopped = request.deliver(advance.sampled, advance.finish, 1.0)
            assert not is_stopped, "nothing here has stop strings"


def run_dry(scheduler: Scheduler, rank: SimulatedRank | None = None) -> list[Step]:
    """Steps until nothing is left, drawn by the oracle, or 7 without one."""
    steps, in_flight = [], deque[StepDone]()
    while True:
        while (step := scheduler.next_step()) is not None:
            steps.append(step)
            in_flight.append(draw(step) if rank is None else rank.execute(step))
        if not in_flight:
            scheduler.check_integrity()
            return steps
        advance_all(scheduler.complete(in_flight.popleft()))


def test_a_prompt_goes_in_chunks_and_only_the_last_one_draws() -> None:
    scheduler = make_scheduler(prefill_chunk=8)
    scheduler.submit(make_request(20, max_tokens=2))
    steps = run_dry(scheduler)
    assert [(part.start, len(part.tokens), part.samples) for step in steps for part in step.slices] == [
        (0, 8, False),
        (8, 8, False),
        (16, 4, True),
        (20, 1, True),
    ]
    assert [step.slices[0].params is not None for step in steps] == [True, False, False, False]
    assert scheduler.is_idle


def test_decodes_ride_with_a_prompt_chunk() -> None:
    scheduler = make_scheduler(prefill_chunk=8)
    first = make_request(3, max_tokens=10)
    scheduler.submit(first)
    scheduler.complete(draw(next_step(scheduler)))
    scheduler.submit(make_request(30))
    step = next_step(scheduler)
    assert [(part.slot, len(part.tokens)) for part in step.slices] == [(0, 1), (1, 7)]


def test_what_is_soonest_done_goes_first() -> None:
    scheduler = make_scheduler(prefill_chunk=8)
    scheduler.submit(make_request(60, max_tokens=1))
    first = next_step(scheduler)
    scheduler.submit(make_request(4, max_tokens=1))
    second = next_step(scheduler)
    assert [(part.slot, len(part.tokens)) for part in first.slices] == [(0, 8)]
    assert [(part.slot, len(part.tokens)) for part in second.slices] == [(1, 4), (0, 4)]


def test_a_long_prompt_is_not_kept_waiting_for_ever() -> None:
    scheduler = make_scheduler(prefill_chunk=8, queue=100)
    long = make_request(60, max_tokens=1)
    scheduler.submit(long)
    for number in range(200):
        scheduler.submit(make_request(tuple(range(9 * number, 9 * number + 8)), max_tokens=1))
        scheduler.complete(draw(next_step(scheduler)))
        if long.generated:
            return
    pytest.fail("short prompts came first every time")


def run_in_lockstep(scheduler: Scheduler, rounds: int) -> list[list[int]]:
    """Rows of the steps in flight, each time as many as there may be."""
    in_flight, rows = deque[Step](), []
    for _ in range(rounds):
        while (step := scheduler.next_step()) is not None:
            in_flight.append(step)
        rows.append([len(step.slices) for step in in_flight])
        scheduler.complete(draw(in_flight.popleft()))
    return rows


def test_running_sequences_are_shared_out_so_that_every_stage_is_busy() -> None:
    scheduler = make_scheduler(slots=12, num_stages=3, prefill_chunk=64, queue=0)
    for _ in range(12):
        scheduler.submit(make_request(2, max_tokens=50))
    assert run_in_lockstep(scheduler, 30)[1:] == [[4, 4, 4]] * 29


def test_a_batch_grows_before_another_is_put_in_flight() -> None:
    scheduler = make_scheduler(slots=7, num_stages=3, prefill_chunk=64, queue=0)
    for number in range(7):
        scheduler.submit(make_request(2 + 30 * (number == 6), max_tokens=50))
    assert run_in_lockstep(scheduler, 30)[3:] == [[7]] * 27


def test_chunks_of_a_prompt_follow_each_other_through_the_stages() -> None:
    scheduler = make_scheduler(num_stages=3, prefill_chunk=256, context=2048)
    scheduler.submit(make_request(1000, max_tokens=5))
    steps = [next_step(scheduler) for _ in range(4)]
    assert scheduler.next_step() is None
    assert [(step.slices[0].start, len(step.slices[0].tokens)) for step in steps] == [
        (0, 96),
        (96, 96),
        (192, 96),
        (288, 96),
    ]


def test_nothing_is_sent_behind_a_draw_before_it_is_known() -> None:
    scheduler = make_scheduler(num_stages=4, prefill_chunk=8)
    scheduler.submit(make_request(16))
    steps = [next_step(scheduler), next_step(scheduler)]
    assert [part.samples for step in steps for part in step.slices] == [False, True]
    assert scheduler.next_step() is None


def test_requests_start_in_the_order_of_arrival_and_the_queue_is_bounded() -> None:
    scheduler = make_scheduler(slots=1, queue=2)
    running, second, third = (make_request(2, max_tokens=1) for _ in range(3))
    scheduler.submit(running)
    next_step(scheduler)
    scheduler.submit(second)
    scheduler.submit(third)
    with pytest.raises(QueueFull):
        scheduler.submit(make_request(2))
    assert scheduler.num_queued == 2
    assert scheduler.take_queued(1) == [second]
    assert scheduler.take_queued() == [third]


def test_a_free_slot_takes_a_request_even_without_any_queue() -> None:
    scheduler = make_scheduler(slots=1, queue=0)
    scheduler.submit(make_request(2))
    with pytest.raises(QueueFull):
        scheduler.submit(make_request(2))


def test_the_context_ends_a_sequence() -> None:
    scheduler = make_scheduler(context=16)
    request = make_request(10, max_tokens=100)
    scheduler.submit(request)
    steps = run_dry(scheduler)
    assert len(request.prompt) + len(request.generated) == 16
    assert max(part.start + len(part.tokens) for step in steps for part in step.slices) == 15


def test_an_end_token_stops_at_once() -> None:
    scheduler = make_scheduler()
    request = make_request(3, max_tokens=100)
    scheduler.submit(request)
    [advance] = scheduler.complete(draw(next_step(scheduler), token=EOS))
    assert isinstance(advance, Advance)
    assert advance.finish == "stop"
    assert scheduler.is_idle


def test_a_request_that_was_generating_elsewhere_is_continued_from_its_tokens() -> None:
    """A replay prefills prompt and emitted tokens, and draws the token after them."""
    scheduler = make_scheduler(prefill_chunk=8)
    request = make_request(6, max_tokens=5)
    request.generated = [50, 51, 52]
    scheduler.submit(request)
    steps = run_dry(scheduler)
    assert [list(part.tokens) for step in steps for part in step.slices] == [
        [100, 101, 102, 103, 104, 105, 50, 51],
        [52],
        [7],
    ]
    assert request.generated == [50, 51, 52, 7, 7]


def test_a_request_that_embeds_draws_nothing_and_frees_its_slot() -> None:
    scheduler = make_scheduler(slots=1, prefill_chunk=8)
    request = make_request(12, embeds=True)
    scheduler.submit(request)
    first = next_step(scheduler)
    assert [(len(part.tokens), part.samples, part.embeds) for part in first.slices] == [(8, False, False)]
    assert scheduler.complete(draw(first)) == []
    last = next_step(scheduler)
    assert [(len(part.tokens), part.samples, part.embeds) for part in last.slices] == [(4, False, True)]
    assert scheduler.complete(draw(last)) == [Embedding(request=request, values=b"done")]
    assert scheduler.is_idle


def test_an_embedding_that_is_missing_is_noticed() -> None:
    scheduler = make_scheduler()
    scheduler.submit(make_request(3, embeds=True))
    with pytest.raises(FleetError, match="did not embed"):
        scheduler.complete(StepDone(step_id=next_step(scheduler).step_id, tokens=[]))


def test_a_cancelled_sequence_keeps_its_slot_until_its_step_is_back() -> None:
    scheduler = make_scheduler(slots=1)
    first, second = make_request(3), make_request(3)
    scheduler.submit(first)
    step = next_step(scheduler)
    scheduler.cancel(first)
    scheduler.submit(second)
    assert scheduler.next_step() is None
    assert scheduler.complete(draw(step)) == []
    assert scheduler.requests_starting_in(next_step(scheduler)) == [second]
    assert first.state == "cancelled"


@pytest.mark.parametrize(
    "answer",
    [
        StepDone(step_id=9, tokens=[]),
        StepDone(step_id=0, tokens=[]),
        StepDone(step_id=0, tokens=[SampledToken(slot=0, position=2, token=5)]),
        StepDone(step_id=0, tokens=[SampledToken(slot=1, position=3, token=5)]),
    ],
)
def test_an_answer_to_another_question_is_refused(answer: StepDone) -> None:
    scheduler = make_scheduler()
    scheduler.submit(make_request(3))
    next_step(scheduler)
    with pytest.raises(FleetError, match="step"):
        scheduler.complete(answer)


def test_a_lost_replica_gives_back_its_requests_and_all_slots() -> None:
    events: list[RequestEvent] = []
    scheduler = make_scheduler(slots=1)
    running, queued = make_request(3, events=events), make_request(3)
    scheduler.submit(running)
    next_step(scheduler)
    scheduler.submit(queued)
    assert scheduler.abandon() == [running]
    assert scheduler.take_queued() == [queued]
    assert scheduler.is_idle
    scheduler.check_integrity()
    assert not [event for event in events if isinstance(event, Finished)]


def test_requests_that_share_a_prefix_compute_it_once() -> None:
    """The first one computes it, the others wait for that and begin behind it."""
    prefix = tuple(range(1000, 1256))
    requests = [make_request((*prefix, 10 + number, 11, 12), max_tokens=2) for number in range(8)]
    scheduler = make_scheduler(slots=8, num_stages=2, prefill_chunk=128, context=512)
    for request in requests:
        scheduler.submit(request)
    steps = run_dry(scheduler, SimulatedRank(num_blocks=8 * 32, slots=8))
    prompt_rows = sum(len(part.tokens) for step in steps for part in step.slices if part.start < 259)
    assert prompt_rows == 256 + 8 * 3
    assert scheduler.counts.prefix_hit_tokens == 7 * 256
    assert all(request.generated == generate(request.prompt, 2) for request in requests)


def test_another_turn_of_a_conversation_begins_where_the_last_one_ended() -> None:
    scheduler = make_scheduler(slots=2, context=256)
    rank = SimulatedRank(num_blocks=32, slots=2)
    first = make_request(20, max_tokens=30)
    scheduler.submit(first)
    run_dry(scheduler, rank)
    second = make_request((*first.prompt, *first.generated, 5, 6, 7), max_tokens=2)
    scheduler.submit(second)
    run_dry(scheduler, rank)
    assert scheduler.counts.prefix_hit_tokens == 48
    assert second.generated == generate(second.prompt, 2)


def test_a_probe_computes_everything_itself_and_leaves_nothing() -> None:
    scheduler = make_scheduler(context=128, max_drafts=4)
    rank = SimulatedRank(num_blocks=32, slots=4)
    for is_probe in (True, False, True):
        request = make_request(40, max_tokens=20, is_probe=is_probe)
        before = rank.num_computed
        scheduler.submit(request)
        steps = run_dry(scheduler, rank)
        assert steps[0].slices[0].start == 0
        if is_probe:
            assert rank.num_computed - before == 59
    assert scheduler.counts.prefix_hit_tokens == 0


def test_the_youngest_loses_its_blocks_and_its_answer_is_the_same() -> None:
    events: list[RequestEvent] = []
    old, young = make_request(30, max_tokens=60), make_request((9, 8, 7), max_tokens=60, events=events)
    scheduler = make_scheduler(slots=2, context=128, kv_blocks=7)
    scheduler.submit(old)
    scheduler.submit(young)
    run_dry(scheduler, SimulatedRank(num_blocks=7, slots=2))
    assert scheduler.counts.preemptions >= 1
    assert old.generated == generate(old.prompt, 60)
    assert young.generated == generate(young.prompt, 60)
    assert [type(event) for event in events if isinstance(event, Finished)] == [Finished]


def test_an_urgent_request_takes_the_slot_of_a_lesser_one() -> None:
    lesser, urgent = make_request(20, max_tokens=20), make_request((5, 6), max_tokens=3, priority=-1)
    scheduler = make_scheduler(slots=1, context=128)
    rank = SimulatedRank(num_blocks=8, slots=1)
    scheduler.submit(lesser)
    for _ in range(5):
        advance_all(scheduler.complete(rank.execute(next_step(scheduler))))
    scheduler.submit(urgent)
    while not urgent.is_over:
        advance_all(scheduler.complete(rank.execute(next_step(scheduler))))
    assert len(lesser.generated) < 20
    assert lesser.state == "queued"
    run_dry(scheduler, rank)
    assert lesser.generated == generate(lesser.prompt, 20)


def test_equals_do_not_take_each_others_slots() -> None:
    scheduler = make_scheduler(slots=1)
    scheduler.submit(make_request(3))
    scheduler.complete(draw(next_step(scheduler)))
    scheduler.submit(make_request((8, 9)))
    assert [part.slot for part in next_step(scheduler).slices] == [0]
    assert scheduler.num_queued == 1
    assert scheduler.counts.preemptions == 0


def test_right_guesses_save_steps_and_change_nothing() -> None:
    def run(max_drafts: int) -> tuple[list[int], int]:
        request = make_request((1, 2, 3), max_tokens=50)
        scheduler = make_scheduler(slots=1, context=128, max_drafts=max_drafts)
        scheduler.submit(request)
        steps = run_dry(scheduler, SimulatedRank(num_blocks=8, slots=1))
        return request.generated, len(steps)

    plain, guessed = run(0), run(6)
    assert plain[0] == guessed[0] == generate((1, 2, 3), 50)
    assert plain[1] == 50
    assert guessed[1] < 25


def test_an_end_among_right_guesses_ends_the_request_there() -> None:
    tokens = generate((1, 2, 3), 40)
    request = make_request((1, 2, 3, *tokens[:20]), max_tokens=100)
    expected = generate(request.prompt, 100)
    last = next(token for token in expected if token != expected[0])
    request.eos_token_ids = frozenset({last})
    scheduler = make_scheduler(slots=1, context=256, prefill_chunk=64, max_drafts=8)
    scheduler.submit(request)
    run_dry(scheduler, SimulatedRank(num_blocks=16, slots=1))
    assert request.generated == expected[: expected.index(last) + 1]
    assert scheduler.is_idle


@pytest.mark.parametrize("tokens", [[], [10], [10, 11, 99], [10, 12, 13], [10, 11, 12, 13]])
def test_an_answer_that_contradicts_its_guesses_is_refused(tokens: list[int]) -> None:
    scheduler = make_scheduler(slots=1, context=128, prefill_chunk=64, max_drafts=2)
    scheduler.submit(make_request((5, 10, 11, 12, 5), max_tokens=20))
    scheduler.complete(draw(next_step(scheduler), token=10))
    [part] = next_step(scheduler).slices
    assert part.tokens == [10, 11, 12]
    assert part.drafts == 2
    drawn = [SampledToken(slot=0, position=6 + index, token=token) for index, token in enumerate(tokens)]
    with pytest.raises(FleetError, match="step 1 drew"):
        scheduler.complete(StepDone(step_id=1, tokens=[*drawn, SampledToken(slot=0, position=99, token=1)]))


@pytest.mark.parametrize("wrong_guess_every", [0, 3, 1])
def test_a_draft_models_guesses_change_no_token(wrong_guess_every: int) -> None:
    requests = [make_request((1, 2, index), max_tokens=60) for index in range(3)]
    scheduler = make_scheduler(slots=3, context=128, prefill_chunk=32, max_drafts=6, draft_cost=0.1)
    for request in requests:
        scheduler.submit(request)
    rank = SimulatedRank(num_blocks=24, slots=3, wrong_guess_every=wrong_guess_every, context=128)
    steps = run_dry(scheduler, rank)
    for request in requests:
        assert request.generated == generate(request.prompt, 60)
    counts = scheduler.counts
    match wrong_guess_every:
        case 0:
            assert counts.drafts_accepted == counts.drafts_proposed > 120
            assert len(steps) < 30
        case 3:
            assert 0 < counts.drafts_accepted < counts.drafts_proposed
        case _:
            assert counts.drafts_accepted == 0


def test_guesses_that_never_come_true_are_asked_for_rarely() -> None:
    request = make_request((1, 2, 3), max_tokens=200)
    scheduler = make_scheduler(slots=1, context=256, max_drafts=6, draft_cost=0.1)
    scheduler.submit(request)
    steps = run_dry(scheduler, SimulatedRank(num_blocks=16, slots=1, wrong_guess_every=1, context=256))
    asking = [index for index, step in enumerate(steps) if step.slices[0].guesses_wanted]
    late = [index for index in asking if index > 30]
    assert late, "it is tried again"
    assert all(step.slices[0].guesses_wanted <= 1 for step in steps[30:])
    assert all(after - before > RETRY_TOKENS for before, after in pairwise(late))


def test_a_guess_of_a_dear_draft_model_must_be_surer() -> None:
    lengths = [DraftLength(8).choose(1, draft_cost=cost) for cost in (0.0, 0.1, 0.3, 1.0)]
    assert lengths == sorted(lengths, reverse=True)
    assert (lengths[1], lengths[-1]) == (2, 0)


def test_guesses_take_no_block_from_anybody() -> None:
    """Two sequences fill the cache but for the blocks that their own tokens need."""
    requests = [make_request((index, 2, 3), max_tokens=29) for index in range(2)]
    scheduler = make_scheduler(slots=2, context=64, kv_blocks=4, max_drafts=6, draft_cost=0.0)
    for request in requests:
        scheduler.submit(request)
    run_dry(scheduler, SimulatedRank(num_blocks=4, slots=2, context=64))
    for request in requests:
        assert request.generated == generate(request.prompt, 29)
    assert scheduler.counts.preemptions == 0
    assert scheduler.counts.drafts_accepted > 0


def test_probes_and_embeddings_want_no_guesses() -> None:
    scheduler = make_scheduler(slots=2, context=64, max_drafts=4, draft_cost=0.0)
    scheduler.submit(make_request(5, max_tokens=9, is_probe=True))
    scheduler.submit(make_request((7, 8, 9), embeds=True))
    for step in run_dry(scheduler, SimulatedRank(num_blocks=8, slots=2, context=64)):
        assert [part.guesses_wanted for part in step.slices] == [0] * len(step.slices)


@pytest.mark.parametrize("guesses", [[[1, 2, 3]], [[1], [2]]])
def test_guesses_that_nobody_wanted_are_refused(guesses: list[list[int]]) -> None:
    scheduler = make_scheduler(slots=1, max_drafts=2, draft_cost=0.0)
    scheduler.submit(make_request(3, max_tokens=20))
    scheduler.complete(draw(next_step(scheduler)))
    step = next_step(scheduler)
    assert step.slices[0].guesses_wanted == 2
    with pytest.raises(FleetError, match=r"step 1 has .* guesses, \[2\] were wanted"):
        scheduler.complete(msgspec.structs.replace(draw(step), guesses=guesses))


def test_a_rank_may_have_no_guesses() -> None:
    request = make_request(3, max_tokens=20)
    scheduler = make_scheduler(slots=1, max_drafts=2, draft_cost=0.0)
    scheduler.submit(request)
    while not scheduler.is_idle:
        scheduler.complete(draw(next_step(scheduler)))
    assert len(request.generated) == 20
    assert scheduler.counts.drafts_proposed == 0


def test_blocks_bound_a_sequence_where_they_are_fewer_than_its_context() -> None:
    serving = Serving(context=512, batch=4, kv_cache_tokens=100)
    assert longest_sequence(serving) == 112
    assert longest_sequence(Serving(context=512, batch=4)) == 512
    scheduler = make_scheduler(context=serving.context, kv_blocks=serving.kv_blocks, prefill_chunk=64)
    request = make_request(100, max_tokens=100)
    scheduler.submit(request)
    run_dry(scheduler, SimulatedRank(num_blocks=serving.kv_blocks, slots=4))
    assert request.generated == generate(request.prompt, 12)
