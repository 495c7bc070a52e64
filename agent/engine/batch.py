"""A step as tensors: tokens of all slices behind each other, and where each slice's rows and keys are.

Shapes: T tokens of the step, N tokens of a slice, G queries per KV head, L keys that a slice may look at.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from agent.errors import FleetError
from agent.wire.rank import Step


@dataclass(frozen=True, kw_only=True)
class SliceSpan:
    """One slice: rows [row, row_end) of the step, its positions [start, end) in its slot."""

    slot: int
    row: int
    row_end: int
    start: int

    @property
    def end(self) -> int:
        return self.start + self.row_end - self.row

    def key_begin(self, window: int | None) -> int:
        """First position that any of its queries sees."""
        return max(0, self.start - window + 1) if window else 0


@dataclass(frozen=True, kw_only=True)
class Batch:
    tokens: Tensor
    """T."""
    positions: Tensor
    """T."""
    spans: tuple[SliceSpan, ...]
    sampling_rows: tuple[int, ...]
    """Last row of each slice that samples, in the step's order."""
    kind: torch.dtype
    _masks: dict[tuple[int, int | None, int], Tensor] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        return int(self.tokens.shape[0])

    def mask(self, span: SliceSpan, window: int | None, group: int) -> Tensor | None:
        """Added to the scores, (G x N) x L, group-major; None where every query sees every key.

        Made when first asked for: layers of one model may differ in their window.
        """
        if span.row_end - span.row == 1:
            return None  # its keys are cut to what it may see already
        key = (span.row, window, group)
        if key not in self._masks:
            self._masks[key] = self._make_mask(span, window).repeat(group, 1)
        return self._masks[key]

    def _make_mask(self, span: SliceSpan, window: int | None) -> Tensor:
        device = self.positions.device
        queries_N1 = torch.arange(span.start, span.end, device=device)[:, None]
        keys_1L = torch.arange(span.key_begin(window), span.end, device=device)[None]
        is_hidden = keys_1L > queries_N1
        if window is not None:
            is_hidden |= keys_1L <= queries_N1 - window
        return torch.zeros(is_hidden.shape, dtype=self.kind, device=device).masked_fill_(is_hidden, float("-inf"))


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


def lay_out(step: Step, *, kind: torch.dtype, device: torch.device) -> Batch:
    tokens: list[int] = []
    positions: list[int] = []
    spans: list[SliceSpan] = []
    for piece in step.slices:
        row = len(tokens)
        tokens.extend(piece.tokens)
        positions.extend(range(piece.start, piece.start + len(piece.tokens)))
        spans.append(SliceSpan(slot=piece.slot, row=row, row_end=len(tokens), start=piece.start))
    return Batch(
        tokens=torch.tensor(tokens, dtype=torch.int64, device=device),
        positions=torch.tensor(positions, dtype=torch.int64, device=device),
        spans=tuple(spans),
        sampling_rows=tuple(
            span.row_end - 1 for span, piece in zip(spans, step.slices, strict=True) if piece.samples
        ),
        kind=kind,
    )


def _broken(step: Step, why: str) -> FleetError:
    return FleetError("E806", f"step {step.step_id} cannot be executed: {why}", hint="a fault of the gateway")
