"""Clients of a gateway, in threads: streams that note all they saw, and one that asks again and again."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httpx

READ_TIMEOUT_S = 60.0


@dataclass
class Stream:
    """One streamed generation through Ollama's API, and how it ended."""

    listen: str
    model: str
    seed: int
    pieces: int = 0
    text: str = ""
    error: str = ""
    """What the protocol said, in its own form."""
    is_done: bool = False
    """It came to its own end, or was left while all was well."""
    broke: str = ""
    """How the connection broke where it should not: a silent end is one of these."""
    ended_at_s: float = 0.0
    last_piece_at_s: float = 0.0
    longest_pause_s: float = 0.0
    _thread: threading.Thread | None = None
    _leave: threading.Event = field(default_factory=threading.Event)

    def start(self) -> Self:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def leave(self) -> None:
        """Hang up at the next piece."""
        self._leave.set()

    def join(self, timeout_s: float = READ_TIMEOUT_S) -> None:
        assert self._thread is not None
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), f"stream {self.seed} hangs after {self.pieces} pieces"

    @property
    def is_over(self) -> bool:
        return self.ended_at_s > 0

    @property
    def went_on(self) -> bool:
        return self.is_done and not self.error and not self.broke

    def _run(self) -> None:
        body = {
            "model": self.model,
            "prompt": f"Stream {self.seed} counts",
            "options": {"seed": self.seed, "temperature": 0.0},
        }
        try:
            with httpx.stream(
                "POST", f"http://{self.listen}/api/generate", json=body, timeout=READ_TIMEOUT_S
            ) as response:
                for line in response.iter_lines():
                    self._take(json.loads(line))
                    if self._leave.is_set() and not self.error:
                        self.is_done = True
                        break
        except (httpx.HTTPError, json.JSONDecodeError) as trouble:
            self.broke = repr(trouble)
        if not (self.is_done or self.error or self.broke):
            self.broke = "a silent end"
        self.ended_at_s = time.time()

    def _take(self, piece: dict[str, Any]) -> None:
        now = time.time()
        if self.last_piece_at_s:
            self.longest_pause_s = max(self.longest_pause_s, now - self.last_piece_at_s)
        self.last_piece_at_s = now
        if "error" in piece:
            self.error = piece["error"]
            return
        self.pieces += 1
        self.text += piece["response"]
        self.is_done = piece["done"]


def ask(listen: str, model: str, *, timeout_s: float = READ_TIMEOUT_S, num_predict: int = 4) -> str:
    """One short answer. Raises httpx.HTTPError, also for an answer that is an error."""
    body = {
        "model": model,
        "prompt": "Once",
        "stream": False,
        "options": {"num_predict": num_predict, "temperature": 0.0},
    }
    response = httpx.post(f"http://{listen}/api/generate", json=body, timeout=timeout_s)
    response.raise_for_status()
    return str(response.json()["response"])


@dataclass
class Asker:
    """Asks for short answers, one after the other, until it is left; a pause is no failure, an error is."""

    listen: str
    model: str
    answers: list[tuple[float, float, str]] = field(default_factory=list)
    """When asked, how long it took, what came."""
    failures: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        assert self._thread is not None
        self._thread.join(READ_TIMEOUT_S + 5)

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            asked_at = time.time()
            try:
                text = ask(self.listen, self.model)
            except httpx.HTTPStatusError as error:
                self.failures.append(f"{asked_at:.2f}: {error.response.status_code} {error.response.text[:300]}")
            except httpx.HTTPError as error:
                self.failures.append(f"{asked_at:.2f}: {error!r}")
            else:
                self.answers.append((asked_at, time.time() - asked_at, text))


@contextmanager
def streams(listen: str, model: str, *, count: int) -> Iterator[list[Stream]]:
    """`count` streams without end, all past their first pieces; they are left at the end, once each that lives has
    shown that it still goes on.
    """
    running = [Stream(listen, model, seed).start() for seed in range(count)]
    try:
        _wait_for_pieces(running)
        yield running
        _wait_for_pieces(running)
    finally:
        for stream in running:
            stream.leave()
        for stream in running:
            stream.join()


def _wait_for_pieces(running: list[Stream], *, more: int = 3) -> None:
    goals = [(stream, stream.pieces + more) for stream in running]
    deadline = time.monotonic() + READ_TIMEOUT_S
    while any(stream.pieces < goal and not stream.is_over for stream, goal in goals):
        assert time.monotonic() < deadline, [stream.pieces for stream in running]
        time.sleep(0.02)
