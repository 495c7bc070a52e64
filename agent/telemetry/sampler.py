"""Takes one sample a second. A late one is not made up for: two in a row would show nothing new."""

from __future__ import annotations

import asyncio
import time

from agent.telemetry.gpu import GpuReader
from agent.telemetry.gpu_reply import GpuReply
from agent.telemetry.history import SampleHistory
from agent.telemetry.host import HostReader

INTERVAL_S = 1.0


class Sampler:
    """Feeds `history`; `gpus` is the last reading of the GPUs, for whoever collects facts."""

    def __init__(
        self, host: HostReader, gpu_reader: GpuReader, history: SampleHistory, *, interval_s: float = INTERVAL_S
    ) -> None:
        self._host = host
        self._gpu_reader = gpu_reader
        self._interval_s = interval_s
        self.history = history
        self.gpus = GpuReply(unavailable="not sampled yet")
        self.has_sampled = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled; the collector ends with it."""
        next_at = time.monotonic()
        try:
            while True:
                await self.take()
                now = time.monotonic()
                next_at += self._interval_s
                if next_at <= now:
                    next_at = now + self._interval_s
                await asyncio.sleep(next_at - now)
        finally:
            await self._gpu_reader.close()

    async def take(self) -> None:
        self.gpus = await self._gpu_reader.read()
        self.history.add(self._host.read(self.gpus.devices))
        self.has_sampled.set()
