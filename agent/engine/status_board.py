"""What a rank says of itself. The engine thread writes, the I/O thread reads; no torch, no lock.

Each attribute is replaced as a whole, which is atomic in CPython; a reader may see figures of two moments, never a
half-written one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Protocol

from agent.errors import ErrorDetail
from agent.wire.rank import LinkCount, RankConfig, RankState, RankStatus


class Counter(Protocol):
    """A link's counts (`engine.links.carrier.LinkCounter`)."""

    name: str
    sent_bytes: int
    received_bytes: int
    wait_s: float

    @property
    def round_trip_s(self) -> float | None: ...


class StatusBoard:
    def __init__(self, config: RankConfig, *, count_queued: Callable[[], int]) -> None:
        self._config = config
        self._count_queued = count_queued
        self.generation = config.generation
        self.state: RankState = "loading"
        self.error: ErrorDetail | None = None
        self.step_port = 0
        self.loaded_fraction = 0.0
        self.weight_bytes = 0
        self.read_bytes = 0
        self.kv_cache_bytes = 0
        self.progress = 0
        self.steps = 0
        self.tokens = 0
        self.busy_s = 0.0
        self.counters: tuple[Counter, ...] = ()

    def bump_progress(self) -> None:
        self.progress += 1

    def snapshot(self) -> RankStatus:
        return RankStatus(
            rank_id=self._config.rank_id,
            deployment=self._config.deployment,
            generation=self.generation,
            pid=os.getpid(),
            state=self.state,
            loaded_fraction=self.loaded_fraction,
            weight_bytes=self.weight_bytes,
            read_bytes=self.read_bytes,
            kv_cache_bytes=self.kv_cache_bytes,
            step_port=self.step_port,
            progress=self.progress,
            queued_steps=self._count_queued(),
            steps=self.steps,
            busy_s=self.busy_s,
            tokens=self.tokens,
            links=tuple(
                LinkCount(
                    name=counter.name,
                    sent_bytes=counter.sent_bytes,
                    received_bytes=counter.received_bytes,
                    wait_s=counter.wait_s,
                    round_trip_s=counter.round_trip_s,
                )
                for counter in self.counters
            ),
            error=self.error,
            spawn_generation=self._config.generation,
            at_s=time.monotonic(),
        )
