"""A small model that guesses the tokens behind a draw, on the rank that draws.

A guess is a hint: the target verifies every one, so nothing here decides a token, and what goes wrong here costs
guesses and no step. The drafter has a KV cache of its own, of as many blocks as the target's and under the same
tables, so prefixes that sequences share are shared here too. It computes prompts behind the step that brought them,
and of a sequence that decodes what it has not computed yet, but only when guesses are wanted.

Shapes: T tokens of a pass, R of its rows that guess, D hidden size, V the draft model's vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from agent.engine.batch import lay_out
from agent.engine.decoder import Decoder
from agent.engine.graphs import Record, StepGraphs
from agent.engine.kv_cache import KvCache, begins
from agent.engine.sampling import Sampler, SlotHistory, draw_guesses
from agent.engine.shard_cache import ShardCache
from agent.engine.weights import load_weights
from agent.facts.model import DTYPE_BYTES
from agent.planner.plan import BLOCK_TOKENS
from agent.planner.shards import shard_weight_bytes, whole_extent
from agent.wire.rank import RankConfig, SampledToken, SequenceSlice, Step

log = logging.getLogger(__name__)


@dataclass
class _Slot:
    """What the draft model's cache holds of a sequence."""

    held: list[int] = field(default_factory=list)
    """Tokens whose keys are there, by position; the last ones may be guesses of its own."""
    blocks: list[int] = field(default_factory=list)
    num_filled: int = 0
    """Of `blocks`, those that are known to hold the sequence's tokens and no guess."""


@dataclass
class _Chain:
    """Guesses of one sequence under way: `history` ends with the last of them."""

    slot: int
    history: SlotHistory
    wanted: int
    guesses: list[int] = field(default_factory=list)


class Drafter:
    """Belongs to the engine thread. `sampler` keeps the tokens of each slot, and is only read here."""

    def __init__(
        self,
        decoder: Decoder,
        cache: KvCache,
        sampler: Sampler,
        *,
        draft_vocab_size: int,
        vocab_size: int,
        row_limit: int,
        kind: torch.dtype,
        device: torch.device,
        graphs: StepGraphs | None = None,
        weight_bytes: int = 0,
    ) -> None:
        self.weight_bytes = weight_bytes
        self._decoder = decoder
        self._cache = cache
        self._sampler = sampler
        self._draft_vocab_size = draft_vocab_size
        self._vocab_size = vocab_size
        self._row_limit = row_limit
        self._kind = kind
        self._device = device
        self._graphs = graphs
        self._is_off = False
        self._has_warned = False
        self.forget()

    @property
    def kv_cache_bytes(self) -> int:
        return self._cache.num_bytes

    def forget(self) -> None:
        """No sequence and no block is known any more."""
        self._cache.forget()
        self._slots = [_Slot() for _ in self._cache.tables]
        self._filled: set[int] = set()

    def admit(self, slices: Iterable[SequenceSlice]) -> None:
        """Take in whose blocks are whose, and where sequences went on otherwise than was guessed."""
        for piece in slices:
            slot, table = self._slots[piece.slot], self._cache.tables[piece.slot]
            blocks = list(piece.new_blocks)
            if begins(piece):
                table.clear()
                shared = blocks[: len(piece.history) // BLOCK_TOKENS]
                num_filled = next((i for i, block in enumerate(shared) if block not in self._filled), len(shared))
                slot = _Slot(held=piece.history[: num_filled * BLOCK_TOKENS], blocks=shared, num_filled=num_filled)
                self._slots[piece.slot] = slot
                table.extend(shared)
                blocks = blocks[len(shared) :]
            self._filled.difference_update(blocks)
            slot.blocks.extend(blocks)
            table.extend(blocks)
            self._agree(slot, piece.start, piece.tokens)

    def guess(self, slices: Sequence[SequenceSlice], drawn: Sequence[SampledToken]) -> list[list[int]]:
        """Guesses behind what was drawn, for each slice that wants some; what it gets may be fewer, or none."""
        wanting = [piece for piece in slices if piece.guesses_wanted]
        if not wanting:
            return []
        newest = {sampled.slot: sampled.token for sampled in drawn}
        chains = [self._begin_chain(piece, newest[piece.slot]) for piece in wanting]
        if not self._is_off:
            try:
                self._go_on(chains)
            except (RuntimeError, MemoryError) as error:
                self._give_up(error)
        return [chain.guesses for chain in chains] if any(chain.guesses for chain in chains) else []

    def follow(self, slices: Iterable[SequenceSlice]) -> None:
        """Compute what a step brought of prompts: nobody waits for it, the step is answered."""
        if self._is_off:
            return
        parts, left = [], self._row_limit
        for piece in slices:
            known = self._sampler.history(piece.slot).tokens
            begin = len(self._slots[piece.slot].held)
            end = min(len(known), begin + left)
            if _is_prompt(piece) and begin < end:
                parts.append(SequenceSlice(piece.slot, begin, known[begin:end], samples=False))
                left -= end - begin
        try:
            if parts:
                self._run(parts)
        except (RuntimeError, MemoryError) as error:
            self._give_up(error)
        for part in parts:
            self._note_filled(part.slot, part.start + len(part.tokens))

    def _begin_chain(self, piece: SequenceSlice, token: int) -> _Chain:
        """What is known up to the token just drawn, and as many guesses as there are places for."""
        own = self._sampler.history(piece.slot)
        position = len(own.tokens)
        self._agree(self._slots[piece.slot], position, [token])
        room = min(self._cache.tables[piece.slot].num_positions, self._cache.context) - position
        params = msgspec.structs.replace(own.params, logprobs=-1)
        history = SlotHistory(tokens=[*own.tokens, token], params=params)
        return _Chain(slot=piece.slot, history=history, wanted=min(piece.guesses_wanted, room))

    def _go_on(self, chains: list[_Chain]) -> None:
        """Pass by pass: first all that is not computed yet, then the guess before, for all sequences together."""
        live = [chain for chain in chains if chain.wanted > 0]
        parts, left = [], self._row_limit
        for index, chain in enumerate(live):
            known, held = chain.history.tokens, self._slots[chain.slot].held
            begin = min(len(held), len(known) - 1)  # the last token is computed again: what follows it was not kept
            end = min(len(known), begin + left - (len(live) - 1 - index))
            left -= end - begin
            parts.append(SequenceSlice(chain.slot, begin, known[begin:end], samples=end == len(known)))
        if not parts:
            return
        logits_RV = self._run(parts)
        for part in parts:
            self._note_filled(part.slot, part.start + len(part.tokens))
        ready = [chain for chain, part in zip(live, parts, strict=True) if part.samples]
        while logits_RV is not None:
            tokens = draw_guesses([chain.history for chain in ready], logits_RV, vocab_size=self._vocab_size)
            going = []
            for chain, token in zip(ready, tokens, strict=True):
                if token is None:
                    self._warn("its logits are not finite")
                    continue
                chain.guesses.append(token)
                chain.history.tokens.append(token)
                if len(chain.guesses) < chain.wanted:
                    going.append(chain)
            ready = going
            logits_RV = self._run([_last_token_of(chain) for chain in ready]) if ready else None

    def _run(self, parts: list[SequenceSlice]) -> Tensor | None:
        """One pass. Logits of the last row of each part that samples, R x V; None when none does."""
        batch = lay_out(Step(step_id=0, slices=parts), self._cache.tables, kind=self._kind, device=self._device)
        tokens_T = batch.tokens.clamp(max=self._draft_vocab_size - 1)
        hidden_TD = self._decoder.embed(tokens_T, _unreduced)
        result_TD = None
        if self._graphs is not None and self._graphs.takes(batch):
            result_TD = self._graphs.run_layers(hidden_TD, batch)
        if result_TD is None:
            result_TD = self._decoder.run_layers(hidden_TD, batch, self._cache, _unreduced)
        for part in parts:
            held = self._slots[part.slot].held
            held[part.start :] = part.tokens
        rows = batch.sampling_rows
        return self._decoder.logits(result_TD[list(rows)]) if rows else None

    def _agree(self, slot: _Slot, start: int, tokens: Sequence[int]) -> None:
        """The sequence has these tokens from `start` on: what was computed of others is void."""
        held = slot.held
        for position, token in enumerate(tokens, start):
            if position >= len(held):
                return
            if held[position] != token:
                del held[position:]
                num_filled = position // BLOCK_TOKENS
                self._filled.difference_update(slot.blocks[num_filled : slot.num_filled])
                slot.num_filled = min(slot.num_filled, num_filled)
                return

    def _note_filled(self, index: int, num_known: int) -> None:
        """The first `num_known` tokens are the sequence's: whoever shares their full blocks finds them computed."""
        slot = self._slots[index]
        num_filled = min(num_known, len(slot.held)) // BLOCK_TOKENS
        if num_filled > slot.num_filled:
            self._filled.update(slot.blocks[slot.num_filled : num_filled])
            slot.num_filled = num_filled

    def _give_up(self, error: RuntimeError | MemoryError) -> None:
        self._is_off = True
        self._warn(str(error) or type(error).__name__)

    def _warn(self, why: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            log.warning("draft model gives no guesses", extra={"why": why})


def load_drafter(
    config: RankConfig,
    sampler: Sampler,
    *,
    num_blocks: int,
    kind: torch.dtype,
    device: torch.device,
    record: Record | None,
    on_read: Callable[[int], None],
    on_layer: Callable[[], None],
) -> Drafter:
    """The rank's draft model, whole. Raises FleetError E704, and RuntimeError or MemoryError for want of memory."""
    draft = config.draft
    assert draft is not None, "the caller knows that there is one"
    spec, extent = draft.model, whole_extent(draft.model)
    weights = load_weights(
        spec,
        extent,
        shard_file=draft.shard_file,
        model_dir=draft.model_dir,
        kind=kind,
        device=device,
        on_read=on_read,
        quantisation=config.quantisation,
        cache=ShardCache(Path(config.cache_dir)) if config.cache_dir else None,
    )
    decoder = Decoder(spec, extent, weights, context=config.context, kind=kind, device=device, on_layer=on_layer)
    cache = KvCache(
        num_layers=spec.num_layers,
        batch=config.batch,
        context=config.context,
        num_blocks=num_blocks,
        num_kv_heads=spec.num_kv_heads,
        head_size=spec.head_size,
        kind=kind,
        device=device,
    )
    graphs = None
    if record is not None and not spec.num_experts:
        graphs = StepGraphs(decoder, cache, hidden_size=spec.hidden_size, kind=kind, device=device, record=record)
    return Drafter(
        decoder,
        cache,
        sampler,
        draft_vocab_size=spec.vocab_size,
        vocab_size=config.model.vocab_size,
        row_limit=max(config.prefill_chunk, config.batch),
        kind=kind,
        device=device,
        graphs=graphs,
        weight_bytes=weights.num_bytes,
    )


def draft_weight_bytes(config: RankConfig) -> int:
    """Bytes of the draft model's weights on this rank; 0 without one."""
    if config.draft is None:
        return 0
    spec = config.draft.model
    return shard_weight_bytes(spec, whole_extent(spec), config.dtype, config.quantisation)


def draft_cache_bytes(config: RankConfig, num_blocks: int) -> int:
    """Bytes of its KV cache; 0 without one."""
    if config.draft is None:
        return 0
    spec, positions = config.draft.model, num_blocks * BLOCK_TOKENS
    return 2 * spec.num_layers * positions * spec.num_kv_heads * spec.head_size * DTYPE_BYTES[config.dtype]


def _is_prompt(piece: SequenceSlice) -> bool:
    """Whether a slice is a chunk of a prompt that something is drawn behind, sooner or later."""
    return not piece.embeds and (not piece.samples or begins(piece) or len(piece.tokens) - piece.drafts > 1)


def _last_token_of(chain: _Chain) -> SequenceSlice:
    tokens = chain.history.tokens
    return SequenceSlice(chain.slot, len(tokens) - 1, tokens[-1:], samples=True)


def _unreduced(partial: Tensor) -> Tensor:
    return partial
