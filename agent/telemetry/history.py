"""The last quarter of an hour of samples, kept as encoded frames: small, and ready to be sent."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from agent.facts.sample import HostSample
from agent.wire.framing import encode_frame

HISTORY_S = 15 * 60


class SampleHistory:
    """A ring of `(taken at, frame)`. Followers read out of it, so a slow one loses samples, never memory."""

    def __init__(self, *, span_s: int = HISTORY_S) -> None:
        # One sample a second.
        self._ring: deque[tuple[float, bytes]] = deque(maxlen=span_s)
        self._count = 0
        self._followers: set[asyncio.Event] = set()
        self.latest: HostSample | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of the frames held."""
        return sum(len(frame) for _, frame in self._ring)

    def add(self, sample: HostSample) -> None:
        self._ring.append((sample.taken_at_s, encode_frame(sample)))
        self._count += 1
        self.latest = sample
        for follower in self._followers:
            follower.set()

    def since(self, taken_at_s: float) -> list[bytes]:
        """Frames of samples taken after a moment, oldest first."""
        return [frame for at_s, frame in self._ring if at_s > taken_at_s]

    async def follow(self, taken_at_s: float) -> AsyncIterator[bytes]:
        """Frames since a moment, then each new one."""
        changed = asyncio.Event()
        self._followers.add(changed)
        try:
            frames = self.since(taken_at_s)
            seen = self._count
            while True:
                for frame in frames:
                    yield frame
                await changed.wait()
                changed.clear()
                new = min(self._count - seen, len(self._ring))
                seen = self._count
                frames = [frame for _, frame in list(self._ring)[-new:]] if new else []
        finally:
            self._followers.discard(changed)
