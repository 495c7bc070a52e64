"""What a rank refuses to execute: a step that does not fit what its cache holds. All of it is E806."""

from __future__ import annotations

from agent.engine.kv_cache import KvCache, begins
from agent.errors import FleetError
from agent.planner.plan import BLOCK_TOKENS
from agent.wire.rank import SequenceSlice, Step


def check_step(step: Step, cache: KvCache, *, vocab_size: int) -> None:
    """Raise E806 when a step cannot be executed on this cache, before anything of it is taken in.

    Going back to an earlier position of a slot is allowed; leaving a gap is not.
    """
    if not step.slices:
        raise _broken(step, "it has no slices")
    slots = [piece.slot for piece in step.slices]
    if len(set(slots)) != len(slots):
        raise _broken(step, f"a slot appears twice in {slots}")
    for piece in step.slices:
        problem = _slot_problem(piece, cache) or _draw_problem(piece, vocab_size)
        if problem:
            raise _broken(step, problem)


def _slot_problem(piece: SequenceSlice, cache: KvCache) -> str:
    slot = piece.slot
    if not 0 <= slot < len(cache.lengths):
        return f"slot {slot} of {len(cache.lengths)}"
    if not piece.tokens:
        return f"slot {slot} has no tokens"
    if begins(piece):
        held, num_blocks = len(piece.history), 0
        if piece.start != held:
            return f"slot {slot} begins at {piece.start} behind a history of {held} tokens"
    else:
        held, num_blocks = cache.lengths[slot], cache.tables[slot].num_blocks
        if piece.history:
            return f"slot {slot} goes on at {piece.start} and yet has a history"
    if not 0 <= piece.start <= held:
        return f"slot {slot} goes on at {piece.start}, its cache holds {held} positions"
    end = piece.start + len(piece.tokens)
    if end > cache.context:
        return f"slot {slot} would hold {end} of {cache.context} positions"
    blocks = piece.new_blocks
    if blocks and not (min(blocks) >= 0 and max(blocks) < cache.num_blocks):
        return f"slot {slot} names a block outside the cache's {cache.num_blocks}: {blocks}"
    positions = (num_blocks + len(blocks)) * BLOCK_TOKENS
    if end > positions:
        return f"slot {slot} would hold {end} positions in blocks for {positions}"
    return ""


def _draw_problem(piece: SequenceSlice, vocab_size: int) -> str:
    slot = piece.slot
    if min(piece.tokens) < 0 or max(piece.tokens) >= vocab_size:
        return f"slot {slot} has a token outside the vocabulary of {vocab_size}"
    if not 0 <= piece.drafts < len(piece.tokens):
        return f"slot {slot} has {piece.drafts} drafts among {len(piece.tokens)} tokens"
    if piece.drafts and not piece.samples:
        return f"slot {slot} has drafts and draws nothing"
    if piece.samples and piece.embeds:
        return f"slot {slot} is to draw a token and to be embedded"
    if piece.guesses_wanted < 0:
        return f"slot {slot} wants {piece.guesses_wanted} guesses"
    if piece.guesses_wanted and not piece.samples:
        return f"slot {slot} wants guesses and draws nothing"
    mask_bytes = (piece.drafts + 1) * mask_row_bytes(vocab_size)
    if piece.masks and len(piece.masks) != mask_bytes:
        return f"slot {slot} has {len(piece.masks)} bytes of masks, not {mask_bytes}"
    return ""


def mask_row_bytes(vocab_size: int) -> int:
    """One bit per token, in whole 32-bit words."""
    return -(-vocab_size // 32) * 4


def _broken(step: Step, why: str) -> FleetError:
    return FleetError("E806", f"step {step.step_id} cannot be executed: {why}", hint="a fault of the gateway")
