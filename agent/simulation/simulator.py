"""The event loop: take the next event, set the time, handle it, push what follows. Pure.

Every stage of every replica is a server with a queue: it computes steps one by one in their order, and its link
keeps it busy while bytes leave. Schedulers and their balancing are those that serve; only the ranks are not there.
Events of one moment come in the order in which they were pushed, so the same input always gives the same result.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Sequence

import msgspec

from agent.errors import FleetError
from agent.planner.plan import Serving
from agent.serving.balance import choose_replica, even_out
from agent.serving.request import Request
from agent.serving.scheduler import Advance, QueueFull, Scheduler, longest_sequence
from agent.simulation.result import Refusal, ReplicaUse, SimulatedRequest, Simulation, StageUse
from agent.simulation.step_times import Calibration, Drafting, StepCosts, StepTimes
from agent.simulation.trace import TraceRequest
from agent.simulation.words import Words
from agent.wire.rank import SampledToken, SamplingParams, Step, StepDone

MAX_STEPS = 20_000_000
"""Of all replicas: hours of computing, so a mistake in the trace rather than a wish."""


class _Flight(msgspec.Struct, kw_only=True, eq=False):
    """A step under way in one replica. `done` is what its last stage draws, `draft_s` what guessing takes there."""

    times: StepTimes
    done: StepDone
    draft_s: float


class _Arrived(msgspec.Struct, frozen=True, eq=False):
    """A request is at the scheduler."""

    index: int


class _Reached(msgspec.Struct, frozen=True, eq=False):
    """A step, or its hidden states, is at a stage."""

    replica: int
    stage: int
    flight: _Flight


class _Freed(msgspec.Struct, frozen=True, eq=False):
    """A stage can begin its next step."""

    replica: int
    stage: int


class _Returned(msgspec.Struct, frozen=True, eq=False):
    """A step's tokens are at the gateway."""

    replica: int
    flight: _Flight


_Event = _Arrived | _Reached | _Freed | _Returned


class _Stage:
    def __init__(self, name: str) -> None:
        self.name = name
        self.waiting: deque[_Flight] = deque()
        self.is_busy = False
        self.busy_s = 0.0


class _Replica:
    """One scheduler, its stages, and what is measured of them."""

    def __init__(self, costs: StepCosts, serving: Serving, drafting: Drafting | None) -> None:
        self.costs = costs
        self.scheduler = Scheduler.of_replica(
            serving, num_stages=costs.num_stages, draft_cost=drafting.cost if drafting is not None else None
        )
        self.stages = [_Stage(stage.name) for stage in costs.layout.stages]
        self.answers: dict[int, _Answer] = {}
        """Of the running sequences, by slot."""
        self.steps = self.rows = self.peak_blocks = 0
        self.in_flight_s = self.block_s = 0.0

    def pass_time(self, seconds: float) -> None:
        if self.scheduler.num_in_flight:
            self.in_flight_s += seconds
            self.block_s += seconds * self.scheduler.num_blocks_held


class _Answer(msgspec.Struct, kw_only=True, eq=False):
    """A request under way: the tokens that the model would draw for it, and when each one came."""

    index: int
    request: Request
    tokens: list[int]
    token_s: list[float]


def simulate(
    trace: Sequence[TraceRequest],
    serving: Serving,
    replicas: Sequence[StepCosts],
    *,
    seed: int = 0,
    repetition: float = 0.0,
    calibration: Calibration | None = None,
    drafting: Drafting | None = None,
) -> Simulation:
    """Serve a trace, sorted by arrival, to its end. Of `calibration`, `request_s` and `jitter` count here; the rest
    is in the replicas' costs.

    Raises FleetError E118 beyond `MAX_STEPS` steps.
    """
    words = Words(seed=seed, repetition=repetition)
    noise = random.Random(f"{seed} noise")
    return _Simulator(
        trace, serving, replicas, words, calibration=calibration or Calibration(), drafting=drafting, noise=noise
    ).run()


class _Simulator:
    def __init__(
        self,
        trace: Sequence[TraceRequest],
        serving: Serving,
        replicas: Sequence[StepCosts],
        words: Words,
        *,
        calibration: Calibration,
        drafting: Drafting | None,
        noise: random.Random,
    ) -> None:
        assert replicas, "a plan has at least one replica"
        self._trace = trace
        self._serving = serving
        self._words = words
        self._jitter = calibration.jitter
        self._drafting = drafting
        self._noise = noise
        self._replicas = [_Replica(costs, serving, drafting) for costs in replicas]
        self._events: list[tuple[float, int, _Event]] = []
        self._num_pushed = 0
        self._now_s = 0.0
        self._token_s: list[list[float]] = [[] for _ in trace]
        self._answers: dict[int, _Answer] = {}
        """Of those that are not over, by the identity of their request."""
        self._num_steps = 0
        self._refusals: dict[int, Refusal] = {}
        self._queued_s = 0.0
        self._peak_queued = 0
        for index, asked in enumerate(trace):
            self._push(asked.arrival_s + calibration.request_s, _Arrived(index))

    def run(self) -> Simulation:
        while self._events:
            at_s, _, event = heapq.heappop(self._events)
            self._pass_time(at_s)
            match event:
                case _Arrived():
                    self._on_arrived(event.index)
                case _Reached():
                    stage = self._replicas[event.replica].stages[event.stage]
                    stage.waiting.append(event.flight)
                    self._work(event.replica, event.stage)
                case _Freed():
                    self._replicas[event.replica].stages[event.stage].is_busy = False
                    self._work(event.replica, event.stage)
                case _Returned():
                    self._on_returned(event.replica, event.flight)
        for replica in self._replicas:
            assert replica.scheduler.is_idle, "requests that never end"
            replica.scheduler.check_integrity()
        return self._result()

    def _push(self, at_s: float, event: _Event) -> None:
        heapq.heappush(self._events, (at_s, self._num_pushed, event))
        self._num_pushed += 1

    def _pass_time(self, at_s: float) -> None:
        seconds = at_s - self._now_s
        if seconds > 0:
            for replica in self._replicas:
                replica.pass_time(seconds)
            self._queued_s += seconds * self._num_queued
            self._now_s = at_s

    @property
    def _num_queued(self) -> int:
        return sum(replica.scheduler.num_queued for replica in self._replicas)

    # --- the gateway ----------------------------------------------------------------------------------

    def _on_arrived(self, index: int) -> None:
        asked = self._trace[index]
        if asked.prompt_tokens >= longest_sequence(self._serving):
            self._refusals[index] = "too long"
            return
        schedulers = [replica.scheduler for replica in self._replicas]
        try:
            chosen = choose_replica(schedulers, queue=self._serving.queue)
        except QueueFull:
            self._refusals[index] = "queue full"
            return
        prompt = self._words.prompt(asked)
        request = Request(
            prompt=prompt,
            params=SamplingParams(),
            max_tokens=asked.output_tokens,
            arrived_s=self._now_s,
            client=asked.client,
            on_event=lambda _event: None,
        )
        tokens = self._words.answer(index, prompt, asked.output_tokens)
        self._answers[id(request)] = _Answer(
            index=index, request=request, tokens=tokens, token_s=self._token_s[index]
        )
        schedulers[chosen].submit(request)
        self._pump(chosen)
        self._peak_queued = max(self._peak_queued, self._num_queued)

    def _on_returned(self, index: int, flight: _Flight) -> None:
        scheduler = self._replicas[index].scheduler
        for advance in scheduler.complete(flight.done):
            assert isinstance(advance, Advance), "nobody asks for embeddings"
            answer = self._answers[id(advance.request)]
            answer.token_s.append(self._now_s)
            is_stopped = advance.request.deliver(advance.sampled, advance.finish, self._now_s)
            assert not is_stopped, "nobody asks for stop strings"
            if advance.request.is_over:
                del self._answers[id(advance.request)]
        self._pump(index)

    def _pump(self, index: int) -> None:
        """Send every step that may be sent now, as a gateway does."""
        replica = self._replicas[index]
        scheduler = replica.scheduler
        if len(self._replicas) > 1:
            even_out(scheduler, [each.scheduler for each in self._replicas if each is not replica])
        while (step := scheduler.next_step()) is not None:
            for part, request in zip(
                (part for part in step.slices if part.params is not None),
                scheduler.requests_starting_in(step),
                strict=True,
            ):
                replica.answers[part.slot] = self._answers[id(request)]
            replica.steps += 1
            replica.rows += sum(len(part.tokens) for part in step.slices)
            self._num_steps += 1
            if self._num_steps > MAX_STEPS:
                raise FleetError(
                    "E118", f"the trace takes more than {MAX_STEPS} steps", hint="simulate a part of it"
                )
            done, draft_s = self._draw(step, replica.answers)
            flight = _Flight(times=replica.costs.of(step), done=done, draft_s=draft_s)
            self._push(self._now_s, _Reached(index, 0, flight))
        replica.peak_blocks = max(replica.peak_blocks, scheduler.num_blocks_held)

    def _draw(self, step: Step, answers: dict[int, _Answer]) -> tuple[StepDone, float]:
        """As the last stage does: after right guesses one token more. And the seconds that new guesses take."""
        drawn: list[SampledToken] = []
        guesses: list[list[int]] = []
        for part in step.slices:
            if not part.samples:
                continue
            answer = answers[part.slot]
            num_prompt = len(answer.request.prompt)
            place = part.start + len(part.tokens) - part.drafts
            for position, guess in enumerate([*part.tokens[len(part.tokens) - part.drafts :], None], place):
                place, token = position, answer.tokens[position - num_prompt]
                drawn.append(SampledToken(slot=part.slot, position=position, token=token))
                if token != guess:
                    break
            if part.guesses_wanted:
                assert self._drafting is not None, "guesses are wanted of a draft model"
                first, acceptance = place + 1 - num_prompt, self._drafting.acceptance
                guesses.append(
                    self._words.guesses(
                        answer.index, answer.tokens, first, part.guesses_wanted, acceptance=acceptance
                    )
                )
        # Sequences guess together: as many passes as the one that wants most has.
        passes = max((part.guesses_wanted for part in step.slices), default=0)
        draft_s = passes * self._drafting.pass_s if self._drafting is not None else 0.0
        return StepDone(step_id=step.step_id, tokens=drawn, guesses=guesses), draft_s

    # --- a stage --------------------------------------------------------------------------------------

    def _work(self, index: int, position: int) -> None:
        """Begin the next step, if the stage is free and there is one."""
        replica = self._replicas[index]
        stage = replica.stages[position]
        if stage.is_busy or not stage.waiting:
            return
        flight = stage.waiting.popleft()
        times = flight.times
        own_s = times.stages[position]
        if position + 1 == len(replica.stages):
            own_s += flight.draft_s
        computed_s = self._now_s + own_s * self._noise_factor()
        freed_s = computed_s + times.sends[position]
        stage.is_busy = True
        stage.busy_s += freed_s - self._now_s
        if position + 1 < len(replica.stages):
            self._push(computed_s + times.hops[position], _Reached(index, position + 1, flight))
        else:
            self._push(computed_s + times.return_s, _Returned(index, flight))
        self._push(freed_s, _Freed(index, position))

    def _noise_factor(self) -> float:
        """Lognormal with mean 1."""
        if not self._jitter:
            return 1.0
        return math.exp(self._noise.gauss(-(self._jitter**2) / 2, self._jitter))

    # --- the end --------------------------------------------------------------------------------------

    def _result(self) -> Simulation:
        requests = tuple(self._request_result(index) for index in range(len(self._trace)))
        ends = [each.token_s[-1] if each.token_s else each.arrived_s for each in requests]
        elapsed_s = max(ends, default=0.0)
        return Simulation(
            elapsed_s=elapsed_s,
            requests=requests,
            mean_queued=self._queued_s / elapsed_s if elapsed_s else 0.0,
            peak_queued=self._peak_queued,
            replicas=tuple(_use(replica, elapsed_s) for replica in self._replicas),
        )

    def _request_result(self, index: int) -> SimulatedRequest:
        asked = self._trace[index]
        return SimulatedRequest(
            index=index,
            arrived_s=asked.arrival_s,
            prompt_tokens=asked.prompt_tokens,
            wanted_output_tokens=asked.output_tokens,
            token_s=tuple(self._token_s[index]),
            refusal=self._refusals.get(index, ""),
        )


def _use(replica: _Replica, elapsed_s: float) -> ReplicaUse:
    scheduler, in_flight_s = replica.scheduler, replica.in_flight_s
    counts = scheduler.counts
    return ReplicaUse(
        steps=replica.steps,
        mean_rows=replica.rows / replica.steps if replica.steps else 0.0,
        in_flight_s=in_flight_s,
        blocks=scheduler.num_blocks,
        peak_blocks=replica.peak_blocks,
        mean_blocks=replica.block_s / in_flight_s if in_flight_s else 0.0,
        preemptions=counts.preemptions,
        prefix_hit_tokens=counts.prefix_hit_tokens,
        drafts_proposed=counts.drafts_proposed,
        drafts_accepted=counts.drafts_accepted,
        stages=tuple(
            StageUse(
                name=stage.name,
                busy_s=stage.busy_s,
                busy_share=stage.busy_s / elapsed_s if elapsed_s else 0.0,
                bubble=max(0.0, 1 - stage.busy_s / in_flight_s) if in_flight_s else 0.0,
            )
            for stage in replica.stages
        ),
    )
