"""Small steps as recorded graphs: on a GPU, starting a decode step's kernels one by one takes longer than they run.

A graph runs the same kernels over the same memory again, so everything that differs between steps lies in buffers
made once: hidden states, positions, the places of new keys, and block tables. Steps are filled up to the next size
that there is a graph for; each is recorded when it is first needed.

Shapes: R rows of a graph, M blocks that each of its rows can see, D hidden size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from agent.engine.batch import Batch
from agent.engine.decoder import Decoder
from agent.engine.kv_cache import KvCache
from agent.planner.memory import MAX_GRAPH_ROWS
from agent.planner.plan import BLOCK_TOKENS

log = logging.getLogger(__name__)

MIN_BLOCKS = 16
"""Blocks of the smallest graph: below 256 positions, reading fewer keys saves no time worth a graph."""
_WARM_UPS = 2
"""Runs before a recording: kernels are chosen, and their workspaces taken, outside of it."""

Work = Callable[[], None]
Record = Callable[[Work], Work]
"""Makes of work over fixed buffers something that does it again."""


def cuda_recorder(device: torch.device) -> Record:
    """Records CUDA graphs. They share one pool of memory: none leaves anything in it for another.

    What it returns raises RuntimeError when work cannot be recorded: it waits for the device, say.
    """
    pool = torch.cuda.graph_pool_handle()

    def record(work: Work) -> Work:
        with torch.cuda.device(device):
            stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    work()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                work()
        return graph.replay

    return record


class StepGraphs:
    """All graphs of one rank. Falls back for good, with a word in the log, when one cannot be recorded."""

    def __init__(
        self,
        decoder: Decoder,
        cache: KvCache,
        *,
        hidden_size: int,
        kind: torch.dtype,
        device: torch.device,
        record: Record,
    ) -> None:
        self._decoder = decoder
        self._cache = cache
        self._hidden_size = hidden_size
        self._kind = kind
        self._device = device
        self._record = record
        self._graphs: dict[tuple[int, int], _StepGraph] = {}
        self._is_off = False

    @property
    def sizes(self) -> set[tuple[int, int]]:
        """(rows, blocks) of the graphs so far."""
        return set(self._graphs)

    def takes(self, batch: Batch) -> bool:
        return not self._is_off and batch.num_tokens <= MAX_GRAPH_ROWS

    def run_layers(self, hidden_TD: Tensor, batch: Batch) -> Tensor | None:
        """As `Decoder.run_layers` does without a group; None when this must be left to it."""
        num_blocks = max(-(-span.end // BLOCK_TOKENS) for span in batch.spans)
        most_blocks = -(-self._cache.context // BLOCK_TOKENS)
        size = (_power_of_two(batch.num_tokens, 1), min(_power_of_two(num_blocks, MIN_BLOCKS), most_blocks))
        graph = self._graphs.get(size)
        if graph is None:
            graph = _StepGraph(*size, hidden_size=self._hidden_size, kind=self._kind, device=self._device)
        graph.fill(hidden_TD, batch)
        if size not in self._graphs:
            try:
                graph.record(self._decoder, self._cache, self._record)
            except RuntimeError as error:
                self._is_off = True
                log.warning("steps run without graphs", extra={"size": size, "reason": str(error)})
                return None
            self._graphs[size] = graph
            log.info("graph recorded", extra={"rows": size[0], "blocks": size[1]})
        return graph.run(batch.num_tokens)


class _StepGraph:
    """Buffers of one size, and the work over them."""

    def __init__(
        self, num_rows: int, num_blocks: int, *, hidden_size: int, kind: torch.dtype, device: torch.device
    ) -> None:
        self._num_rows = num_rows
        self._num_blocks = num_blocks
        self._kind = kind
        self._hidden_RD = torch.zeros((num_rows, hidden_size), dtype=kind, device=device)
        self._result_RD = torch.zeros_like(self._hidden_RD)
        numbers = torch.zeros(num_rows * (2 + num_blocks), dtype=torch.int64, device=device)
        self._numbers = numbers
        """Positions, places and block tables behind each other: one copy to the device fills them all."""
        self._positions_R, self._places_R = numbers[:num_rows], numbers[num_rows : 2 * num_rows]
        self._tables_RM = numbers[2 * num_rows :].view(num_rows, num_blocks)
        self._again: Work | None = None

    def fill(self, hidden_TD: Tensor, batch: Batch) -> None:
        """Rows that are left over repeat the first one: they write what it writes, where it does."""
        positions: list[int] = []
        places: list[int] = []
        tables: list[int] = []
        for span in batch.spans:
            blocks = span.table.blocks(-(-span.end // BLOCK_TOKENS))
            blocks.extend([blocks[0]] * (self._num_blocks - len(blocks)))
            positions.extend(range(span.start, span.end))
            for begin, end in span.table.stretches(span.start, span.end):
                places.extend(range(begin, end))
            tables.extend(blocks * span.num_rows)
        spare = self._num_rows - batch.num_tokens
        positions.extend(positions[:1] * spare)
        places.extend(places[:1] * spare)
        tables.extend(tables[: self._num_blocks] * spare)
        self._numbers.copy_(torch.tensor(positions + places + tables, dtype=torch.int64))
        self._hidden_RD[: batch.num_tokens] = hidden_TD
        self._hidden_RD[batch.num_tokens :] = hidden_TD[0]

    def record(self, decoder: Decoder, cache: KvCache, record: Record) -> None:
        def work() -> None:
            batch = Batch(
                tokens=self._positions_R,
                positions=self._positions_R,
                spans=(),
                sampling_rows=(),
                kind=self._kind,
                single_rows=None,
                single_places=self._places_R,
                stretches=(),
                tables=self._tables_RM,
            )
            self._result_RD.copy_(decoder.run_layers(self._hidden_RD, batch, cache, _unreduced))

        self._again = record(work)

    def run(self, num_tokens: int) -> Tensor:
        """A copy: the next step writes over the buffer while this one's may still be under way."""
        assert self._again is not None
        self._again()
        return self._result_RD[:num_tokens].clone()


def _power_of_two(count: int, least: int) -> int:
    """The next power of two, and `least` at least."""
    return max(least, 1 << (count - 1).bit_length())


def _unreduced(partial: Tensor) -> Tensor:
    return partial
