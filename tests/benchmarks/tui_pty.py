"""An app in a real pseudo-terminal: what it writes, what it costs, and how soon a key is answered."""

from __future__ import annotations

import fcntl
import itertools
import os
import pty
import random
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Sequence
from types import TracebackType

import psutil

TAIL_BYTES = 1 << 16
"""Of the output, as much as is searched for a mark that came in pieces."""
KEY_TIMEOUT_S = 30.0
"""A baseline that is drawing ten thousand rows answers late; so does anything on a machine with other work."""
POINTED = re.compile(rb"\xe2\x96\xb8 (?:\x1b\[[0-9;]*m)*(sim-\d+)")
"""`▸ sim-00042`: the host that the cursor is on, as the line below the table says."""


class PtyApp:
    """A process on a terminal of the given size. Use as a context: it is ended behind."""

    def __init__(self, argv: Sequence[str], *, width: int, height: int) -> None:
        self._argv = argv
        self._size = (width, height)
        self.num_bytes = 0
        self._tail = b""

    def __enter__(self) -> PtyApp:
        master, terminal = pty.openpty()
        width, height = self._size
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        environment = os.environ | {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
        environment.pop("NO_COLOR", None)
        self._process = subprocess.Popen(
            self._argv,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env=environment,
            start_new_session=True,
        )
        os.close(terminal)
        self._master = master
        self._stats = psutil.Process(self._process.pid)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        finally:
            os.close(self._master)

    @property
    def cpu_s(self) -> float:
        """Seconds of CPU over all threads so far, in user and system mode."""
        times = self._stats.cpu_times()
        return float(times.user + times.system)

    @property
    def rss_bytes(self) -> int:
        return int(self._stats.memory_info().rss)

    def read_for(self, seconds: float) -> None:
        """Take in what is written, as a terminal does."""
        end_s = time.monotonic() + seconds
        while (left := end_s - time.monotonic()) > 0:
            self._read(left)

    def wait_for(self, pattern: re.Pattern[bytes], *, timeout_s: float) -> None:
        """Read until something matches. Raises TimeoutError, or RuntimeError for an app that ended."""
        end_s = time.monotonic() + timeout_s
        while not pattern.search(self._tail):
            if (left := end_s - time.monotonic()) <= 0:
                raise TimeoutError(f"nothing matches {pattern.pattern!r} within {timeout_s} s")
            self._read(left)

    def key_to_paint_s(self, key: bytes, *, timeout_s: float = KEY_TIMEOUT_S) -> float:
        """Seconds from a key that moves the cursor until another host is named. Raises TimeoutError."""
        before = self._pointed()
        self._tail = self._tail[-1:]
        begin_s = time.monotonic()
        os.write(self._master, key)
        while (now := self._pointed()) is None or now == before:
            if time.monotonic() - begin_s > timeout_s:
                raise TimeoutError(f"no answer to {key!r} within {timeout_s} s: the cursor stayed on {before!r}")
            self._read(timeout_s)
        return time.monotonic() - begin_s

    def keys_to_paint_s(self, keys: Sequence[bytes], count: int, *, seed: int, budget_s: float) -> list[float]:
        """Several, at moments that have nothing to do with the app's ticks; fewer where they take too long."""
        chance = random.Random(seed)
        out: list[float] = []
        end_s = time.monotonic() + budget_s
        for key in itertools.islice(itertools.cycle(keys), count):
            if out and time.monotonic() >= end_s:
                break
            self.read_for(chance.uniform(0.12, 0.6))
            out.append(self.key_to_paint_s(key))
        return out

    def _pointed(self) -> bytes | None:
        found = POINTED.findall(self._tail)
        return found[-1] if found else None

    def _read(self, wait_s: float) -> None:
        ready, _, _ = select.select([self._master], [], [], max(0.0, wait_s))
        if not ready:
            return
        try:
            chunk = os.read(self._master, 1 << 16)
        except OSError as error:
            raise RuntimeError(f"the app ended: {self._tail[-2000:].decode(errors='replace')}") from error
        self.num_bytes += len(chunk)
        self._tail = (self._tail + chunk)[-TAIL_BYTES:]
