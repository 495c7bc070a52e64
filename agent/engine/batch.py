"""A step as tensors: tokens of all slices behind each other, and where each slice's rows and keys are.

Shapes: T tokens of the step, N tokens of a slice, G queries per KV head, L keys that a slice may look at.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agent.errors import FleetError
from agent.wire.rank import SequenceSlice, Step


@dataclass(frozen=True, kw_only=True)
class SliceSpan:
    """One slice: rows [row, row_end) of the step; its positions from `start`; its slot's keys [key_begin, end)."""

    slot: int
    row: int
    row_end: int
    start: int
    key_begin: int
    mask: Tensor | None
    """Added to the scores, (G x N) x L, group-major; None where every query sees every key."""

    @property
    def end(self) -> int:
        return self.start + self.row_end - self.row


@dataclass(frozen=True, kw_only=True)
class Batch:
    tokens: Tensor
    """T."""
    positions: Tensor
    """T."""
    spans: tuple[SliceSpan, ...]
    sampling_rows: tuple[int, ...]
    """Last row of each slice that samples, in the step's order."""

    @property
    def num_tokens(self) -> int:
        return int(self.tokens.shape[0])


def check_step(step: Step, *, lengths: list[int], context: int, vocab_size: int) -> None:
    """Raise E806 when a step cannot be executed on a cache with these valid lengths.

    Going back to an earlier position of a slot is allowed; leaving a gap is not.
    """
    if not step.slices:
        raise _broken(step, "it has no slices")
    slots = [piece.slot for piece in step.slices]
    if len(set(slots)) != len(slots):
        raise _broken(step, f"a slot appears twice in {slots}")
    for piece in step.slices:
        if not 0 <= piece.slot < len(lengths):
            raise _broken(step, f"slot {piece.slot} of {len(lengths)}")
        if not piece.tokens:
            raise _broken(step, f"slot {piece.slot} has no tokens")
        if not 0 <= piece.start <= lengths[piece.slot]:
            raise _broken(
                step, f"slot {piece.slot} goes on at {piece.start}, its cache holds {lengths[piece.slot]} positions"
            )
        if piece.start + len(piece.tokens) > context:
            raise _broken(
                step, f"slot {piece.slot} would hold {piece.start + len(piece.tokens)} of {context} positions"
            )
        if min(piece.tokens) < 0 or max(piece.tokens) >= vocab_size:
            raise _broken(step, f"slot {piece.slot} has a token outside the vocabulary of {vocab_size}")


def lay_out(
    step: Step, *, sliding_window: int | None, queries_per_kv_head: int, kind: torch.dtype, device: torch.device
) -> Batch:
    tokens: list[int] = []
    positions: list[int] = []
    spans: list[SliceSpan] = []
    for piece in step.slices:
        row = len(tokens)
        tokens.extend(piece.tokens)
        positions.extend(range(piece.start, piece.start + len(piece.tokens)))
        key_begin = max(0, piece.start - sliding_window + 1) if sliding_window else 0
        spans.append(
            SliceSpan(
                slot=piece.slot,
                row=row,
                row_end=len(tokens),
                start=piece.start,
                key_begin=key_begin,
                mask=_mask(
                    piece,
                    key_begin,
                    sliding_window=sliding_window,
                    queries_per_kv_head=queries_per_kv_head,
                    kind=kind,
                    device=device,
                ),
            )
        )
    return Batch(
        tokens=torch.tensor(tokens, dtype=torch.int64, device=device),
        positions=torch.tensor(positions, dtype=torch.int64, device=device),
        spans=tuple(spans),
        sampling_rows=tuple(
            span.row_end - 1 for span, piece in zip(spans, step.slices, strict=True) if piece.samples
        ),
    )


def _mask(
    piece: SequenceSlice,
    key_begin: int,
    *,
    sliding_window: int | None,
    queries_per_kv_head: int,
    kind: torch.dtype,
    device: torch.device,
) -> Tensor | None:
    num_tokens = len(piece.tokens)
    if num_tokens == 1:
        return None  # its keys are cut to what it may see already
    queries_N1 = torch.arange(piece.start, piece.start + num_tokens, device=device)[:, None]
    keys_1L = torch.arange(key_begin, piece.start + num_tokens, device=device)[None]
    is_hidden = keys_1L > queries_N1
    if sliding_window is not None:
        is_hidden |= keys_1L <= queries_N1 - sliding_window
    mask_NL = torch.zeros(is_hidden.shape, dtype=kind, device=device).masked_fill_(is_hidden, float("-inf"))
    return mask_NL.repeat(queries_per_kv_head, 1)


def _broken(step: Step, why: str) -> FleetError:
    return FleetError("E806", f"step {step.step_id} cannot be executed: {why}", hint="a fault of the gateway")
