"""The header of a GGUF file: metadata and tensor table, of version 2 or 3. Weights are never read here.

Format: `GGUF`, version, numbers of tensors and keys, the keys with typed values, the tensors with shape, type and
offset, padding to `general.alignment`, then the data. The file is untrusted: nothing is allocated that the file
does not have the bytes for, and every refusal names file, place and value.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from agent.errors import FleetError
from agent.models.gguf_types import GGUF_TYPE_NAMES, block_of, is_known_type, num_stored_bytes

MAGIC = b"GGUF"
MAX_HEADER_BYTES = 256 * 1024 * 1024
MAX_KEYS = 65_536
MAX_TENSORS = 262_144
MAX_STRING_BYTES = 16 * 1024 * 1024
MAX_ARRAY_ITEMS = 16 * 1024 * 1024
MAX_SHORT_ARRAY = 4096
"""Longer arrays are the tokenizer's; they are passed over unless they are asked for."""
MAX_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32
_WINDOW_BYTES = 4 * 1024 * 1024
_CACHED_HEADERS = 64
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_BOOL, _STRING, _ARRAY = 7, 8, 9
_NUMBERS: dict[int, struct.Struct] = {
    0: struct.Struct("<B"), 1: struct.Struct("<b"), 2: struct.Struct("<H"), 3: struct.Struct("<h"),
    4: _U32, 5: struct.Struct("<i"), 6: struct.Struct("<f"), 7: struct.Struct("<B"),
    10: _U64, 11: struct.Struct("<q"), 12: struct.Struct("<d"),
}  # fmt: skip


class GgufTensor(msgspec.Struct, frozen=True, kw_only=True):
    """`shape` is in torch's order (GGUF's own is the reverse); `offset` counts from the file's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


class GgufHeader(msgspec.Struct, frozen=True, kw_only=True):
    """`data_begin` is the length of the header, padding included."""

    metadata: dict[str, Any]
    tensors: tuple[GgufTensor, ...]
    data_begin: int


def read_gguf_header(path: Path) -> GgufHeader:
    """Header without the long arrays of the tokenizer, remembered while the file is unchanged.

    Raises E704 for a file that is cut off or garbage, and E702 for a version that we cannot read.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise FleetError("E704", f"{path} cannot be read: {error.strerror}") from error
    return _read_cached(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)


def read_gguf_metadata(path: Path) -> dict[str, Any]:
    """All metadata, the tokenizer's arrays among them; the file may be a header alone. Raises E702 and E704."""
    with path.open("rb") as file:
        reader = _Reader(path, file, path.stat().st_size)
        _, num_keys = _read_counts(reader)
        return _read_metadata(reader, num_keys, has_arrays=True)


@lru_cache(maxsize=_CACHED_HEADERS)
def _read_cached(path: Path, size: int, _mtime_ns: int, _inode: int) -> GgufHeader:
    with path.open("rb") as file:
        reader = _Reader(path, file, size)
        num_tensors, num_keys = _read_counts(reader)
        metadata = _read_metadata(reader, num_keys, has_arrays=False)
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 8 or alignment % 8 or alignment > 1 << 20:
            raise FleetError("E704", f"{path}: general.alignment is {alignment!r}, a multiple of 8 expected")
        table = [_read_tensor(reader) for _ in range(num_tensors)]
        data_begin = -(-reader.position // alignment) * alignment
    tensors = _place(path, table, data_begin=data_begin, alignment=alignment, size=size)
    return GgufHeader(metadata=metadata, tensors=tensors, data_begin=data_begin)


class _Reader:
    """Reads forward through a window. Every read is held against the file's size before anything is allocated."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path = path
        self._file = file
        self._end = min(size, MAX_HEADER_BYTES)
        self._size = size
        self._window = b""
        self._begin = 0
        self._at = 0

    @property
    def position(self) -> int:
        return self._begin + self._at

    def take(self, count: int, what: str) -> bytes:
        self._ensure(count, what)
        piece = self._window[self._at : self._at + count]
        self._at += count
        return piece

    def number(self, form: struct.Struct, what: str) -> Any:
        self._ensure(form.size, what)
        (value,) = form.unpack_from(self._window, self._at)
        self._at += form.size
        return value

    def string(self, limit: int, what: str) -> str:
        length = self.number(_U64, what)
        if length > limit:
            raise self.error(f"{what} is said to have {length} bytes, at most {limit} are read")
        # Tokens may be cut inside a character; what is no UTF-8 is of no use to any tokenizer either
        return self.take(length, what).decode(errors="replace")

    def skip(self, count: int, what: str) -> None:
        self._check(count, what)
        inside = min(count, len(self._window) - self._at)
        self._at += inside
        if count > inside:
            self._begin, self._window, self._at = self.position + count - inside, b"", 0

    def skip_strings(self, count: int, what: str) -> None:
        for _ in range(count):
            self.skip(self.number(_U64, what), what)

    def error(self, trouble: str) -> FleetError:
        return FleetError("E704", f"{self.path}: at byte {self.position}: {trouble}", hint="fetch the file again")

    def _check(self, count: int, what: str) -> None:
        if self.position + count > self._end:
            limit = f"the file has {self._size}" if self._end == self._size else f"headers may have {self._end}"
            raise self.error(f"{what} would end at byte {self.position + count}, {limit}")

    def _ensure(self, count: int, what: str) -> None:
        if self._at + count <= len(self._window):
            return
        self._check(count, what)
        self._begin, self._at = self.position, 0
        self._file.seek(self._begin)
        self._window = self._file.read(max(count, min(_WINDOW_BYTES, self._end - self._begin)))
        if len(self._window) < count:
            raise self.error(f"{what} was cut off while it was read")


def _read_counts(reader: _Reader) -> tuple[int, int]:
    magic = reader.take(len(MAGIC), "the magic")
    if magic != MAGIC:
        raise FleetError("E704", f"{reader.path} is not a GGUF file: it begins with {magic!r}, not {MAGIC!r}")
    version = reader.number(_U32, "the version")
    if version not in (2, 3):
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        what = f"version {version}" if swapped not in (2, 3) else f"version {swapped} in big-endian order"
        raise FleetError("E702", f"{reader.path} is GGUF of {what}; 2 and 3, little-endian, are read")
    num_tensors = reader.number(_U64, "the number of tensors")
    num_keys = reader.number(_U64, "the number of keys")
    if num_tensors > MAX_TENSORS or num_keys > MAX_KEYS:
        raise reader.error(
            f"{num_tensors} tensors and {num_keys} keys, at most {MAX_TENSORS} and {MAX_KEYS} are read"
        )
    return num_tensors, num_keys


def _read_metadata(reader: _Reader, num_keys: int, *, has_arrays: bool) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(num_keys):
        key = reader.string(65_535, "a key")
        if key in metadata:
            raise reader.error(f"the key {key} comes twice")
        kind = reader.number(_U32, f"the type of {key}")
        if kind == _ARRAY:
            value = _read_array(reader, key, has_arrays=has_arrays)
            if value is not None:
                metadata[key] = value
        else:
            metadata[key] = _value_reader(reader, kind, key)()
    return metadata


def _value_reader(reader: _Reader, kind: int, key: str) -> Callable[[], Any]:
    if kind == _STRING:
        return lambda: reader.string(MAX_STRING_BYTES, key)
    form = _NUMBERS.get(kind)
    if form is None:
        raise reader.error(f"{key} has the unknown type {kind}")
    if kind == _BOOL:
        return lambda: reader.number(form, key) != 0
    return lambda: reader.number(form, key)


def _read_array(reader: _Reader, key: str, *, has_arrays: bool) -> list[Any] | None:
    """The array's items, or None when it was passed over."""
    kind = reader.number(_U32, f"the item type of {key}")
    count = reader.number(_U64, f"the length of {key}")
    if count > MAX_ARRAY_ITEMS:
        raise reader.error(f"{key} is said to have {count} items, at most {MAX_ARRAY_ITEMS} are read")
    is_kept = has_arrays or count <= MAX_SHORT_ARRAY
    form = _NUMBERS.get(kind)
    if form is not None:
        if not is_kept:
            reader.skip(count * form.size, key)
            return None
        body = reader.take(count * form.size, key)
        return list(struct.unpack(f"<{count}{form.format[1:]}", body))
    if kind != _STRING:  # arrays of arrays are in the format, and in no model
        raise reader.error(f"{key} is an array of type {kind}, which is not read")
    if not is_kept:
        reader.skip_strings(count, key)
        return None
    return [reader.string(MAX_STRING_BYTES, key) for _ in range(count)]


def _read_tensor(reader: _Reader) -> GgufTensor:
    """One row of the table; its offset still counts from the data's begin."""
    name = reader.string(65_535, "a tensor's name")
    num_dimensions = reader.number(_U32, f"the number of dimensions of {name}")
    if not 1 <= num_dimensions <= MAX_DIMENSIONS:
        raise reader.error(f"tensor {name} has {num_dimensions} dimensions, 1 to {MAX_DIMENSIONS} expected")
    shape = tuple(reader.number(_U64, f"the shape of {name}") for _ in range(num_dimensions))[::-1]
    if min(shape) < 1 or math.prod(shape) >= 1 << 63:
        raise reader.error(f"tensor {name} has the shape {list(shape)}")
    kind = reader.number(_U32, f"the type of {name}")
    dtype = GGUF_TYPE_NAMES.get(kind)
    if dtype is None:
        raise reader.error(f"tensor {name} has the unknown type {kind}")
    offset = reader.number(_U64, f"the offset of {name}")
    return GgufTensor(name=name, dtype=dtype, shape=shape, offset=offset, length=0)


def _place(
    path: Path, table: list[GgufTensor], *, data_begin: int, alignment: int, size: int
) -> tuple[GgufTensor, ...]:
    """The table with lengths and absolute offsets, in the order of the data. Raises E704 for what cannot be so."""
    placed: list[GgufTensor] = []
    names: set[str] = set()
    covered = 0
    for tensor in sorted(table, key=lambda tensor: tensor.offset):
        if tensor.name in names:
            raise FleetError("E704", f"{path}: tensor {tensor.name} comes twice")
        names.add(tensor.name)
        if tensor.offset % alignment or tensor.offset < covered:
            raise FleetError(
                "E704",
                f"{path}: tensor {tensor.name} begins at {tensor.offset} of the data: not a multiple of "
                f"{alignment}, or inside the tensor before it, which ends at {covered}",
            )
        length = _length(path, tensor)
        covered = tensor.offset + length
        if data_begin + covered > size:
            raise FleetError(
                "E704",
                f"{path} is cut off: tensor {tensor.name} ends at byte {data_begin + covered}, the file has {size}",
                hint="fetch the file again",
            )
        placed.append(msgspec.structs.replace(tensor, offset=data_begin + tensor.offset, length=length))
    return tuple(placed)


def _length(path: Path, tensor: GgufTensor) -> int:
    """Bytes of a tensor; 0 for a type that we cannot run, which whoever needs the tensor refuses by its name."""
    if not is_known_type(tensor.dtype):
        return 0
    if tensor.shape[-1] % block_of(tensor.dtype).weights:
        raise FleetError(
            "E704", f"{path}: tensor {tensor.name} has rows of {tensor.shape[-1]}, no whole {tensor.dtype} blocks"
        )
    return num_stored_bytes(tensor.dtype, tensor.shape)
