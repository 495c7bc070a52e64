"""Slices of tensors -> ranges of bytes in the model's files, and the bytes of such ranges for who serves them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from agent.errors import FleetError
from agent.facts.model import ModelSpec, TensorEntry
from agent.models.files import FilePart, locate
from agent.models.gguf_types import stored_slice
from agent.models.manifest import is_model_file
from agent.planner.shards import TensorSlice
from agent.wire.agent import ByteRange

MAX_REQUEST_BYTES = 8 * 1024 * 1024
"""Most bytes that one RangeRequest may ask for: what both ends may have to hold."""
MAX_REQUEST_RANGES = 4096
READ_PIECE_BYTES = 1024 * 1024


def ranges_of(spec: ModelSpec, slices: Iterable[TensorSlice]) -> list[ByteRange]:
    """One range per slice, in order: whole tensors and cuts of rows are contiguous, cuts of columns strided."""
    entries = {entry.name: entry for entry in spec.tensors}
    return [range_of(entries[piece.name], piece) for piece in slices]


def range_of(entry: TensorEntry, piece: TensorSlice) -> ByteRange:
    """Where a slice's bytes are. `count` pieces of `length`, `stride` apart; row-major, any number of dims.

    Of a quantised tensor they are whole blocks: those at the ends of a cut may have more than the slice.
    """
    found = stored_slice(entry, piece)
    return ByteRange(
        file=entry.file, offset=found.offset, length=found.length, stride=found.stride, count=found.count
    )


def split_ranges(ranges: Iterable[ByteRange], limit: int = MAX_REQUEST_BYTES) -> Iterator[list[ByteRange]]:
    """The same bytes in the same order, as requests of at most `limit` bytes and MAX_REQUEST_RANGES ranges."""
    request: list[ByteRange] = []
    room = limit
    for whole in ranges:
        for piece in _split(whole, limit):
            if request and (piece.num_bytes > room or len(request) == MAX_REQUEST_RANGES):
                yield request
                request, room = [], limit
            request.append(piece)
            room -= piece.num_bytes
    if request:
        yield request


def check_ranges(model_dir: Path, ranges: Iterable[ByteRange], *, limit: int = MAX_REQUEST_BYTES) -> int:
    """Bytes that the ranges have. Raises E709 for a name, a place or an amount that cannot be served."""
    total = 0
    sizes: dict[str, int] = {}
    for piece in ranges:
        if not is_model_file(piece.file):
            raise FleetError("E709", f"{piece.file!r} is no model file")
        if piece.file not in sizes:
            sizes[piece.file] = locate(model_dir, piece.file).length
        size = sizes[piece.file]
        if min(piece.offset, piece.length, piece.count) < 0 or (piece.count > 1 and piece.stride < piece.length):
            raise FleetError("E709", f"{piece.file}: a range with negative or overlapping pieces: {piece}")
        end = piece.offset + max(piece.count - 1, 0) * piece.stride + piece.length
        if end > size:
            raise FleetError("E709", f"{piece.file} has {size} bytes, a range up to {end} was asked for")
        total += piece.num_bytes
    if total > limit:
        raise FleetError("E709", f"{total} bytes were asked for at once, at most {limit} are given")
    return total


def read_ranges(model_dir: Path, ranges: Iterable[ByteRange], *, limit: int = MAX_REQUEST_BYTES) -> Iterator[bytes]:
    """The ranges' bytes in order, in pieces of at most READ_PIECE_BYTES. Blocks. Raises E709 before the first.

    Raises E704 when a file is shorter than it was a moment ago.
    """
    ranges = list(ranges)
    check_ranges(model_dir, ranges, limit=limit)
    return _read(model_dir, ranges)


def hash_ranges(model_dir: Path, ranges: Iterable[ByteRange], *, limit: int = MAX_REQUEST_BYTES) -> str:
    """sha256 of what `read_ranges` gives, in hex: the answer's header, which goes out before its body."""
    digest = hashlib.sha256()
    for piece in read_ranges(model_dir, ranges, limit=limit):
        digest.update(piece)
    return digest.hexdigest()


def _split(whole: ByteRange, limit: int) -> Iterator[ByteRange]:
    if whole.num_bytes <= limit:
        yield whole
    elif whole.length <= limit:
        per_request = limit // whole.length
        for first in range(0, whole.count, per_request):
            yield ByteRange(
                file=whole.file,
                offset=whole.offset + first * whole.stride,
                length=whole.length,
                stride=whole.stride,
                count=min(per_request, whole.count - first),
            )
    else:
        for index in range(whole.count):
            for begin in range(0, whole.length, limit):
                length = min(limit, whole.length - begin)
                offset = whole.offset + index * whole.stride + begin
                yield ByteRange(file=whole.file, offset=offset, length=length, stride=length, count=1)


def _read(model_dir: Path, ranges: list[ByteRange]) -> Iterator[bytes]:
    parts: dict[str, FilePart] = {}
    for piece in ranges:
        if not piece.num_bytes:
            continue
        if piece.file not in parts:
            parts[piece.file] = locate(model_dir, piece.file)
        part = parts[piece.file]
        with part.path.open("rb") as file:
            # Rows of a narrow cut are a few KiB: gathered, they make pieces worth sending
            gathered = bytearray()
            for index in range(piece.count):
                file.seek(part.offset + piece.offset + index * piece.stride)
                missing = piece.length
                while missing:
                    data = file.read(min(missing, READ_PIECE_BYTES - len(gathered)))
                    if not data:
                        raise FleetError("E704", f"{part.path} was cut off while it was read")
                    gathered += data
                    missing -= len(data)
                    if len(gathered) == READ_PIECE_BYTES:
                        yield bytes(gathered)
                        gathered.clear()
            if gathered:
                yield bytes(gathered)
