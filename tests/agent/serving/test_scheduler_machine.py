"""The scheduler under everything at once, against an oracle that holds the blocks as a rank would."""

from __future__ import annotations

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent.serving.request import Embedded, Finished, Request, RequestEvent
from agent.serving.scheduler import Advance, QueueFull, Scheduler
from agent.wire.rank import SamplingParams, StepDone
from tests.agent.serving.simulated_rank import SimulatedRank, generate

BEGINNINGS = [tuple(range(100 * index, 100 * index + 80)) for index in range(1, 4)]
"""Texts that many prompts begin with."""


class SchedulerMachine(RuleBasedStateMachine):
    """Arrivals, steps, results, cancellations and losses in any order."""

    @initialize(
        slots=st.integers(1, 5),
        num_stages=st.integers(1, 4),
        prefill_chunk=st.integers(1, 70),
        context=st.integers(4, 120),
        queue=st.integers(0, 6),
        spare_blocks=st.integers(0, 20),
        max_drafts=st.sampled_from([0, 1, 4]),
        draft_cost=st.sampled_from([None, None, 0.0, 0.2]),
        wrong_guess_every=st.sampled_from([0, 1, 3]),
        shares_prefixes=st.booleans(),
    )
    def start(
        self,
        slots: int,
        num_stages: int,
        prefill_chunk: int,
        context: int,
        queue: int,
        spare_blocks: int,
        max_drafts: int,
        draft_cost: float | None,
        wrong_guess_every: int,
        shares_prefixes: bool,
    ) -> None:
        self.slots, self.step_limit = slots, max(prefill_chunk, slots)
        self.num_blocks = 1 + spare_blocks
        self.wrong_guess_every = wrong_guess_every
        self.scheduler = Scheduler(
            slots=slots,
            num_stages=num_stages,
            prefill_chunk=prefill_chunk,
            context=context,
            queue=queue,
            kv_blocks=self.num_blocks,
            max_drafts=max_drafts,
            draft_cost=draft_cost,
            shares_prefixes=shares_prefixes,
        )
        self.lose_rank()
        self.requests: list[Request] = []
        self.events: dict[Request, list[RequestEvent]] = {}

    def lose_rank(self) -> None:
        self.rank = SimulatedRank(
            num_blocks=self.num_blocks,
            slots=self.slots,
            wrong_guess_every=self.wrong_guess_every,
            context=self.scheduler.context,
        )
        self.rank._expected_step = self.scheduler._next_step_id
        self.in_flight = deque[StepDone]()

    @rule(
        beginning=st.integers(0, 2),
        shared=st.integers(0, 80),
        own=st.integers(1, 40),
        max_tokens=st.integers(1, 40),
        end_token=st.sampled_from([1, 1, 12]),
        priority=st.sampled_from([0, 0, 0, -1, 2]),
        client=st.sampled_from("ab"),
        kind=st.sampled_from(["text", "text", "text", "text", "probe", "embedding"]),
    )
    def arrive(
        self,
        beginning: int,
        shared: int,
        own: int,
        max_tokens: int,
        end_token: int,
        priority: int,
        client: str,
        kind: str,
    ) -> None:
        prompt = (*BEGINNINGS[beginning][:shared], *range(1000 + own, 1000 + 2 * own))[: self.scheduler.context - 1]
        events: list[RequestEvent] = []
        request = Request(
            prompt=prompt,
            params=SamplingParams(),
            max_tokens=max_tokens,
            arrived_s=0.0,
            eos_token_ids=frozenset({end_token}),
            embeds=kind == "embedding",
            is_probe=kind == "probe",
            priority=priority,
            client=client,
            on_event=events.append,
        )
        try:
            self.scheduler.submit(request)
        except QueueFull:
            assert not self.scheduler.has_free_slot
        else:
            self.requests.append(request)
            self.events[request] = events

    @rule()
    def send(self) -> None:
        step = self.scheduler.next_step()
        if step is None:
            return
        assert step.slices, "an empty step"
        assert sum(len(part.tokens) for part in step.slices) <= self.step_limit
        self.in_flight.append(self.rank.execute(step))

    @precondition(lambda self: self.in_flight)
    @rule()
    def finish_step(self) -> None:
        for advance in self.scheduler.complete(self.in_flight.popleft()):
            request = advance.request
            assert request.state == "running", "a result for a request that is over"
            if isinstance(advance, Advance):
                request.deliver(advance.sampled, advance.finish, 1.0)
            else:
                request.deliver_embedding(advance.values, 1.0)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.scheduler.cancel(data.draw(st.sampled_from(self.requests)))

    @precondition(lambda self: self.scheduler.num_running)
    @rule(chance=st.integers(0, 9))
    def lose_the_replica(self, chance: int) -> None:
        """What ran goes on elsewhere, here: it is submitted again with the tokens that it has."""
        if chance:
            return
        lost = self.scheduler.abandon()
        self.lose_rank()
        for request in lost:
            request.state = "queued"
            self.scheduler.submit(request)

    @invariant()
    def holds_together(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check_integrity()
            assert self.scheduler.num_in_flight == len(self.in_flight)
            assert self.in_flight or self.scheduler.is_idle or self.is_able_to_go_on()

    def is_able_to_go_on(self) -> bool:
        """Checked by sending: with nothing in flight the next step must be there."""
        self.send()
        return bool(self.in_flight)

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(10_000):
            if self.scheduler.is_idle and not self.in_flight:
                break
            self.send()
            if self.in_flight:
                self.finish_step()
        assert self.scheduler.is_idle, "requests that never end"
        assert not self.in_flight
        self.scheduler.check_integrity()
        for request in self.requests:
            assert request.state in ("finished", "cancelled")
            limit = min(request.max_tokens, self.scheduler.context - len(request.prompt))
            expected = generate(request.prompt, limit, request.eos_token_ids)
            ends = [each for each in self.events[request] if isinstance(each, Finished | Embedded)]
            assert len(ends) == (request.state == "finished")
            if request.embeds:
                assert request.generated == []
            elif request.state == "finished":
                assert request.generated == expected
            else:
                assert request.generated == expected[: len(request.generated)]


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
