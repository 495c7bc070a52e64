"""Fifteen minutes of one host or one deployment, as a frozen value that grows by sharing. No I/O.

Rows are kept in closed chunks and one open tail, so appending copies at most one chunk's pointers, and a snapshot
taken earlier never changes under its reader.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Generic, Protocol, TypeVar

import msgspec

from agent.facts.sample import HostSample, Ok, Reading
from agent.wire.gateway import BackendStatus
from odctl.fleet.flow import DeploymentFlow

HISTORY_S = 900.0
_CHUNK_ROWS = 60


class HostRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One moment of a host. Fractions 0 to 1, watts, bytes per second; None where nothing could be read."""

    at_s: float
    cpu: float
    memory: float
    gpu: float | None
    """Mean utilisation over the GPUs that report one."""
    gpu_memory: float | None
    power_w: float | None
    received_bytes_per_s: float
    sent_bytes_per_s: float
    hottest_c: float | None = None
    """Of all devices."""
    disk_bytes_per_s: float = 0.0
    """Read and written, over all disks."""


class DeploymentRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One moment of a deployment, as its gateway counts."""

    at_s: float
    tokens_per_s: float
    running: int
    queued: int
    ttft_s: float | None = None
    """Median of the gateway's latest requests, as is `time_per_token_s`; None before there is one."""
    time_per_token_s: float | None = None
    kv: float | None = None
    """Share of the KV cache's blocks in use; None where the gateway does not count them."""
    busy: float | None = None
    """Mean share of the last seconds that its ranks computed."""
    bubble: float | None = None
    """`flow.DeploymentFlow.bubble`."""


class TimedRow(Protocol):
    @property
    def at_s(self) -> float: ...


Row = TypeVar("Row", bound=TimedRow)


class History(Generic[Row]):
    """Rows in the order of their time; `append` returns the longer history and leaves this one as it was."""

    __slots__ = ("_chunks", "_tail", "last")

    def __init__(self, chunks: tuple[tuple[Row, ...], ...] = (), tail: tuple[Row, ...] = ()) -> None:
        self._chunks: tuple[tuple[Row, ...], ...] = chunks
        self._tail: tuple[Row, ...] = tail
        # An attribute, no property: a tick of a large fleet asks ten thousand histories for it.
        self.last: Row | None = tail[-1] if tail else chunks[-1][-1] if chunks else None

    def __len__(self) -> int:
        return sum(len(chunk) for chunk in self._chunks) + len(self._tail)

    def append(self, row: Row) -> History[Row]:
        """With the row at the end, and without chunks that lie wholly before the last fifteen minutes."""
        tail = (*self._tail, row)
        chunks: tuple[tuple[Row, ...], ...] = self._chunks
        if len(tail) >= _CHUNK_ROWS:
            chunks, tail = (*chunks, tail), ()
        oldest_s = row.at_s - HISTORY_S
        while chunks and chunks[0][-1].at_s < oldest_s:
            chunks = chunks[1:]
        return History(chunks, tail)

    def rows(self) -> tuple[Row, ...]:
        return tuple(row for chunk in (*self._chunks, self._tail) for row in chunk)

    @classmethod
    def of(cls, rows: Sequence[Row]) -> History[Row]:
        """As these rows appended one by one to an empty history, if none of them were too old by then."""
        closed = len(rows) - len(rows) % _CHUNK_ROWS
        chunks = tuple(tuple(rows[first : first + _CHUNK_ROWS]) for first in range(0, closed, _CHUNK_ROWS))
        return cls(chunks, tuple(rows[closed:]))

    def since(self, earlier: History[Row]) -> tuple[Row, ...] | None:
        """Rows that were appended to `earlier` to make this one; None when it did not grow out of it."""
        last = earlier.last
        if last is None:
            return self.rows()
        found: list[Row] = []
        for chunk in (self._tail, *reversed(self._chunks)):
            for row in reversed(chunk):
                if row == last:
                    return tuple(reversed(found))
                if row.at_s < last.at_s:
                    return None
                found.append(row)
        return None

    def __eq__(self, other: object) -> bool:
        """The same rows in the same chunks: what both would become by further rows is the same, too."""
        if not isinstance(other, History):
            return NotImplemented
        return self._tail == other._tail and self._chunks == other._chunks

    def __hash__(self) -> int:
        return hash((self._chunks, self._tail))


def deployment_row(backend: BackendStatus, flow: DeploymentFlow | None, *, at_s: float) -> DeploymentRow:
    """What of a gateway's word on a deployment is kept as history, with what its ranks did lately."""
    has_finished = backend.finished > 0
    ranks = flow.ranks if flow is not None else ()
    return DeploymentRow(
        at_s=at_s,
        tokens_per_s=backend.tokens_per_s,
        running=backend.running,
        queued=backend.queued,
        ttft_s=backend.ttft_s_p50 if has_finished else None,
        time_per_token_s=backend.time_per_token_s_p50 if has_finished and backend.time_per_token_s_p50 else None,
        kv=backend.blocks_held / backend.kv_blocks if backend.kv_blocks else None,
        busy=sum(rank.busy_share for rank in ranks) / len(ranks) if ranks else None,
        bubble=flow.bubble if flow is not None else None,
    )


def host_row(sample: HostSample) -> HostRow:
    """What of a sample is kept as history."""
    gpus = [device for device in sample.devices if device.kind != "cpu"]
    used = _total(gpu.memory_used_bytes for gpu in gpus)
    total = _total(gpu.memory_total_bytes for gpu in gpus)
    heats = [device.temperature_c.value for device in sample.devices if isinstance(device.temperature_c, Ok)]
    busy = [gpu.utilisation.value for gpu in gpus if isinstance(gpu.utilisation, Ok)]
    return HostRow(
        at_s=sample.taken_at_s,
        cpu=sample.cpu,
        memory=sample.memory_used_bytes / sample.memory_total_bytes if sample.memory_total_bytes else 0.0,
        gpu=sum(busy) / len(busy) if busy else None,
        gpu_memory=used / total if used is not None and total else None,
        power_w=_total(device.power_w for device in sample.devices),
        received_bytes_per_s=sum(nic.received_bytes_per_s for nic in sample.nics if nic.name != "lo"),
        sent_bytes_per_s=sum(nic.sent_bytes_per_s for nic in sample.nics if nic.name != "lo"),
        hottest_c=max(heats) if heats else None,
        disk_bytes_per_s=sum(disk.read_bytes_per_s + disk.written_bytes_per_s for disk in sample.disks),
    )


def _total(readings: Iterable[Reading]) -> float | None:
    """Sum of the readings that have a fresh value; None when none has."""
    values = [reading.value for reading in readings if isinstance(reading, Ok)]
    return sum(values) if values else None
