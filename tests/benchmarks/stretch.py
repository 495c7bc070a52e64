"""Makes the engine of one lab host as slow as a share of a core: a thread rests in proportion to what it computes.

This file is put into that host's own release (`slow_hosts.slow_host`) and imported by its engine alone, probes and
ranks alike. It rests after each layer and before each sum over a group, so that another rank waits for it exactly
where it would wait for a slower machine, and before it waits itself, for hidden states or the next step: what it
has done by then it did while others computed. Only the CPU time of the thread counts: waiting for others is as long
as it is. Two things are taken off the rest, for a machine of one's own has none of them. Waiting for a core: three
hosts, a gateway and eight clients on two cores would otherwise be slower together than each of them alone. And what
others on this machine take of its memory: within an hour the same product took 1.8 to 2.2 ms, and reading memory
0.36 to 0.43 ms, always a fifth of it.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

PR_SET_TIMERSLACK = 29
TIMER_SLACK_NS = 1
LEAST_REST_S = 20e-6
"""Less than this is added to the next rest: waking up takes as long."""
MOST_AHEAD_S = 10e-3
"""A rest that took longer than it should, and a wait for a core, are taken off the next rests, up to here."""
READ_EVERY_S = 8e-3
"""Of computing, from one reading of memory to the next."""
READINGS = 25
"""Of which the median is taken: a quarter of a second's computing."""
READ, SKIPPED, READ_PIECES = 1 << 18, 1 << 16, 64
"""Numbers of four bytes; pieces take turns, more of them than caches hold. A reading begins with some that do not
count: the first take longer, and how much longer hangs on what was computed before.
"""
BETWEEN_READINGS_S = 2e-3
USUAL_SPAN_S = 3.0
SCHEDSTAT = "/proc/thread-self/schedstat"
"""Nanoseconds on a core, nanoseconds of waiting for one, number of turns."""


class Pace:
    """How long this machine takes to read a piece of its memory, at the moment."""

    def __init__(self) -> None:
        self._memory = torch.ones((READ_PIECES, SKIPPED + READ))
        self._number = 0
        self._readings: deque[float] = deque(maxlen=READINGS)
        for _ in range(READINGS):
            self.wait_and_read()

    def wait_and_read(self) -> None:
        time.sleep(BETWEEN_READINGS_S)
        self.read()

    def read(self) -> None:
        """One more."""
        self._number = (self._number + 1) % READ_PIECES
        piece = self._memory[self._number]
        piece[:SKIPPED].sum()
        before = time.thread_time()
        piece[SKIPPED:].sum()
        self._readings.append(time.thread_time() - before)

    @property
    def seconds(self) -> float:
        return statistics.median(self._readings)


def usual_pace_s() -> float:
    """What a reading takes now, while nothing else is done here: what hosts are to compute as if it took always."""
    pace, until_s, seconds = Pace(), time.monotonic() + USUAL_SPAN_S, []
    while time.monotonic() < until_s:
        pace.wait_and_read()
        seconds.append(pace.seconds)
    return statistics.median(seconds)


class Stretch(threading.local):
    """Of one thread. `share` of the time it computes, the rest of it it sleeps.

    With a pace, what it computes counts as long as it would have taken at the usual one.
    """

    def __init__(self, share: float, *, pace: Pace | None = None, usual_s: float = 0.0) -> None:
        assert 0 < share <= 1, share
        self._share = share
        self._pace, self._usual_s = pace, usual_s
        self._unread_s = self._owed_s = 0.0
        self._schedstat = os.open(SCHEDSTAT, os.O_RDONLY)
        self.begin()
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, TIMER_SLACK_NS, 0, 0, 0)

    def begin(self) -> None:
        """What was computed until now is not rested for."""
        self._mark_s, self._waited_s = time.thread_time(), self._wait_for_core_s()

    def rest(self) -> None:
        """For what was computed since the last rest."""
        computed_s, waited_s = time.thread_time() - self._mark_s, self._wait_for_core_s()
        slow = self._share * self._slowness()
        self._owed_s += max(0.0, computed_s / slow - computed_s) - (waited_s - self._waited_s)
        self._read_on(computed_s)
        if self._owed_s >= LEAST_REST_S:
            before = time.perf_counter()
            time.sleep(self._owed_s)
            self._owed_s -= time.perf_counter() - before
        self._owed_s = max(-MOST_AHEAD_S, self._owed_s)
        self.begin()  # waking up late was part of the rest

    def _slowness(self) -> float:
        """How many times longer than usual memory takes to read."""
        return self._pace.seconds / self._usual_s if self._pace is not None else 1.0

    def _read_on(self, computed_s: float) -> None:
        """Now and then see how quick the machine is, in the time of a rest."""
        self._unread_s += computed_s
        if self._pace is not None and self._unread_s >= READ_EVERY_S:
            before = time.perf_counter()
            self._pace.read()
            self._owed_s -= time.perf_counter() - before
            self._unread_s = 0.0

    def _wait_for_core_s(self) -> float:
        """Of this thread, since it began."""
        return int(os.pread(self._schedstat, 64, 0).split()[1]) / 1e9


def stretch_engine(share: float, usual_s: float) -> None:
    """Of this process, from now on; with `usual_s` of 0 as quick as the machine is at the moment."""
    from agent.engine import device_probe, link_probe
    from agent.engine.decoder import Decoder, DecoderLayer
    from agent.engine.executor import Executor
    from agent.engine.links.pipeline import HiddenReceiver
    from agent.engine.sampling import Sampler

    stretch = Stretch(share, pace=Pace() if usual_s else None, usual_s=usual_s)

    def rested(act: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(act)
        def done(*arguments: Any, **named: Any) -> Any:
            result = act(*arguments, **named)
            stretch.rest()
            return result

        return done

    def begun_rested(act: Callable[..., Any]) -> Callable[..., Any]:
        def done(*arguments: Any, **named: Any) -> Any:
            stretch.rest()
            return act(*arguments, **named)

        return done

    def with_rested_sums(layer: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(layer)
        def done(self: DecoderLayer, hidden: Any, batch: Any, cache: Any, rotation: Any, reduce: Any) -> Any:
            return layer(self, hidden, batch, cache, rotation, begun_rested(reduce))

        return done

    def seconds(act: Callable[[int], object], number: int) -> float:
        stretch.begin()
        before = time.perf_counter()
        act(number)
        stretch.rest()
        return time.perf_counter() - before

    changes: list[tuple[object, str, object]] = [
        (DecoderLayer, "__call__", rested(with_rested_sums(DecoderLayer.__call__))),
        (Decoder, "embed", rested(Decoder.embed)),
        (Decoder, "logits", rested(Decoder.logits)),
        (Sampler, "sample", rested(Sampler.sample)),
        (HiddenReceiver, "receive", begun_rested(HiddenReceiver.receive)),
        (Executor, "_execute", rested(Executor._execute)),
        (device_probe, "_seconds", seconds),
        # A sum takes twice as long after a rest as at once, and costs its own: probes are to see that as steps do.
        (link_probe._Turns, "_finish", rested(link_probe._Turns._finish)),
    ]
    for owner, name, changed in changes:
        assert hasattr(owner, name), name
        setattr(owner, name, changed)
