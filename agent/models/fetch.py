"""Brings a shard and the small files of a model onto this host's disk: resumable, verified, never half done.

A model's directory is `var/models/DIGEST/` under the prefix:

    manifest.json           written first
    config.json …           the small files; of a GGUF model its header, `header.gguf`
    shards/KEY.safetensors  one file for each extent that a rank here owns
    shards/KEY.part         a shard under way, with KEY.journal: what of it is on disk, and its hash
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from agent.errors import FleetError
from agent.facts.model import ModelSpec
from agent.models.files import CONFIG_FILE, HEADER_FILE
from agent.models.gguf_types import stored_slice
from agent.models.manifest import MANIFEST_FILE, check_manifest, hash_stream, is_small_file
from agent.models.ranges import ranges_of, split_ranges
from agent.models.safetensors_index import DTYPE_SIZES, encode_header
from agent.models.sources import RangeSource, SourceRing
from agent.planner.shards import ShardExtent, TensorSlice, slice_shard
from agent.wire.agent import ByteRange, ModelManifest, RangeRequest

REQUEST_TIMEOUT_S = 60.0
"""For one request of at most MAX_REQUEST_BYTES: a link below 140 KB/s counts as lost."""
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_LOCK_POLL_S = 0.2
_T = TypeVar("_T")

Progress = Callable[[int, int], None]
"""Called with bytes on disk and bytes in all, from the event loop."""


class _JournalLine(msgspec.Struct, frozen=True, array_like=True):
    """`[begin, end)` of the `.part` file is on disk and hashes to this."""

    begin: int
    end: int
    sha256: str


def shard_slices(spec: ModelSpec, extent: ShardExtent) -> tuple[TensorSlice, ...]:
    """The extent's slices in the order of the shard file: wide dtypes first, so that every tensor is aligned.

    Quantised blocks are bytes and come last.
    """
    sizes = {entry.name: DTYPE_SIZES.get(entry.dtype, 1) for entry in spec.tensors}
    return tuple(sorted(slice_shard(spec, extent), key=lambda piece: -sizes[piece.name]))


def shard_path(target_dir: Path, spec: ModelSpec, extent: ShardExtent) -> Path:
    """Where the extent's shard file is, or will be. Equal slices of one model share one file."""
    slices = [(piece.name, piece.dim, piece.begin, piece.end) for piece in slice_shard(spec, extent)]
    key = hashlib.sha256(msgspec.json.encode(slices)).hexdigest()[:32]
    return target_dir / "shards" / f"{key}.safetensors"


def shard_header(spec: ModelSpec, slices: Sequence[TensorSlice], digest: str) -> bytes:
    """Header of a shard file. Its metadata says which model it is of, and how each tensor was cut.

    Quantised blocks stay as they are: rows of bytes, whose GGUF type, first column and columns are in the metadata.
    """
    entries = {entry.name: entry for entry in spec.tensors}
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    blocks: dict[str, tuple[str, int, int]] = {}
    for piece in slices:
        entry = entries[piece.name]
        if entry.dtype in DTYPE_SIZES:
            tensors[piece.name] = (entry.dtype, piece.sliced_shape)
            continue
        stored = stored_slice(entry, piece)
        tensors[piece.name] = ("U8", (stored.length * stored.count // stored.row_bytes, stored.row_bytes))
        blocks[piece.name] = (entry.dtype, stored.skip, stored.columns)
    cuts = {piece.name: (piece.dim, piece.begin, piece.end) for piece in slices if piece.dim is not None}
    metadata = {"format": "pt", "digest": digest, "cuts": msgspec.json.encode(cuts).decode()}
    if blocks:
        metadata["blocks"] = msgspec.json.encode(blocks).decode()
    return encode_header(tensors, metadata)


async def fetch_shard(
    spec: ModelSpec,
    digest: str,
    extent: ShardExtent,
    *,
    target_dir: Path,
    sources: Sequence[RangeSource],
    on_progress: Progress | None = None,
    request_timeout_s: float = REQUEST_TIMEOUT_S,
) -> int:
    """Have the extent's slices in `shard_path(...)`; the answer is the bytes that sources sent for it just now.

    0 when the shard was there. Cut off, it goes on where it stood: what the journal says is hashed again, the
    rest is asked for. Fetches of one model on a host go one after another. Raises E707 when no source delivers
    (the part is kept) and E708 when the disk is full (the part is removed: a full disk harms more than a second
    transfer).
    """
    final = shard_path(target_dir, spec, extent)
    async with locked(final.parent):
        if final.is_file():
            return 0
        slices = shard_slices(spec, extent)
        header = shard_header(spec, slices, digest)
        requests = list(split_ranges(ranges_of(spec, slices)))
        total = len(header) + sum(_num_bytes(request) for request in requests)
        async with _open_part(final, total) as part:
            return await _fill(
                part,
                header=header,
                requests=requests,
                digest=digest,
                ring=SourceRing(sources),
                on_progress=on_progress,
                timeout_s=request_timeout_s,
            )


async def fetch_small_files(
    manifest: ModelManifest,
    *,
    target_dir: Path,
    sources: Sequence[RangeSource],
    request_timeout_s: float = REQUEST_TIMEOUT_S,
) -> int:
    """Have the manifest, config, tokenizer and chat template on disk; the answer is the bytes fetched just now.

    Each file is checked against the manifest's hash. Raises E706, E707 and E708.
    """
    check_manifest(manifest, manifest.digest)
    ring = SourceRing(sources)
    fetched = 0
    async with locked(target_dir):
        write_whole(target_dir / MANIFEST_FILE, msgspec.json.encode(manifest))
        small = [file for file in manifest.files if is_small_file(file.name)]
        # config.json (of GGUF: the header) comes last: where it is, all the others are
        for file in sorted(small, key=lambda file: file.name in (CONFIG_FILE, HEADER_FILE)):
            path = target_dir / file.name
            if path.is_file() and await asyncio.to_thread(hash_stream, path) == file.sha256:
                continue
            content = bytearray()
            whole = ByteRange(file=file.name, offset=0, length=file.size, stride=file.size, count=1)
            for ranges in split_ranges([whole]):
                request = RangeRequest(digest=manifest.digest, ranges=ranges)
                content += await ring.read(request, timeout_s=request_timeout_s)
            actual = _sha256(bytes(content))
            if actual != file.sha256:
                raise FleetError(
                    "E706", f"{file.name} came with hash {actual[:12]}, the manifest says {file.sha256[:12]}"
                )
            await asyncio.to_thread(write_whole, path, bytes(content))
            fetched += file.size
    return fetched


def write_whole(path: Path, content: bytes) -> None:
    """Write a file through a temporary name: on disk whole, or not at all. Raises E708."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        commit(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise_if_full(error, path, len(content))
        raise


def commit(part: Path, final: Path) -> None:
    """Give a finished, synced file its name, durably."""
    part.replace(final)
    directory = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def raise_if_full(error: OSError, path: Path, needed: int) -> None:
    """Raises E708 with free and needed bytes when that is what the error says."""
    if error.errno not in FULL_DISK:
        return
    free = shutil.disk_usage(path.parent).free
    raise FleetError(
        "E708",
        f"no room for {path.name}: {needed} bytes needed, {free} free in {path.parent}",
        hint="free some space there, or plan a smaller shard for this host",
    ) from error


class _Part:
    """A shard file under way: an open `.part` with its journal. Its methods block."""

    def __init__(self, path: Path, total: int, fd: int) -> None:
        self.path = path
        self.journal = path.with_suffix(".journal")
        self.total = total
        self.fd = fd

    def resume(self, header: bytes) -> int:
        """Bytes from the start that the journal knows and the disk still has as they were, the header at least."""
        reached = 0
        kept: list[_JournalLine] = []
        for line in self._lines():
            if line.begin != reached or not line.begin < line.end <= self.total:
                break
            data = os.pread(self.fd, line.end - line.begin, line.begin)
            if _sha256(data) != line.sha256 or (not kept and data != header):
                break
            kept.append(line)
            reached = line.end
        self.journal.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in kept))
        if not kept:
            self.write(0, header)
        return reached or len(header)

    def write(self, begin: int, data: bytes) -> None:
        """The journal follows the data: it may know less than the disk has, and `resume` checks what it says."""
        written = 0
        while written < len(data):
            written += os.pwrite(self.fd, memoryview(data)[written:], begin + written)
        line = _JournalLine(begin=begin, end=begin + len(data), sha256=_sha256(data))
        with self.journal.open("ab") as journal:
            journal.write(msgspec.json.encode(line) + b"\n")

    def finish(self) -> None:
        """The file is on disk, under its final name."""
        os.fsync(self.fd)
        commit(self.path, self.path.with_suffix(".safetensors"))
        self.journal.unlink(missing_ok=True)

    def drop(self) -> None:
        os.ftruncate(self.fd, 0)  # unlinking alone keeps the room taken until the file is closed
        self.path.unlink(missing_ok=True)
        self.journal.unlink(missing_ok=True)

    def _lines(self) -> list[_JournalLine]:
        lines: list[_JournalLine] = []
        content = self.journal.read_bytes() if self.journal.is_file() else b""
        for line in content.splitlines():
            try:
                lines.append(msgspec.json.decode(line, type=_JournalLine))
            except msgspec.DecodeError:
                break  # cut off while it was written: what it stood for is fetched again
        return lines


async def _fill(
    part: _Part,
    *,
    header: bytes,
    requests: list[list[ByteRange]],
    digest: str,
    ring: SourceRing,
    on_progress: Progress | None,
    timeout_s: float,
) -> int:
    reached = await to_end(part.resume, header)
    fetched = 0
    begin = len(header)
    for ranges in requests:
        end = begin + _num_bytes(ranges)
        if end > reached:
            data = await ring.read(RangeRequest(digest=digest, ranges=ranges), timeout_s=timeout_s)
            await to_end(part.write, begin, data)
            fetched += len(data)
        if on_progress is not None:
            on_progress(end, part.total)
        begin = end
    await to_end(part.finish)
    return fetched


@asynccontextmanager
async def _open_part(final: Path, total: int) -> AsyncIterator[_Part]:
    """The shard's `.part`, all its room taken at once, so that a full disk shows before the transfer."""
    path = final.with_suffix(".part")
    if path.is_file() and path.stat().st_size != total:
        path.unlink()
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        part = _Part(path, total, fd)
        try:
            await to_end(os.posix_fallocate, fd, 0, total)
            yield part
        except OSError as error:
            if error.errno in FULL_DISK:
                part.drop()
            raise_if_full(error, final, total)
            raise
    finally:
        os.close(fd)


async def to_end(call: Callable[..., _T], *args: object) -> _T:
    """Run in a thread and wait for its end even when cancelled: it uses a file that is closed next."""
    future = asyncio.get_running_loop().run_in_executor(None, partial(call, *args))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise


@asynccontextmanager
async def locked(directory: Path) -> AsyncIterator[None]:
    """Only one at a time writes in this directory, in this process or another; the lock falls with the process."""
    await asyncio.to_thread(os.makedirs, directory, exist_ok=True)
    fd = os.open(directory, os.O_RDONLY)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(_LOCK_POLL_S)
        yield
    finally:
        os.close(fd)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _num_bytes(ranges: Sequence[ByteRange]) -> int:
    return sum(piece.num_bytes for piece in ranges)
