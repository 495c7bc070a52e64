"""A step as tensors: tokens of all slices behind each other, where their keys go, and which keys each one reads.

Shapes: T tokens of the step, N tokens of a slice, G queries per KV head, L keys that a slice may look at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from agent.engine.block_table import BlockTable
from agent.planner.memory import GATHERED_POSITIONS, MAX_PARTS
from agent.planner.plan import BLOCK_TOKENS, Range
from agent.wire.rank import Step

LONG_STRETCH = 1024
"""Positions in one stretch beyond which a row's keys are read in place sooner than copied."""
SHARED_RUN, MIN_SHARERS = 512, 4
"""Positions of a run, and rows that share it, from which on it is read once for all of them."""


@dataclass(frozen=True, kw_only=True)
class SliceSpan:
    """One slice: rows [row, row_end) of the step, its positions [start, end) in its slot."""

    slot: int
    row: int
    row_end: int
    start: int
    table: BlockTable

    @property
    def num_rows(self) -> int:
        return self.row_end - self.row

    @property
    def end(self) -> int:
        return self.start + self.row_end - self.row

    def key_begin(self, window: int | None) -> int:
        """First position that any of its queries sees."""
        return max(0, self.start - window + 1) if window else 0

    def stretches(self, window: int | None) -> list[Range]:
        """Places of the keys that its queries see."""
        return self.table.stretches(self.key_begin(window), self.end)


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A slice and all the keys that its queries see: one stretch, or several that must be gathered."""

    span: SliceSpan
    stretches: list[Range]

    def length(self, window: int | None) -> int:
        """Positions that its queries see."""
        return self.span.end - self.span.key_begin(window)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A stretch of keys that is only some of what its rows see. `level` tells the parts of a row apart."""

    places: Range
    rows: Tensor
    level: int


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """Decoding rows whose keys are copied behind each other by block, and read in one operation for all of them."""

    rows: Tensor | None
    """N; None: every row of the step."""
    blocks: Tensor
    """Of each row, N x M behind each other; those of shorter ones are filled up with the first."""
    num_blocks: int
    """M."""
    mask: Tensor
    """Added to the scores, N x 1 x 1 x L: minus infinity where a row sees nothing."""


@dataclass(frozen=True, kw_only=True)
class Reads:
    """Which keys each row reads: gathered with other rows', or all in one piece, or part by part."""

    whole: tuple[Whole, ...]
    gathered: tuple[Gathered, ...] = ()
    parts: tuple[Part, ...] = ()
    split_rows: Tensor | None = None
    """Rows of the step that are read in parts; `Part.rows` counts among them. None: no row is, or every row."""
    num_levels: int = 0


@dataclass(frozen=True, kw_only=True)
class Batch:
    tokens: Tensor
    """T."""
    positions: Tensor
    """T."""
    spans: tuple[SliceSpan, ...]
    sampling_rows: tuple[int, ...]
    """Rows to draw after, in the step's order: the last one of each slice that samples, and one more per draft."""
    kind: torch.dtype
    single_rows: Tensor | None
    """Rows of slices of one token; None when every row is one."""
    single_places: Tensor | None
    """Where their keys go; None when there are none."""
    stretches: tuple[tuple[int, int, int], ...]
    """(row, place, length) of the others."""
    tables: Tensor | None = None
    """T x blocks: where each row's keys are, for attention by index (`graphs`); None: the spans say so."""
    _masks: dict[tuple[int, int | None, int], Tensor] = field(default_factory=dict)
    _reads: dict[tuple[int | None, int | None], Reads] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        return int(self.tokens.shape[0])

    def mask(self, span: SliceSpan, window: int | None, group: int) -> Tensor | None:
        """Added to the scores, (N x G) x L, token-major; None where every query sees every key.

        Made when first asked for: layers of one model may differ in their window.
        """
        if span.num_rows == 1:
            return None  # its keys are cut to what it may see already
        key = (span.row, window, group)
        if key not in self._masks:
            self._masks[key] = self._make_mask(span, window).repeat_interleave(group, dim=0)
        return self._masks[key]

    def visible(self, window: int | None) -> Tensor:
        """Added to the scores of attention by index: T x L, L the positions of a row's blocks."""
        assert self.tables is not None
        key = (0, window, 0)
        if key not in self._masks:
            keys_1L = torch.arange(self.tables.shape[1] * BLOCK_TOKENS, device=self.positions.device)[None]
            positions_T1 = self.positions[:, None]
            is_hidden_TL = keys_1L > positions_T1
            if window is not None:
                is_hidden_TL |= keys_1L <= positions_T1 - window
            mask_TL = torch.zeros(is_hidden_TL.shape, dtype=self.kind, device=self.positions.device)
            self._masks[key] = mask_TL.masked_fill_(is_hidden_TL, float("-inf"))
        return self._masks[key]

    def reads(self, window: int | None, *, split_from: int | None) -> Reads:
        """What attention with this window reads, planned once for all layers that have it.

        `split_from`: positions from which on a row's runs are read one by one; None: never.
        """
        key = (window, split_from)
        if key not in self._reads:
            whole = [Whole(span=span, stretches=span.stretches(window)) for span in self.spans]
            if split_from is None:
                self._reads[key] = Reads(whole=tuple(whole))
            else:
                self._reads[key] = self._split_reads(whole, window, split_from)
        return self._reads[key]

    def _split_reads(self, reads: list[Whole], window: int | None, split_from: int) -> Reads:
        """Rows that decode together are gathered. Of the others, long ones in a few runs are read run by run, and
        those that share a long run read it together."""
        sharers = _sharers(reads)
        groups = _gather_groups(reads, sharers, window)
        taken = {read.span.row for group in groups for read in group}
        gathered = tuple(self._gathered(group, window) for group in groups)
        whole: list[Whole] = []
        split: list[int] = []
        shared: dict[tuple[int, Range], list[int]] = {}
        for read in reads:
            if read.span.row in taken:
                continue
            is_short = read.length(window) < split_from and not _shares_long_run(read, sharers)
            if read.span.num_rows > 1 or is_short or not 1 < len(read.stretches) <= MAX_PARTS:
                whole.append(read)
                continue
            for level, places in enumerate(read.stretches):
                shared.setdefault((level, places), []).append(len(split))
            split.append(read.span.row)
        if not split:
            return Reads(whole=tuple(whole), gathered=gathered)
        return Reads(
            whole=tuple(whole),
            gathered=gathered,
            parts=tuple(
                Part(places=places, rows=self._index(rows), level=level) for (level, places), rows in shared.items()
            ),
            split_rows=self._index(split) if whole or gathered else None,
            num_levels=1 + max(level for level, _ in shared),
        )

    def _gathered(self, group: list[Whole], window: int | None) -> Gathered:
        spans = [read.span for read in group]
        firsts = [span.key_begin(window) // BLOCK_TOKENS for span in spans]
        counts = [-(-span.end // BLOCK_TOKENS) - first for span, first in zip(spans, firsts, strict=True)]
        most = max(counts)
        blocks: list[int] = []
        mask_N11L = torch.zeros((len(spans), 1, 1, most * BLOCK_TOKENS), dtype=self.kind)
        for index, (span, first, count) in enumerate(zip(spans, firsts, counts, strict=True)):
            own = span.table.blocks(count, first)
            blocks += own + own[:1] * (most - count)
            mask_N11L[index, ..., span.end - first * BLOCK_TOKENS :] = float("-inf")
            mask_N11L[index, ..., : span.key_begin(window) - first * BLOCK_TOKENS] = float("-inf")
        is_all = len(spans) == len(self.spans) and [span.row for span in spans] == list(range(self.num_tokens))
        return Gathered(
            rows=None if is_all else self._index([span.row for span in spans]),
            blocks=self._index(blocks),
            num_blocks=most,
            mask=mask_N11L,
        )

    def _index(self, rows: list[int]) -> Tensor:
        return torch.tensor(rows, dtype=torch.int64, device=self.tokens.device)

    def _make_mask(self, span: SliceSpan, window: int | None) -> Tensor:
        device = self.positions.device
        queries_N1 = torch.arange(span.start, span.end, device=device)[:, None]
        keys_1L = torch.arange(span.key_begin(window), span.end, device=device)[None]
        is_hidden = keys_1L > queries_N1
        if window is not None:
            is_hidden |= keys_1L <= queries_N1 - window
        return torch.zeros(is_hidden.shape, dtype=self.kind, device=device).masked_fill_(is_hidden, float("-inf"))


def _sharers(reads: list[Whole]) -> dict[Range, int]:
    """How many decoding rows read each run."""
    found: dict[Range, int] = {}
    for read in reads:
        for places in read.stretches if read.span.num_rows == 1 else ():
            found[places] = found.get(places, 0) + 1
    return found


def _shares_long_run(read: Whole, sharers: dict[Range, int]) -> bool:
    return any(
        end - begin >= SHARED_RUN and sharers.get((begin, end), 0) >= MIN_SHARERS for begin, end in read.stretches
    )


def _gather_groups(reads: list[Whole], sharers: dict[Range, int], window: int | None) -> list[list[Whole]]:
    """Decoding rows that are worth gathering together, rows of a group in the step's order.

    Reading each by itself takes ten operations a row and layer, which cost more than copying short contexts: with
    eight sequences of 128 positions a step of small layers took 19 ms row by row and 12 ms gathered. Long contexts
    in one stretch are read in place, and a long run that several rows share is read once for all of them. A group's
    padding is at most as much as its keys.
    """

    def is_worth_it(read: Whole) -> bool:
        length = read.length(window)
        if read.span.num_rows > 1 or length > GATHERED_POSITIONS // 2:
            return False
        if len(read.stretches) == 1 and length > LONG_STRETCH:
            return False
        return not _shares_long_run(read, sharers)

    def num_blocks(read: Whole) -> int:
        return -(-read.span.end // BLOCK_TOKENS) - read.span.key_begin(window) // BLOCK_TOKENS

    groups: list[list[Whole]] = []
    for read in sorted(filter(is_worth_it, reads), key=num_blocks, reverse=True):
        group = groups[-1] if groups else []
        longest = num_blocks(group[0]) if group else 0
        has_room = (len(group) + 1) * longest * BLOCK_TOKENS <= GATHERED_POSITIONS
        if group and has_room and 2 * num_blocks(read) >= longest:
            group.append(read)
        else:
            groups.append([read])
    return [sorted(group, key=lambda read: read.span.row) for group in groups if len(group) > 1]


def lay_out(step: Step, tables: Sequence[BlockTable], *, kind: torch.dtype, device: torch.device) -> Batch:
    """`tables` are those of the slots, which hold the blocks of this step's slices already."""
    tokens: list[int] = []
    positions: list[int] = []
    spans: list[SliceSpan] = []
    sampling_rows: list[int] = []
    single_rows: list[int] = []
    single_places: list[int] = []
    stretches: list[tuple[int, int, int]] = []
    for piece in step.slices:
        row, table = len(tokens), tables[piece.slot]
        tokens.extend(piece.tokens)
        end = piece.start + len(piece.tokens)
        positions.extend(range(piece.start, end))
        spans.append(SliceSpan(slot=piece.slot, row=row, row_end=len(tokens), start=piece.start, table=table))
        if piece.samples:
            sampling_rows.extend(range(len(tokens) - 1 - piece.drafts, len(tokens)))
        if len(piece.tokens) == 1:
            single_rows.append(row)
            single_places.append(table.place(piece.start))
            continue
        for begin, place_end in table.stretches(piece.start, end):
            stretches.append((row, begin, place_end - begin))
            row += place_end - begin

    def index(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    return Batch(
        tokens=index(tokens),
        positions=index(positions),
        spans=tuple(spans),
        sampling_rows=tuple(sampling_rows),
        kind=kind,
        single_rows=index(single_rows) if single_rows and stretches else None,
        single_places=index(single_places) if single_rows else None,
        stretches=tuple(stretches),
    )
