"""Continuous batching for one replica: which tokens of which sequences go into the next micro-batch.

Pure and deterministic: no I/O, no clock. Invariants (`check_integrity`): a slot holds at most one sequence, a
sequence is in at most one step in flight, every position is computed exactly once, and slots come back.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence

import msgspec

from agent.errors import FleetError
from agent.serving.request import FinishReason, Request
from agent.wire.rank import SampledToken, SequenceSlice, Step, StepDone


class QueueFull(Exception):
    """No room for another request; the caller tells its client when to come back."""


class Advance(msgspec.Struct, frozen=True, kw_only=True):
    """A request got a token; `finish` says why it was its last, where it was."""

    request: Request
    sampled: SampledToken
    finish: FinishReason | None


class Embedding(msgspec.Struct, frozen=True, kw_only=True):
    """A request that embeds is done."""

    request: Request
    values: bytes


class _Running:
    """A sequence in a slot. `computed` counts positions that are in the KV cache or on their way there."""

    def __init__(self, request: Request, slot: int) -> None:
        self.request = request
        self.slot = slot
        self.computed = 0
        self.in_flight: int | None = None
        self.last_step = -1
        self.is_cancelled = False

    @property
    def num_tokens(self) -> int:
        return len(self.request.prompt) + len(self.request.generated)

    def pending(self, limit: int) -> list[int]:
        """The next tokens to compute, at most `limit`."""
        begin, end = self.computed, min(self.num_tokens, self.computed + limit)
        prompt, generated = self.request.prompt, self.request.generated
        if begin >= len(prompt):
            return generated[begin - len(prompt) : end - len(prompt)]
        return [*prompt[begin:end], *generated[: max(0, end - len(prompt))]]


class Scheduler:
    """Arrivals and step results in, steps out.

    Up to `num_stages` micro-batches are in flight and each takes at most its even share of the running
    sequences, so that every stage has one to work on. A micro-batch has at most
    `max(prefill_chunk, slots)` tokens: one for each decoding sequence in it, the rest for prompts.
    """

    def __init__(self, *, slots: int, num_stages: int, prefill_chunk: int, context: int, queue: int) -> None:
        assert slots >= 1, f"slots {slots}"
        assert num_stages >= 1, f"num_stages {num_stages}"
        assert prefill_chunk >= 1, f"prefill_chunk {prefill_chunk}"
        self.slots = slots
        self.context = context
        self._num_stages = num_stages
        self._step_tokens = max(prefill_chunk, slots)
        self._queue_limit = queue
        self._queue: deque[Request] = deque()
        self._free = list(range(slots))
        self._running: dict[int, _Running] = {}
        self._in_flight: dict[int, list[tuple[_Running, SequenceSlice]]] = {}
        self._next_step_id = 0

    @property
    def num_queued(self) -> int:
        return len(self._queue)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def is_idle(self) -> bool:
        return not self._queue and not self._running

    @property
    def has_free_slot(self) -> bool:
        """A request submitted now would start with the next step."""
        return len(self._free) > len(self._queue)

    def submit(self, request: Request) -> None:
        """Queue a request. Raises QueueFull when `queue` requests wait already.

        Its prompt must leave room for one token in the context; more than fit are not generated.
        """
        assert request.state == "queued", request.state
        assert len(request.prompt) < self.context, f"prompt of {len(request.prompt)} in context {self.context}"
        if len(self._queue) >= self._queue_limit and not self.has_free_slot:
            raise QueueFull
        self._queue.append(request)

    def next_step(self) -> Step | None:
        """The next micro-batch, or None when nothing can be sent before a step in flight returns."""
        self._admit()
        if len(self._in_flight) >= self._num_stages:
            return None
        ready = [sequence for sequence in self._running.values() if sequence.in_flight is None]
        if not ready:
            return None
        share = -(-len(self._running) // self._num_stages)
        ready.sort(key=lambda sequence: sequence.last_step)
        batch = self._take_tokens(ready[:share])
        step_id = self._next_step_id
        self._next_step_id += 1
        for sequence, part in batch:
            sequence.computed += len(part.tokens)
            sequence.in_flight = sequence.last_step = step_id
        self._in_flight[step_id] = batch
        return Step(step_id=step_id, slices=[part for _, part in batch])

    def complete(self, done: StepDone) -> list[Advance | Embedding]:
        """Take a step's result. Raises FleetError E810 when it is not the answer to the oldest step."""
        oldest = next(iter(self._in_flight), None)
        if done.step_id != oldest:
            raise FleetError("E810", f"answer to step {done.step_id} while the oldest in flight is {oldest}")
        batch = self._in_flight[done.step_id]
        expected = [(part.slot, part.start + len(part.tokens)) for _, part in batch if part.samples]
        if [(token.slot, token.position) for token in done.tokens] != expected:
            raise FleetError("E810", f"step {done.step_id} drew {_places(done.tokens)}, expected {expected}")
        embedding = [part.slot for _, part in batch if part.embeds]
        if [each.slot for each in done.embeddings] != embedding:
            raise FleetError("E810", f"step {done.step_id} did not embed slots {embedding}")
        del self._in_flight[done.step_id]
        tokens, embeddings = iter(done.tokens), iter(done.embeddings)
        advances: list[Advance | Embedding] = []
        for sequence, part in batch:
            sequence.in_flight = None
            sampled = next(tokens) if part.samples else None
            embedded = next(embeddings) if part.embeds else None
            if sequence.is_cancelled:
                self._release(sequence)
            elif embedded is not None:
                self._release(sequence)
                advances.append(Embedding(request=sequence.request, values=embedded.values))
            elif sampled is not None:
                advances.append(self._advance(sequence, sampled))
        return advances

    def cancel(self, request: Request) -> None:
        """Forget a request: at once, or when its step in flight returns. Unknown ones are nobody's trouble."""
        if request in self._queue:
            self._queue.remove(request)
            request.state = "cancelled"
            return
        for sequence in self._running.values():
            if sequence.request is request and not sequence.is_cancelled:
                if not request.is_over:
                    request.state = "cancelled"
                if sequence.in_flight is None:
                    self._release(sequence)
                else:
                    sequence.is_cancelled = True
                return

    def take_queued(self, limit: int | None = None) -> list[Request]:
        """Remove up to `limit` queued requests, oldest first: they go elsewhere."""
        count = len(self._queue) if limit is None else min(limit, len(self._queue))
        return [self._queue.popleft() for _ in range(count)]

    def abandon(self) -> list[Request]:
        """Forget every sequence and step, because the replica is lost. Returns the requests that ran."""
        ran = [sequence.request for sequence in self._running.values() if not sequence.is_cancelled]
        self._running.clear()
        self._in_flight.clear()
        self._free = list(range(self.slots))
        return ran

    def requests_starting_in(self, step: Step) -> list[Request]:
        """Those whose first tokens are in this step."""
        return [self._running[part.slot].request for part in step.slices if part.start == 0]

    def check_integrity(self) -> None:
        """Assert the invariants. Cheap enough to run whenever the replica falls idle."""
        assert sorted([*self._free, *self._running]) == list(range(self.slots)), "slots leaked or shared"
        assert len(self._in_flight) <= self._num_stages, "too many micro-batches in flight"
        travelling = [sequence for batch in self._in_flight.values() for sequence, _ in batch]
        assert len(travelling) == len({id(sequence) for sequence in travelling}), "a sequence travels twice"
        for slot, sequence in self._running.items():
            assert sequence.slot == slot, "sequence in another's slot"
            assert (sequence.in_flight is not None) == (sequence in travelling), "in flight and not"
            assert sequence.computed <= sequence.num_tokens <= self.context, "computed tokens that do not exist"
            assert sequence.in_flight is not None or not sequence.is_cancelled, "a cancelled sequence stayed"
        assert all(request.state == "queued" for request in self._queue), "queued in another state"

    def _admit(self) -> None:
        while self._queue and self._free:
            request = self._queue.popleft()
            request.state = "running"
            slot = heapq.heappop(self._free)
            self._running[slot] = _Running(request, slot)

    def _take_tokens(self, sequences: Sequence[_Running]) -> list[tuple[_Running, SequenceSlice]]:
        """Decodes first, one token each, then prompts share what is left, longest waiting first."""
        decoding = [sequence for sequence in sequences if sequence.num_tokens - sequence.computed == 1]
        prefilling = [sequence for sequence in sequences if sequence.num_tokens - sequence.computed > 1]
        budget = self._step_tokens
        batch = []
        for sequence in [*decoding, *prefilling]:
            tokens = sequence.pending(budget)
            if not tokens:
                break
            budget -= len(tokens)
            start = sequence.computed
            is_last = start + len(tokens) == sequence.num_tokens
            samples = is_last and not sequence.request.embeds
            part = SequenceSlice(
                slot=sequence.slot,
                start=start,
                tokens=tokens,
                samples=samples,
                params=sequence.request.params if start == 0 else None,
                masks=sequence.request.next_mask() if samples else b"",
                embeds=is_last and sequence.request.embeds,
            )
            batch.append((sequence, part))
        return batch

    def _advance(self, sequence: _Running, sampled: SampledToken) -> Advance:
        request = sequence.request
        request.generated.append(sampled.token)
        finish: FinishReason | None = None
        if sampled.token in request.eos_token_ids:
            finish = "stop"
        elif len(request.generated) >= request.max_tokens or sequence.num_tokens >= self.context:
            finish = "length"
        if finish is not None:
            self._release(sequence)
        return Advance(request=request, sampled=sampled, finish=finish)

    def _release(self, sequence: _Running) -> None:
        del self._running[sequence.slot]
        heapq.heappush(self._free, sequence.slot)


def _places(tokens: Sequence[SampledToken]) -> list[tuple[int, int]]:
    return [(token.slot, token.position) for token in tokens]
