"""Continuous batching for one replica: which tokens of which sequences go into the next micro-batch.

Pure and deterministic: no I/O, no clock. Invariants (`check_integrity`): a slot holds at most one sequence, every
block is held by those whose tables name it, a sequence has at most one draw in flight and nothing is sent behind
it, and slots and blocks come back. Ranks execute steps in order, so what a step computes may be read by every step
after it: a prompt's chunks follow each other through the stages, and a block is shared once it is sent.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import msgspec

from agent.errors import FleetError
from agent.planner.plan import BLOCK_TOKENS, Serving
from agent.planner.step_cost import count_micro_batches, cut_prompt
from agent.serving.blocks import BlockPool, num_blocks_of
from agent.serving.request import FinishReason, Request
from agent.serving.sequence import RunningSequence
from agent.serving.step_answer import Batch, match_embeddings, match_guesses, match_tokens
from agent.serving.waiting import DRAWN_TOKEN_CHARGE, PROMPT_TOKEN_CHARGE, WaitingRequests
from agent.wire.rank import SampledToken, SequenceSlice, Step, StepDone

PATIENCE_STEPS = 16
"""Steps after which a prompt comes before shorter ones."""


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


class SchedulerCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Since the start, probes left out."""

    prefix_hit_tokens: int = 0
    """Positions that requests found computed by others."""
    preemptions: int = 0
    drafts_proposed: int = 0
    drafts_accepted: int = 0


def longest_sequence(serving: Serving) -> int:
    """Most tokens that a sequence can have: its context, or all of the KV cache where that is smaller."""
    return min(serving.context, serving.kv_blocks * BLOCK_TOKENS)


class Scheduler:
    """Arrivals and step results in, steps out.

    A step has at most `max(prefill_chunk, slots)` tokens: those of decoding sequences, guesses included, and what
    is left for prompts. `kv_blocks` 0 stands for every slot's full context, `max_drafts` 0 for no guesses.
    With a `draft_cost`, what a pass of the draft model takes of the time that a step takes to read the weights,
    guesses are that model's: they come with the draw before. Without, they are looked up.
    """

    def __init__(
        self,
        *,
        slots: int,
        num_stages: int,
        prefill_chunk: int,
        context: int,
        queue: int,
        kv_blocks: int = 0,
        max_drafts: int = 0,
        draft_cost: float | None = None,
        shares_prefixes: bool = True,
    ) -> None:
        assert slots >= 1, f"slots {slots}"
        assert num_stages >= 1, f"num_stages {num_stages}"
        assert prefill_chunk >= 1, f"prefill_chunk {prefill_chunk}"
        assert max_drafts >= 0, f"max_drafts {max_drafts}"
        self.slots = slots
        self.counts = SchedulerCounts()
        self._pool = BlockPool(kv_blocks or slots * num_blocks_of(context))
        self.context = min(context, self._pool.num_blocks * BLOCK_TOKENS)
        """Most tokens of one sequence: a single one may fill the whole cache."""
        self._num_stages = num_stages
        self._prefill_chunk = prefill_chunk
        self._step_tokens = max(prefill_chunk, slots)
        self._queue_limit = queue
        self._max_drafts = max_drafts
        self._draft_cost = draft_cost
        self._shares_prefixes = shares_prefixes
        self._waiting = WaitingRequests()
        self._free = list(range(slots))
        self._running: dict[int, RunningSequence] = {}
        self._in_flight: dict[int, Batch] = {}
        self._computing: dict[bytes, RunningSequence] = {}
        """Who will have computed a block that others may want, by the block's key."""
        self._next_step_id = 0
        self._next_turn = 0

    @classmethod
    def of_replica(cls, serving: Serving, *, num_stages: int, draft_cost: float | None) -> Scheduler:
        """One replica's as its plan has it."""
        return cls(
            slots=serving.batch,
            num_stages=num_stages,
            prefill_chunk=serving.prefill_chunk,
            context=serving.context,
            queue=serving.queue,
            kv_blocks=serving.kv_blocks,
            max_drafts=0 if serving.speculation == "none" else serving.max_drafts,
            draft_cost=draft_cost,
        )

    @property
    def num_queued(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def num_blocks(self) -> int:
        """Of its part of the KV cache."""
        return self._pool.num_blocks

    @property
    def num_blocks_held(self) -> int:
        """By running sequences; contents kept for later prompts hold none."""
        return self._pool.num_held

    @property
    def is_idle(self) -> bool:
        return not self._waiting and not self._running

    @property
    def has_free_slot(self) -> bool:
        """A request submitted now would start with the next step."""
        return len(self._free) > len(self._waiting)

    def submit(self, request: Request) -> None:
        """Queue a request. Raises QueueFull when `queue` requests wait already, but not for one that was taken in
        before, here or by another replica.

        Its prompt must leave room for one token in the context; more than fit are not generated.
        """
        assert request.state == "queued", request.state
        assert len(request.prompt) < self.context, f"prompt of {len(request.prompt)} in context {self.context}"
        is_new = request.turn < 0
        if is_new and len(self._waiting) >= self._queue_limit and not self.has_free_slot:
            raise QueueFull
        request.turn = self._next_turn
        self._next_turn += 1
        self._waiting.push(request)

    def next_step(self) -> Step | None:
        """The next micro-batch, or None when nothing can be sent before a step in flight returns."""
        self._admit()
        # One more than stages while only prompts run, so that the first stage never waits for a result's way back.
        is_any_decoding = any(sequence.is_decoding for sequence in self._running.values())
        if len(self._in_flight) >= self._num_stages + (not is_any_decoding):
            return None
        step_id = self._next_step_id
        batch = self._take_decodes()
        self._add_prompts(batch)
        if not batch:
            return None
        self._next_step_id += 1
        for sequence, part in batch:
            sequence.computed += len(part.tokens) - part.drafts
            sequence.num_in_flight += 1
            sequence.last_step = step_id
            self._publish(sequence)
        self._in_flight[step_id] = batch
        return Step(step_id=step_id, slices=[part for _, part in batch])

    def complete(self, done: StepDone) -> list[Advance | Embedding]:
        """Take a step's result. Raises FleetError E810 when it is not the answer to the oldest step."""
        oldest = next(iter(self._in_flight), None)
        if oldest is None or done.step_id != oldest:
            raise FleetError("E810", f"answer to step {done.step_id} while the oldest in flight is {oldest}")
        batch = self._in_flight[oldest]
        drawn = match_tokens(done, batch)
        embedded = match_embeddings(done, batch)
        guessed = match_guesses(done, batch)
        del self._in_flight[oldest]
        advances: list[Advance | Embedding] = []
        for (sequence, part), tokens in zip(batch, drawn, strict=True):
            sequence.num_in_flight -= 1
            sequence.drafted = next(guessed) if part.guesses_wanted else []
            if sequence.is_cancelled:
                if not sequence.num_in_flight:
                    self._release(sequence)
            elif part.embeds:
                self._release(sequence)
                advances.append(Embedding(request=sequence.request, values=next(embedded).values))
            elif part.samples:
                self._judge_drafts(sequence, part, len(tokens))
                advances.extend(self._advance(sequence, tokens))
        return advances

    def cancel(self, request: Request) -> None:
        """Forget a request: at once, or when its steps in flight return. Unknown ones are nobody's trouble."""
        for sequence in self._running.values():
            if sequence.request is request:
                if not request.is_over:
                    request.state = "cancelled"
                sequence.is_cancelled = True
                self._stop_computing(sequence)
                if not sequence.num_in_flight:
                    self._release(sequence)
                return
        if request.state == "queued" and self._waiting.discard(request):
            request.state = "cancelled"

    def running(self) -> tuple[RunningSequence, ...]:
        """Those in a slot, in the order of their slots, cancelled ones left out."""
        return tuple(sequence for _, sequence in sorted(self._running.items()) if not sequence.is_cancelled)

    def waiting(self) -> tuple[Request, ...]:
        """Those that wait for a slot: by priority, those that ran already first."""
        return tuple(self._waiting)

    def take_queued(self, limit: int | None = None) -> list[Request]:
        """Remove up to `limit` queued requests, those that were next first: they go elsewhere."""
        count = len(self._waiting) if limit is None else min(limit, len(self._waiting))
        return [self._waiting.pop() for _ in range(count)]

    def abandon(self) -> list[Request]:
        """Forget every sequence, step and block, because the replica is lost. Returns the requests that ran."""
        ran = [sequence.request for sequence in self._running.values() if not sequence.is_cancelled]
        self._running.clear()
        self._in_flight.clear()
        self._computing.clear()
        self._pool.clear()
        self._free = list(range(self.slots))
        return ran

    def requests_starting_in(self, step: Step) -> list[Request]:
        """Those whose first tokens are in this step, or the first after they lost their blocks."""
        return [self._running[part.slot].request for part in step.slices if part.params is not None]

    def check_integrity(self) -> None:
        """Assert the invariants. Cheap enough to run whenever the replica falls idle."""
        assert sorted([*self._free, *self._running]) == list(range(self.slots)), "slots leaked or shared"
        assert len(self._in_flight) <= self._num_stages + 1, "too many micro-batches in flight"
        travelling = [(sequence, part) for batch in self._in_flight.values() for sequence, part in batch]
        drawing = [id(sequence) for sequence, part in travelling if part.samples or part.embeds]
        assert len(drawing) == len(set(drawing)), "a sequence draws in two steps at once"
        for slot, sequence in self._running.items():
            assert sequence.slot == slot, "sequence in another's slot"
            num_in_flight = sum(1 for each, _ in travelling if each is sequence)
            assert sequence.num_in_flight == num_in_flight, "steps in flight miscounted"
            assert sequence.computed <= sequence.num_tokens <= self.context, "computed tokens that do not exist"
            assert num_in_flight or not sequence.is_cancelled, "a cancelled sequence stayed"
            assert sequence.is_started or not num_in_flight, "a sequence travels that holds no blocks"
            assert sequence.is_decoding or not sequence.drafted, "guesses for a sequence that draws nothing"
            assert len(sequence.drafted) <= self._max_drafts, "more guesses than are ever verified"
            if sequence.table is not None:
                assert sequence.computed <= len(sequence.table) * BLOCK_TOKENS, "computed beyond its blocks"
        tables = [each.table for each in self._running.values() if each.table is not None]
        self._pool.check_integrity(tables)
        for sequence in self._computing.values():
            assert self._running.get(sequence.slot) is sequence, "waiting for a sequence that is gone"
        assert all(request.state == "queued" for request in self._waiting), "queued in another state"

    # --- who runs -------------------------------------------------------------------------------------

    def _admit(self) -> None:
        while (request := self._waiting.peek()) is not None:
            if not self._free:
                victim = self._least_important(priority=request.priority + 1)
                if victim is None:
                    return
                self._preempt(victim)
            self._waiting.remove(request)
            request.state = "running"
            slot = heapq.heappop(self._free)
            sequence = RunningSequence(request, slot, max_drafts=self._max_drafts)
            sequence.last_step = self._next_step_id - 1
            self._running[slot] = sequence

    def _least_important(
        self, *, priority: int, turn: int = 0, besides: Sequence[RunningSequence] = ()
    ) -> RunningSequence | None:
        """Of those at or behind this place who can lose theirs now: nothing of them is in flight."""
        candidates = [
            sequence
            for sequence in self._running.values()
            if not sequence.num_in_flight and sequence.importance >= (priority, turn) and sequence not in besides
        ]
        return max(candidates, key=lambda sequence: sequence.importance, default=None)

    def _preempt(self, sequence: RunningSequence) -> None:
        """It comes back first of its class, and computes again what nobody kept of its blocks."""
        if sequence.is_started:
            self._count(sequence.request, preemptions=1)
        self._release(sequence)
        sequence.request.state = "queued"
        self._waiting.push_front(sequence.request)

    def _release(self, sequence: RunningSequence) -> None:
        self._stop_computing(sequence)
        if sequence.table is not None:
            self._publish(sequence)
            self._pool.close(sequence.table)
        del self._running[sequence.slot]
        heapq.heappush(self._free, sequence.slot)

    # --- what the next step holds ---------------------------------------------------------------------

    def _take_decodes(self) -> Batch:
        """The share of the decoding sequences that makes a micro-batch, longest waiting first."""
        decoding = [sequence for sequence in self._running.values() if sequence.is_decoding]
        num_micro_batches = count_micro_batches(len(decoding), self._num_stages)
        if not decoding or sum(map(_is_decode, self._in_flight.values())) >= num_micro_batches:
            return []
        ready = [sequence for sequence in decoding if sequence.is_ready]
        ready.sort(key=lambda sequence: sequence.last_step)
        share = -(-len(decoding) // num_micro_batches)
        num_rows = min(share, len(ready))
        batch: Batch = []
        for sequence in ready:
            if len(batch) == share:
                break
            part = self._decode(sequence, num_rows, besides=[each for each, _ in batch])
            if part is not None:
                batch.append((sequence, part))
                num_rows += part.drafts
        return batch

    def _decode(
        self, sequence: RunningSequence, num_rows: int, besides: list[RunningSequence]
    ) -> SequenceSlice | None:
        """Its last token and the guesses that pay; None when it has to wait for a block."""
        table = sequence.table
        assert table is not None, "only what has started decodes"
        if self._running.get(sequence.slot) is not sequence:
            return None  # it has just lost its blocks to another
        known = sequence.num_tokens
        guesses = self._guess(sequence, num_rows)
        wanted = self._want(sequence, num_rows + len(guesses), num_drafts=len(guesses))
        missing = num_blocks_of(min(known + len(guesses) + wanted, self.context)) - len(table)
        if missing > self._pool.num_available:  # nobody gives way to a guess
            missing = num_blocks_of(known) - len(table)
            room = (len(table) + missing) * BLOCK_TOKENS - known
            guesses = guesses[:room]
            wanted = min(wanted, room - len(guesses))
        new_blocks: list[int] = []
        if missing > 0:
            priority, turn = sequence.importance
            while self._pool.num_available < missing:
                victim = self._least_important(priority=priority, turn=turn + 1, besides=besides)
                if victim is None:
                    return None
                self._preempt(victim)
            new_blocks = self._pool.grow(table, missing)
        return SequenceSlice(
            slot=sequence.slot,
            start=known - 1,
            tokens=[*sequence.tokens(known - 1, known), *guesses],
            samples=True,
            new_blocks=new_blocks,
            drafts=len(guesses),
            masks=sequence.request.next_mask(),
            guesses_wanted=wanted,
        )

    def _guess(self, sequence: RunningSequence, num_rows: int) -> list[int]:
        """Tokens to verify now: those of a draft model cost no more than their rows any more."""
        if not self._may_guess(sequence):
            return []
        limit = min(sequence.draft_length.choose(num_rows), self._draft_room(sequence, num_rows))
        if limit <= 0:
            return []
        return sequence.look_up(limit) if self._draft_cost is None else sequence.drafted[:limit]

    def _want(self, sequence: RunningSequence, num_rows: int, *, num_drafts: int) -> int:
        """Guesses to have of the draft model for the step after this one, which draws a token at least."""
        if self._draft_cost is None or not self._may_guess(sequence):
            return 0
        length = sequence.draft_length
        if length.is_due and num_drafts:
            return 0  # what is tried again is on its way
        num_others = num_rows - num_drafts
        room = self._draft_room(sequence, num_others, num_drawn=1)
        return max(0, min(length.choose(num_others, draft_cost=self._draft_cost), room))

    def _may_guess(self, sequence: RunningSequence) -> bool:
        request = sequence.request
        return self._max_drafts > 0 and request.grammar is None and not request.is_probe

    def _draft_room(self, sequence: RunningSequence, num_rows: int, *, num_drawn: int = 0) -> int:
        """Most guesses that a step of `num_rows` may verify, with so many tokens drawn until then: what is drawn
        behind them must be of use."""
        request = sequence.request
        return min(
            request.max_tokens - len(request.generated) - num_drawn - 1,
            self.context - sequence.num_tokens - num_drawn - 1,
            min(self._step_tokens, self.slots + self._max_drafts) - num_rows,
        )

    def _add_prompts(self, batch: Batch) -> None:
        """Chunks of prompts: what is soonest done first, unless another has waited long."""
        budget = self._step_tokens - sum(len(part.tokens) for _, part in batch)
        waiting = [each for each in self._running.values() if each.num_pending and not each.is_ready]
        waiting.sort(key=self._prompt_order)
        is_short_of_blocks = False
        for sequence in waiting:
            if budget <= 0:
                break
            if self._running.get(sequence.slot) is not sequence or sequence.is_cancelled:
                continue
            if not sequence.is_started:
                if is_short_of_blocks or self._is_better_off_waiting(sequence):
                    continue
                if not self._start(sequence, besides=[each for each, _ in batch]):
                    is_short_of_blocks = True
                    continue
            part = self._cut_chunk(sequence, budget)
            budget -= len(part.tokens)
            batch.append((sequence, part))

    def _prompt_order(self, sequence: RunningSequence) -> tuple[int, bool, int, int]:
        is_patient = self._next_step_id - sequence.last_step <= PATIENCE_STEPS
        return sequence.request.priority, is_patient, sequence.num_pending, sequence.request.turn

    def _shareable_keys(self, sequence: RunningSequence) -> list[bytes]:
        is_shareable = self._shares_prefixes and not sequence.request.is_probe
        return sequence.shareable_keys() if is_shareable else []

    def _is_better_off_waiting(self, sequence: RunningSequence) -> bool:
        """Another one, not less important, is about to compute what it would compute next."""
        keys = self._shareable_keys(sequence)
        num_shared = len(self._pool.match(keys))
        leader = self._computing.get(keys[num_shared]) if num_shared < len(keys) else None
        return leader is not None and leader.request.priority <= sequence.request.priority

    def _start(self, sequence: RunningSequence, *, besides: list[RunningSequence]) -> bool:
        """Give it blocks for all that it knows. False when there are too few, with one to spare for each."""
        keys = self._shareable_keys(sequence)
        shared = self._pool.match(keys)
        missing = num_blocks_of(sequence.num_tokens) - len(shared)
        while True:
            spare = sum(1 for each in self._running.values() if each.is_started)
            if self._pool.can_open(shared, missing, spare=spare):
                break
            victim = self._least_important(priority=sequence.request.priority + 1, besides=besides)
            if victim is None:
                return False
            self._preempt(victim)
        request = sequence.request
        longest = min(self.context, len(request.prompt) + (0 if request.embeds else request.max_tokens))
        room = max(0, num_blocks_of(longest) - num_blocks_of(sequence.num_tokens))
        sequence.table = self._pool.open(shared, missing, room=room)
        sequence.shared = sequence.computed = len(shared) * BLOCK_TOKENS
        sequence.num_published = len(shared)
        sequence.chunk = cut_prompt(sequence.num_pending, self._num_stages, self._prefill_chunk)
        for key in keys[len(shared) :]:
            self._computing.setdefault(key, sequence)
        self._count(request, prefix_hit_tokens=sequence.shared)
        return True

    def _cut_chunk(self, sequence: RunningSequence, budget: int) -> SequenceSlice:
        assert sequence.table is not None, "only what has started has blocks"
        request, begin = sequence.request, sequence.computed
        end = min(sequence.num_tokens, begin + min(budget, sequence.chunk))
        is_first, is_last = not sequence.is_begun, end == sequence.num_tokens
        sequence.is_begun = True
        samples = is_last and not request.embeds
        self._waiting.charge(request.client, PROMPT_TOKEN_CHARGE * (end - begin))
        return SequenceSlice(
            slot=sequence.slot,
            start=begin,
            tokens=sequence.tokens(begin, end),
            samples=samples,
            params=request.params if is_first else None,
            new_blocks=list(sequence.table.blocks) if is_first else [],
            history=sequence.tokens(0, begin) if is_first else [],
            masks=request.next_mask() if samples else b"",
            embeds=is_last and request.embeds,
        )

    # --- what came back -------------------------------------------------------------------------------

    def _judge_drafts(self, sequence: RunningSequence, part: SequenceSlice, num_drawn: int) -> None:
        if self._max_drafts:
            sequence.draft_length.note(part.drafts, num_drawn - 1)
            self._count(sequence.request, drafts_proposed=part.drafts, drafts_accepted=num_drawn - 1)

    def _advance(self, sequence: RunningSequence, tokens: Sequence[SampledToken]) -> list[Advance]:
        """Up to the token that ends the request; right guesses behind it are nobody's."""
        request = sequence.request
        advances = []
        for sampled in tokens:
            request.generated.append(sampled.token)
            sequence.num_tokens += 1
            finish: FinishReason | None = None
            if sampled.token in request.eos_token_ids:
                finish = "stop"
            elif len(request.generated) >= request.max_tokens or sequence.num_tokens >= self.context:
                finish = "length"
            advances.append(Advance(request=request, sampled=sampled, finish=finish))
            self._waiting.charge(request.client, DRAWN_TOKEN_CHARGE)
            if finish is not None:
                self._release(sequence)
                return advances
        sequence.computed = sequence.num_tokens - 1
        return advances

    # --- blocks that others may want ------------------------------------------------------------------

    def _publish(self, sequence: RunningSequence) -> None:
        if self._shares_prefixes and not sequence.request.is_probe:
            for block, key in sequence.complete_keys():
                self._pool.publish(block, key)
                if self._computing.get(key) is sequence:
                    del self._computing[key]

    def _stop_computing(self, sequence: RunningSequence) -> None:
        for key in sequence.keys[sequence.num_published :]:
            if self._computing.get(key) is sequence:
                del self._computing[key]

    def _count(self, request: Request, **amounts: int) -> None:
        if not request.is_probe:
            counts = self.counts
            changes = {name: getattr(counts, name) + amount for name, amount in amounts.items()}
            self.counts = msgspec.structs.replace(counts, **changes)


def _is_decode(batch: Batch) -> bool:
    return any(part.samples and part.params is None and len(part.tokens) == part.drafts + 1 for _, part in batch)
