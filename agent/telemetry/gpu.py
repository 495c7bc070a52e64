"""The agent's side of GPU readings: asks the collector subprocess with a deadline, and never waits for NVML.

While the collector does not answer, its last values go on as `Stale` with their age, and nothing else is asked
of it: a driver that hangs is not helped by more questions, nor by killing who asked.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from agent.facts.sample import DeviceSample, Lost, NotAvailable, Ok, Reading, Stale
from agent.telemetry.gpu_reply import AskGpus, GpuReply
from agent.wire.framing import StreamClosed, decode, encode_frame

log = logging.getLogger(__name__)

LIBRARY = "libnvidia-ml.so.1"
DEADLINE_S = 0.5
FIRST_DEADLINE_S = 3.0
"""For the first answer of a collector: NVML takes seconds to start, and facts without GPUs would mislead."""
RETRY_S = 30.0
"""Pause before a missing library is looked for again, or a collector that ended is started again."""
STOP_WAIT_S = 1.0

_LIBRARY_DIRECTORIES = (
    "/usr/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib",
    "/usr/lib/wsl/lib",
)


class GpuReader:
    """Owns the collector. `clock` is monotonic."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, deadline_s: float = DEADLINE_S) -> None:
        self._clock = clock
        self._deadline_s = deadline_s
        self._retry_at = 0.0
        self._collector: asyncio.subprocess.Process | None = None
        self._answers: _Answers | None = None
        self._asked_at: float | None = None
        self._answered_at = 0.0
        self._is_first = False
        self._reply = GpuReply(unavailable="no driver")
        self.pid: int | None = None

    async def read(self) -> GpuReply:
        """The newest reading, within the deadline. Never raises: trouble is in the reply."""
        if self._answers is None and not await self._start():
            return self._reply
        try:
            async with asyncio.timeout(FIRST_DEADLINE_S if self._is_first else self._deadline_s):
                await self._ask()
        except TimeoutError:
            self._is_first = False
            return self._stuck()
        except (StreamClosed, ConnectionError, msgspec.DecodeError) as error:
            await self._collector_ended(str(error))
        return self._reply

    async def close(self) -> None:
        """End the collector; one that hangs in the driver is killed, and left to the kernel."""
        if self._answers is not None:
            self._answers.close()
            self._answers = None
        collector, self._collector = self._collector, None
        if collector is None or collector.returncode is not None:
            return
        try:
            async with asyncio.timeout(STOP_WAIT_S):
                await collector.wait()
        except TimeoutError:
            collector.kill()
            try:
                async with asyncio.timeout(STOP_WAIT_S):
                    await collector.wait()
            except TimeoutError:
                log.warning("collector hangs in the driver", extra={"pid": collector.pid})

    # ------------------------------------------------------------------------------------------------

    async def _start(self) -> bool:
        now = self._clock()
        if now < self._retry_at:
            return False
        self._retry_at = now + RETRY_S
        if not is_library_present():
            self._reply = GpuReply(unavailable="no driver")
            return False
        ours, theirs = socket.socketpair()
        with theirs:
            self._collector = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "agent.telemetry.gpu_collector",
                stdin=theirs.fileno(),
                stdout=asyncio.subprocess.DEVNULL,
            )
        self.pid = self._collector.pid
        _, self._answers = await asyncio.get_running_loop().create_connection(_Answers, sock=ours)
        self._asked_at = None
        self._is_first = True
        self._reply = GpuReply(unavailable="NVML is starting")
        return True

    async def _ask(self) -> None:
        assert self._answers is not None
        # A question that overran its deadline stays open: its answer is awaited anew at the next reading.
        if self._asked_at is None:
            self._asked_at = self._clock()
            self._answers.write(encode_frame(AskGpus()))
        body = await self._answers.next()
        self._asked_at = None
        self._answered_at = self._clock()
        self._is_first = False
        self._reply = decode(body, GpuReply)

    def _stuck(self) -> GpuReply:
        now = self._clock()
        assert self._asked_at is not None
        reason = f"NVML stuck {now - self._asked_at:.0f} s"
        if not self._reply.devices:
            return GpuReply(unavailable=reason)
        age_s = now - self._answered_at
        return msgspec.structs.replace(
            self._reply,
            devices=tuple(_aged(device, age_s=age_s, reason=reason) for device in self._reply.devices),
            unavailable=reason,
        )

    async def _collector_ended(self, reason: str) -> None:
        collector = self._collector
        await self.close()
        status = "still running" if collector is None else collector.returncode
        log.warning("collector ended", extra={"status": status, "reason": reason})
        self._retry_at = self._clock() + RETRY_S
        self.pid = None
        reason = f"collector ended (exit status {status})"
        self._reply = GpuReply(
            devices=tuple(_aged(device, age_s=0.0, reason=reason) for device in self._reply.devices),
            unavailable=reason,
        )


class _Answers(asyncio.Protocol):
    """Frames from the collector. A wait that is given up loses nothing: what came is kept for the next."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._changed = asyncio.Event()
        self._lost = ""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = str(exc or "the collector closed its end")
        self._changed.set()

    def write(self, frame: bytes) -> None:
        assert self._transport is not None
        self._transport.write(frame)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    async def next(self) -> bytes:
        """Body of the next frame. Raises StreamClosed."""
        while (body := self._take()) is None:
            if self._lost:
                raise StreamClosed(self._lost)
            self._changed.clear()
            await self._changed.wait()
        return body

    def _take(self) -> bytes | None:
        end = 4 + int.from_bytes(self._received[:4], "big")
        if len(self._received) < max(5, end):
            return None
        body = bytes(self._received[4:end])
        del self._received[:end]
        return body


def is_library_present() -> bool:
    """Whether the dynamic loader can find NVML, judged without loading it into this process."""
    directories = [*os.environ.get("LD_LIBRARY_PATH", "").split(":"), *_LIBRARY_DIRECTORIES]
    if any(directory and (Path(directory) / LIBRARY).exists() for directory in directories):
        return True
    try:
        return LIBRARY.encode() in Path("/etc/ld.so.cache").read_bytes()
    except OSError:
        return False


def _aged(device: DeviceSample, *, age_s: float, reason: str) -> DeviceSample:
    """The device with every value marked as old; what had no value before says why there is none now."""

    def age(reading: Reading) -> Reading:
        match reading:
            case Ok(value):
                return Stale(value, age_s)
            case NotAvailable("not sampled"):
                return NotAvailable(reason)
            case _:
                return reading

    # Every reading by its type, so that a field which comes later is not left looking fresh.
    old = {
        name: age(value)
        for name, value in msgspec.structs.asdict(device).items()
        if isinstance(value, Ok | NotAvailable | Stale | Lost)
    }
    return msgspec.structs.replace(device, **old)
