"""What a step's time hangs on. Frozen values, no arithmetic beyond their own."""

from __future__ import annotations

import msgspec


class StepShape(msgspec.Struct, frozen=True, kw_only=True):
    """One step of the engine: `rows` tokens of `sequences` sequences, each with `context` positions in the cache.

    `sampled` rows go through the head. A decode step has as many rows as sequences; a prefill step has one chunk,
    and may have further sequences' tokens beside it.
    """

    rows: int
    sequences: int
    context: int
    sampled: int
    row_context: int = 0
    """Positions that a row attends to, on average; 0: all of its sequence's."""

    @property
    def attended(self) -> int:
        return self.row_context or self.context

    @property
    def is_prefill(self) -> bool:
        return self.rows > self.sequences
