"""The scheduler against a model of a rank: every position once, nothing shared, everything ends."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent.errors import FleetError
from agent.serving.request import Finished, Request, RequestEvent
from agent.serving.scheduler import Advance, Embedding, QueueFull, Scheduler
from agent.wire.rank import EmbeddedSlice, SampledToken, SamplingParams, SequenceSlice, Step, StepDone

EOS = 1


def make_request(
    prompt: int | tuple[int, ...],
    max_tokens: int = 4,
    events: list[RequestEvent] | None = None,
    *,
    embeds: bool = False,
) -> Request:
    tokens = tuple(range(100, 100 + prompt)) if isinstance(prompt, int) else prompt
    return Request(
        prompt=tokens,
        params=SamplingParams(),
        max_tokens=max_tokens,
        arrived_s=0.0,
        eos_token_ids=frozenset({EOS}),
        embeds=embeds,
        on_event=(events if events is not None else []).append,
    )


def make_scheduler(
    *, slots: int = 4, num_stages: int = 1, prefill_chunk: int = 8, context: int = 64, queue: int = 8
) -> Scheduler:
    return Scheduler(slots=slots, num_stages=num_stages, prefill_chunk=prefill_chunk, context=context, queue=queue)


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


def run_dry(scheduler: Scheduler) -> list[Step]:
    steps, in_flight = [], deque[Step]()
    while True:
        while (step := scheduler.next_step()) is not None:
            steps.append(step)
            in_flight.append(step)
        if not in_flight:
            return steps
        scheduler.complete(draw(in_flight.popleft()))


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


def test_short_prompts_are_not_kept_waiting_by_a_long_one() -> None:
    scheduler = make_scheduler(prefill_chunk=8)
    scheduler.submit(make_request(60, max_tokens=1))
    scheduler.submit(make_request(4, max_tokens=1))
    first, second = next_step(scheduler), None
    scheduler.complete(draw(first))
    second = next_step(scheduler)
    assert [(part.slot, len(part.tokens)) for part in first.slices] == [(0, 8)]
    assert [(part.slot, len(part.tokens)) for part in second.slices] == [(1, 4), (0, 4)]


def test_running_sequences_are_shared_out_so_that_every_stage_is_busy() -> None:
    scheduler = make_scheduler(slots=9, num_stages=3, prefill_chunk=64)
    for _ in range(9):
        scheduler.submit(make_request(2, max_tokens=20))
    in_flight = deque[Step]()
    for round_number in range(30):
        while (step := scheduler.next_step()) is not None:
            in_flight.append(step)
        assert len(in_flight) == 3
        assert [len(step.slices) for step in in_flight] == [3, 3, 3], f"round {round_number}"
        scheduler.complete(draw(in_flight.popleft()))


def test_one_sequence_is_never_in_two_steps() -> None:
    scheduler = make_scheduler(num_stages=4)
    scheduler.submit(make_request(40))
    next_step(scheduler)
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


class SchedulerMachine(RuleBasedStateMachine):
    """Arrivals, steps, results and cancellations in any order, against the KV cache that a rank would hold."""

    @initialize(
        slots=st.integers(1, 5),
        num_stages=st.integers(1, 4),
        prefill_chunk=st.integers(1, 12),
        context=st.integers(4, 40),
        queue=st.integers(0, 6),
    )
    def start(self, slots: int, num_stages: int, prefill_chunk: int, context: int, queue: int) -> None:
        self.context, self.slots, self.step_limit = context, slots, max(prefill_chunk, slots)
        self.scheduler = Scheduler(
            slots=slots, num_stages=num_stages, prefill_chunk=prefill_chunk, context=context, queue=queue
        )
        self.in_flight = deque[Step]()
        self.kv_cache: dict[int, list[int]] = {}
        self.owner: dict[int, Request] = {}
        self.requests: list[Request] = []
        self.positions: dict[Request, list[int]] = {}
        self.next_prompt_token = 1000
        self.expected_step = 0

    @rule(length=st.integers(1, 39), max_tokens=st.integers(1, 12))
    def arrive(self, length: int, max_tokens: int) -> None:
        """Prompts have tokens of their own, so that a mix-up of slots shows."""
        length = min(length, self.context - 1)
        prompt = tuple(range(self.next_prompt_token, self.next_prompt_token + length))
        self.next_prompt_token += length
        request = make_request(prompt, max_tokens)
        try:
            self.scheduler.submit(request)
        except QueueFull:
            assert not self.scheduler.has_free_slot
        else:
            self.requests.append(request)

    @rule()
    def send(self) -> None:
        step = self.scheduler.next_step()
        if step is None:
            return
        assert step.slices, "an empty step"
        assert step.step_id == self.expected_step
        self.expected_step += 1
        assert sum(len(part.tokens) for part in step.slices) <= self.step_limit
        starting = deque(self.scheduler.requests_starting_in(step))
        for part in step.slices:
            if part.start == 0:
                assert part.params is not None
                self.kv_cache[part.slot] = []
                self.owner[part.slot] = starting.popleft()
                self.positions[self.owner[part.slot]] = []
            self.compute(part)
        self.in_flight.append(step)

    def compute(self, part: SequenceSlice) -> None:
        cache, request = self.kv_cache[part.slot], self.owner[part.slot]
        assert part.start == len(cache), "a position was skipped or computed twice"
        cache.extend(part.tokens)
        known = [*request.prompt, *request.generated]
        assert cache == known[: len(cache)], "another sequence's tokens in this slot"
        assert part.samples == (len(cache) == len(known))
        self.positions[request].extend(range(part.start, part.start + len(part.tokens)))

    @precondition(lambda self: self.in_flight)
    @rule(is_end=st.integers(0, 5).map(lambda value: value == 0))
    def finish_step(self, is_end: bool) -> None:
        step = self.in_flight.popleft()
        for advance in self.scheduler.complete(draw(step, token=EOS if is_end else 5)):
            assert isinstance(advance, Advance)
            assert advance.request.state == "running", "a token for a request that is over"
            advance.request.deliver(advance.sampled, advance.finish, 1.0)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.scheduler.cancel(data.draw(st.sampled_from(self.requests)))

    @invariant()
    def holds_together(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check_integrity()
            assert self.scheduler.num_in_flight == len(self.in_flight)

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(10_000):
            if self.scheduler.is_idle and not self.in_flight:
                break
            self.send()
            if self.in_flight:
                self.finish_step(is_end=False)
        assert self.scheduler.is_idle, "requests that never end"
        assert not self.in_flight
        for request in self.requests:
            assert request.state in ("finished", "cancelled")
            computed = self.positions.get(request, [])
            assert computed == list(range(len(computed))), "every position exactly once, in order"
            if request.state == "finished":
                assert len(computed) == len(request.prompt) + len(request.generated) - 1
                limit = min(request.max_tokens, self.context - len(request.prompt))
                assert len(request.generated) == limit or request.generated[-1] == EOS


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


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
