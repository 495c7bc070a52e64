"""Puts a load on a server and keeps what happened to every request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

from odctl.bench.load import Load, Shot, shots
from odctl.bench.measure import UNFINISHED, Outcome
from odctl.bench.prompts import PromptMaker
from odctl.bench.server import RequestFailed, Server


class Drive:
    """One load on one server. What was measured so far can be read at any time, also after it was broken off."""

    def __init__(self, server: Server, load: Load, prompts: PromptMaker) -> None:
        self.server = server
        self._load = load
        self._prompts = prompts
        self.outcomes: list[Outcome] = []
        self._begun_s = 0.0
        self._ended_s: float | None = None

    async def run(self) -> None:
        """Returns when every request that was sent has ended. Cancelled, it breaks off those under way."""
        self._begun_s = time.perf_counter()
        source = shots(self._load)
        try:
            if self._load.arrivals == "closed":
                async with asyncio.TaskGroup() as group:
                    for _ in range(self._load.concurrency):
                        group.create_task(self._client(source))
            else:
                await self._arrive(source)
        finally:
            self._ended_s = time.perf_counter()

    @property
    def elapsed_s(self) -> float:
        """So far, or from the begin to the last answer."""
        if not self._begun_s:
            return 0.0
        return (self._ended_s or time.perf_counter()) - self._begun_s

    async def _client(self, source: Iterator[Shot]) -> None:
        """Asks, waits for its answer, asks again."""
        duration_s = self._load.duration_s
        while duration_s is None or self._now() < duration_s:
            shot = next(source, None)
            if shot is None:
                return
            await self._shoot(shot)

    async def _arrive(self, source: Iterator[Shot]) -> None:
        """Each request at its time, whatever became of those before; later only beyond the most under way."""
        room = asyncio.Semaphore(self._load.concurrency)

        async def shoot(shot: Shot) -> None:
            try:
                await self._shoot(shot)
            finally:
                room.release()

        async with asyncio.TaskGroup() as group:
            for shot in source:
                await asyncio.sleep(max(0.0, shot.at_s - self._now()))
                await room.acquire()
                group.create_task(shoot(shot))

    async def _shoot(self, shot: Shot) -> None:
        prompt = self._prompts.prompt(
            shot.index, shot.prompt_tokens, group=shot.prefix_group, shared_tokens=shot.prefix_tokens
        )
        sent_s = time.perf_counter()
        error = UNFINISHED
        detail, answer = "", None
        try:
            answer = await self.server.ask(prompt, num_tokens=shot.output_tokens)
            error = ""
        except RequestFailed as failure:
            error, detail = failure.kind, failure.detail
        finally:
            self.outcomes.append(
                Outcome(
                    index=shot.index,
                    sent_s=sent_s - self._begun_s,
                    end_s=self._now(),
                    piece_s=tuple(piece - self._begun_s for piece in answer.piece_s) if answer else (),
                    prompt_tokens=answer.prompt_tokens if answer else 0,
                    output_tokens=answer.output_tokens if answer else 0,
                    wanted_output_tokens=shot.output_tokens,
                    error=error,
                    detail=detail,
                )
            )

    def _now(self) -> float:
        """Seconds since the begin."""
        return time.perf_counter() - self._begun_s
