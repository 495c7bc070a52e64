from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from pathlib import Path

import pytest

from agent.telemetry.gpu import GpuReader
from agent.telemetry.gpu_reply import GpuReply
from agent.telemetry.history import SampleHistory
from agent.telemetry.host import HostReader
from agent.telemetry.sampler import Sampler


class SlowGpus(GpuReader):
    """Answers late once, as a driver does that hung until the deadline."""

    def __init__(self, *, late_at: int, late_s: float) -> None:
        super().__init__()
        self._late_at = late_at
        self._late_s = late_s
        self.reads = 0

    async def read(self) -> GpuReply:
        self.reads += 1
        if self.reads == self._late_at:
            await asyncio.sleep(self._late_s)
        return GpuReply(unavailable="no driver")


@pytest.mark.parametrize("late_s", [0.0, 0.35])
async def test_samples_come_at_their_pace_and_a_late_one_is_not_made_up_for(tmp_path: Path, late_s: float) -> None:
    history = SampleHistory()
    host = HostReader("a", prefix=tmp_path, own_processes=list)
    sampler = Sampler(host, SlowGpus(late_at=3, late_s=late_s), history, interval_s=0.1)
    began = time.monotonic()
    taken: list[float] = []
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        running = group.create_task(sampler.run())
        async for _ in history.follow(0):
            taken.append(time.monotonic() - began)
            if len(taken) == 8:
                running.cancel()
                break
    gaps = [after - before for before, after in pairwise(taken)]
    # A burst would show as a gap near zero; the machine may be slow, never early.
    assert min(gaps) > 0.02, gaps
    assert taken[-1] >= 7 * 0.1 + late_s * 0.5
