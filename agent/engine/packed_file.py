"""A shard as its kernels want it, in one file: written once, front to back, then mapped.

    magic | parts, each on a page of its own | header (msgpack) | where the header is, and its sha256

The header lies at the end, so that parts are written as they are made. It is what is checked: a file that was cut
off or comes from elsewhere is refused, its parts are taken as they are.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import mmap
import os
import struct
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import torch
from torch import Tensor

from agent.engine.linear.choose import KERNELS
from agent.engine.linear.kernel import Kernel, KernelShape
from agent.engine.linear.opaque import bytes_of, layout_of, wrap
from agent.engine.stored_tensors import TensorKey

_MAGIC = b"odpack01"
_FOOTER = struct.Struct("<QQ32s")
_PAGE = 4096
_HUGE_PAGES = 14
"""`MADV_HUGEPAGE`: what is read into the page cache through this mapping comes in pages of 2 MiB, where the
filesystem has them (ext4 since Linux 6.16, xfs). A core streams weights a few hundredths faster through them."""
_POPULATE_READ = 22
"""`MADV_POPULATE_READ` (Linux 5.14): pages are mapped at once instead of fault by fault."""


class PackedFileError(Exception):
    """The file is not what was written: it is to be made anew."""


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int
    layout: bytes
    """Of an opaque tensor; empty for a plain one."""


class _KernelEntry(msgspec.Struct, frozen=True, kw_only=True):
    role: str
    layer: int | None
    kernel: str
    outputs: int
    inputs: int
    dtype: str
    parts: dict[str, _Part]


class _TensorEntry(msgspec.Struct, frozen=True, kw_only=True):
    role: str
    layer: int | None
    part: _Part
    is_looked_up: bool
    """Only rows of it are asked for now and then: they are read when they are."""


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    key: str
    kernels: tuple[_KernelEntry, ...]
    tensors: tuple[_TensorEntry, ...]


class PackedFileWriter:
    """Writes beside `path` and renames onto it: whoever finds the file finds a whole one."""

    def __init__(self, path: Path, *, key: str) -> None:
        self._path = path
        self._key = key
        self._part_path = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._kernels: list[_KernelEntry] = []
        self._tensors: list[_TensorEntry] = []

    def __enter__(self) -> Self:
        self._file = self._part_path.open("wb")
        fcntl.flock(self._file, fcntl.LOCK_EX)  # what is not locked is cleared away
        self._file.write(_MAGIC)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._file.close()
            self._part_path.unlink(missing_ok=True)

    def add_kernel(self, key: TensorKey, kernel: Kernel) -> None:
        shape = kernel.shape
        self._kernels.append(
            _KernelEntry(
                role=key[0],
                layer=key[1],
                kernel=shape.kernel,
                outputs=shape.outputs,
                inputs=shape.inputs,
                dtype=_name(shape.dtype),
                parts={name: self._add(part) for name, part in kernel.parts.items()},
            )
        )

    def add_tensor(self, key: TensorKey, tensor: Tensor, *, is_looked_up: bool) -> None:
        entry = _TensorEntry(role=key[0], layer=key[1], part=self._add(tensor), is_looked_up=is_looked_up)
        self._tensors.append(entry)

    def _add(self, tensor: Tensor) -> _Part:
        offset = -(-self._file.tell() // _PAGE) * _PAGE
        self._file.seek(offset)
        length = self._file.write(bytes_of(tensor))
        return _Part(
            dtype=_name(tensor.dtype),
            shape=tuple(tensor.shape),
            offset=offset,
            length=length,
            layout=layout_of(tensor),
        )

    def _finish(self) -> None:
        header = msgspec.msgpack.encode(
            _Header(key=self._key, kernels=tuple(self._kernels), tensors=tuple(self._tensors))
        )
        offset = self._file.tell()
        self._file.write(header + _FOOTER.pack(offset, len(header), hashlib.sha256(header).digest()))
        self._file.flush()
        os.fsync(self._file.fileno())
        # Written pages are small ones. Forgotten, they are read anew through the mapping that asks for large ones.
        os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self._part_path.rename(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class PackedFile:
    """A mapped file. Its tensors stand on `mapping`, which must outlive them."""

    def __init__(self, fd: int, *, key: str) -> None:
        """Raises PackedFileError when it is damaged or holds something else, OSError when it cannot be read."""
        self._header = _read_header(fd)
        if self._header.key != key:
            raise PackedFileError(f"it holds {self._header.key}, not {key}")
        self.mapping = mmap.mmap(fd, 0, access=mmap.ACCESS_COPY)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self.mapping))
        self._advise(0, len(self.mapping), _HUGE_PAGES)  # no matter when it cannot be had
        looked_up = {entry.part.offset for entry in self._header.tensors if entry.is_looked_up}
        for part in self._parts():
            if part.offset not in looked_up:
                self._populate(part)

    @property
    def num_bytes(self) -> int:
        return sum(part.length for part in self._parts())

    def kernels(self) -> dict[TensorKey, Kernel]:
        made: dict[TensorKey, Kernel] = {}
        for entry in self._header.kernels:
            shape = KernelShape(
                kernel=entry.kernel,
                outputs=entry.outputs,
                inputs=entry.inputs,
                dtype=_dtype(entry.dtype),
                device=torch.device("cpu"),
            )
            parts = {name: self._tensor(part) for name, part in entry.parts.items()}
            kernel = KERNELS[entry.kernel].of_parts(parts, shape)
            kernel.stands_on = self.mapping
            made[entry.role, entry.layer] = kernel
        return made

    def tensors(self) -> dict[TensorKey, Tensor]:
        return {(entry.role, entry.layer): self._tensor(entry.part) for entry in self._header.tensors}

    def looked_up(self) -> frozenset[TensorKey]:
        return frozenset((entry.role, entry.layer) for entry in self._header.tensors if entry.is_looked_up)

    def _parts(self) -> list[_Part]:
        of_kernels = [part for entry in self._header.kernels for part in entry.parts.values()]
        return of_kernels + [entry.part for entry in self._header.tensors]

    def _tensor(self, part: _Part) -> Tensor:
        dtype = _dtype(part.dtype)
        if part.layout:
            return wrap(self._address + part.offset, shape=part.shape, dtype=dtype, layout=part.layout)
        count = part.length // dtype.itemsize
        return torch.frombuffer(self.mapping, dtype=dtype, count=count, offset=part.offset).view(part.shape)

    def _populate(self, part: _Part) -> None:
        """Have its pages now: memory and disk that fail must fail while loading, not in the middle of a stream."""
        if not self._advise(part.offset, part.length, _POPULATE_READ):
            sum(self.mapping[part.offset : part.offset + part.length : _PAGE])

    def _advise(self, offset: int, length: int, advice: int) -> bool:
        """Whether the kernel took it."""
        address = ctypes.c_void_p(self._address + offset)
        return not ctypes.CDLL(None).madvise(address, ctypes.c_size_t(length), advice)


def _read_header(fd: int) -> _Header:
    size = os.fstat(fd).st_size
    if size < len(_MAGIC) + _FOOTER.size or os.pread(fd, len(_MAGIC), 0) != _MAGIC:
        raise PackedFileError(f"its {size} bytes do not begin as a packed shard")
    offset, length, digest = _FOOTER.unpack(os.pread(fd, _FOOTER.size, size - _FOOTER.size))
    if offset + length + _FOOTER.size != size:
        raise PackedFileError(f"it has {size} bytes, written were {offset + length + _FOOTER.size}")
    text = os.pread(fd, length, offset)
    if hashlib.sha256(text).digest() != digest:
        raise PackedFileError("its header has another sha256 than was written")
    try:
        return msgspec.msgpack.decode(text, type=_Header)
    except msgspec.DecodeError as error:
        raise PackedFileError(f"its header cannot be read: {error}") from error


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype
