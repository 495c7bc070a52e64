"""Where a model's bytes come from: a Protocol that the supervisor fills with HTTP over TLS, or a directory here."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

import msgspec

from agent.errors import FleetError
from agent.models.ranges import hash_ranges, read_ranges
from agent.wire.agent import RangeRequest


class RangeAnswer:
    """What a source answers: the hash it promises, and the bytes as they come."""

    def __init__(self, sha256: str, chunks: AsyncIterator[bytes]) -> None:
        self.sha256 = sha256
        self.chunks = chunks


class RangeSource(Protocol):
    """One holder of the model. `read` may raise OSError, TimeoutError or FleetError: the next source is asked."""

    @property
    def name(self) -> str:
        """For people: the host's name."""
        ...

    def read(self, request: RangeRequest) -> AbstractAsyncContextManager[RangeAnswer]: ...


class DirectorySource:
    """A complete model directory on this host."""

    def __init__(self, model_dir: Path) -> None:
        self._model_dir = model_dir

    @property
    def name(self) -> str:
        return str(self._model_dir)

    @asynccontextmanager
    async def read(self, request: RangeRequest) -> AsyncIterator[RangeAnswer]:
        sha256 = await asyncio.to_thread(hash_ranges, self._model_dir, request.ranges)

        async def chunks() -> AsyncIterator[bytes]:
            pieces = read_ranges(self._model_dir, request.ranges)
            while piece := await asyncio.to_thread(next, pieces, b""):
                yield piece

        yield RangeAnswer(sha256, chunks())


class SourceTrouble(msgspec.Struct, frozen=True, kw_only=True):
    source: str
    reason: str


class SourceRing:
    """Asks the sources in turn: one that failed goes to the end, the one that delivered stays first."""

    def __init__(self, sources: Sequence[RangeSource]) -> None:
        self._sources = list(sources)

    async def read(self, request: RangeRequest, *, timeout_s: float) -> bytes:
        """The request's bytes, their hash checked. Raises E707 when no source delivers, saying why each did not."""
        want = sum(piece.num_bytes for piece in request.ranges)
        troubles: list[SourceTrouble] = []
        for _ in range(len(self._sources)):
            source = self._sources[0]
            try:
                async with asyncio.timeout(timeout_s):
                    return await _read_verified(source, request, want)
            except (OSError, TimeoutError, FleetError, EOFError) as error:
                reason = str(error) or f"no answer within {timeout_s:g} s"
                troubles.append(SourceTrouble(source=source.name, reason=reason))
                self._sources.append(self._sources.pop(0))
        said = "; ".join(f"{trouble.source}: {trouble.reason}" for trouble in troubles)
        raise FleetError(
            "E707",
            f"no source delivered {want} bytes of model {request.digest[:12]}: {said or 'there is none'}",
            hint="what was fetched is kept, and the next try goes on from there",
        )


async def _read_verified(source: RangeSource, request: RangeRequest, want: int) -> bytes:
    data = bytearray()
    async with source.read(request) as answer:
        async for chunk in answer.chunks:
            data += chunk
            if len(data) > want:
                break
        promised = answer.sha256
    if len(data) != want:
        raise EOFError(f"{'more than ' if len(data) > want else ''}{min(len(data), want)} of {want} bytes came")
    actual = await asyncio.to_thread(_sha256, data)
    if actual != promised:
        raise EOFError(f"{want} bytes came with hash {actual[:12]}, {promised[:12]} was promised")
    return bytes(data)


def _sha256(data: bytearray) -> str:
    return hashlib.sha256(data).hexdigest()
