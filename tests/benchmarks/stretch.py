"""Makes the engine of one lab host as slow as a share of a core: a thread rests in proportion to what it computes.

This file is put into that host's own release (`slow_hosts.slow_host`) and imported by its engine alone, probes and
ranks alike. It rests after each layer and before each sum over a group, so that another rank waits for it exactly
where it would wait for a slower machine. Only the CPU time of the thread counts: waiting for others is as long as
it is. Waiting for a core is taken off the rest, for a machine of one's own has none of that: three hosts, a gateway
and eight clients on two cores would otherwise be slower together than each of them alone.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable
from functools import wraps
from typing import Any

PR_SET_TIMERSLACK = 29
TIMER_SLACK_NS = 1
LEAST_REST_S = 20e-6
"""Less than this is added to the next rest: waking up takes as long."""
MOST_AHEAD_S = 10e-3
"""A rest that took longer than it should, and a wait for a core, are taken off the next rests, up to here."""
SCHEDSTAT = "/proc/thread-self/schedstat"
"""Nanoseconds on a core, nanoseconds of waiting for one, number of turns."""


class Stretch(threading.local):
    """Of one thread. `share` of the time it computes, the rest of it it sleeps."""

    def __init__(self, share: float) -> None:
        assert 0 < share <= 1, share
        self._factor = 1 / share - 1
        self._owed_s = 0.0
        self._schedstat = os.open(SCHEDSTAT, os.O_RDONLY)
        self.begin()
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, TIMER_SLACK_NS, 0, 0, 0)

    def begin(self) -> None:
        """What was computed until now is not rested for."""
        self._mark_s, self._waited_s = time.thread_time(), self._wait_for_core_s()

    def rest(self) -> None:
        """For what was computed since the last rest."""
        waited_s = self._wait_for_core_s()
        self._owed_s += (time.thread_time() - self._mark_s) * self._factor - (waited_s - self._waited_s)
        if self._owed_s >= LEAST_REST_S:
            before = time.perf_counter()
            time.sleep(self._owed_s)
            self._owed_s -= time.perf_counter() - before
        self._owed_s = max(-MOST_AHEAD_S, self._owed_s)
        self.begin()  # waking up late was part of the rest

    def _wait_for_core_s(self) -> float:
        """Of this thread, since it began."""
        return int(os.pread(self._schedstat, 64, 0).split()[1]) / 1e9


def stretch_engine(share: float) -> None:
    """Of this process, from now on."""
    from agent.engine import device_probe, link_probe
    from agent.engine.decoder import Decoder, DecoderLayer
    from agent.engine.sampling import Sampler

    stretch = Stretch(share)

    def rested(act: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(act)
        def done(*arguments: Any, **named: Any) -> Any:
            result = act(*arguments, **named)
            stretch.rest()
            return result

        return done

    def with_rested_sums(layer: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(layer)
        def done(self: DecoderLayer, hidden: Any, batch: Any, cache: Any, rotation: Any, reduce: Any) -> Any:
            def rested_reduce(partial: Any) -> Any:
                stretch.rest()
                return reduce(partial)

            return layer(self, hidden, batch, cache, rotation, rested_reduce)

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
        (device_probe, "_seconds", seconds),
        # A sum takes twice as long after a rest as at once, and costs its own: probes are to see that as steps do.
        (link_probe._Turns, "_finish", rested(link_probe._Turns._finish)),
    ]
    for owner, name, changed in changes:
        assert hasattr(owner, name), name
        setattr(owner, name, changed)
