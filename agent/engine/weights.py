"""A rank's weights: exactly the slices of `planner.shards.slice_shard`, read by byte range, converted, fused.

Nothing is mapped: bytes pass through one bounded buffer into tensors of the serving dtype, so that what is resident
is what the planner counted.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from agent.errors import FleetError
from agent.facts.model import ModelSpec, TensorEntry
from agent.models.safetensors_index import read_header
from agent.planner.shards import ShardExtent, TensorSlice, slice_shard

BLOCK_BYTES = 32 * 1024 * 1024
"""Most that is read before it is converted."""
STORED_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_FUSED_ROLES = {
    "q_proj": "qkv",
    "k_proj": "qkv",
    "v_proj": "qkv",
    "q_bias": "qkv_bias",
    "k_bias": "qkv_bias",
    "v_bias": "qkv_bias",
    "gate_proj": "gate_up",
    "up_proj": "gate_up",
}
"""Tensors that are multiplied with the same input lie in one, in the order in which `slice_shard` names them."""


def expert_role(role: str, expert: int) -> str:
    """The role of one expert's tensor: it is multiplied by itself, and only when a token asks for it."""
    return f"experts.{expert}.{role}"


class ShardWeights:
    """Tensors by role and layer (None outside the layers), fused ones under their fused role."""

    def __init__(self, tensors: dict[tuple[str, int | None], Tensor]) -> None:
        self._tensors = tensors
        self.num_bytes = sum(tensor.nbytes for tensor in tensors.values())
        """Of all that was loaded; whoever takes a weight keeps as many."""

    def __getitem__(self, key: str | tuple[str, int | None]) -> Tensor:
        return self._tensors[key if isinstance(key, tuple) else (key, None)]

    def take(self, role: str, layer: int | None = None) -> Tensor:
        """Hand a tensor over: it is held by the caller alone, who may lay it out anew."""
        return self._tensors.pop((role, layer))

    def get(self, role: str, layer: int | None = None) -> Tensor | None:
        return self._tensors.get((role, layer))


class _Source(msgspec.Struct, frozen=True, kw_only=True):
    """Where one slice's bytes lie: of `entry` in `path`, cut as the slice says or already cut."""

    piece: TensorSlice
    path: Path
    entry: TensorEntry
    is_cut: bool


def load_weights(
    spec: ModelSpec,
    extent: ShardExtent,
    *,
    shard_file: str,
    model_dir: str,
    kind: torch.dtype,
    device: torch.device,
    on_read: Callable[[int], None],
) -> ShardWeights:
    """Read every slice of the shard; `on_read` is told the bytes of each piece read.

    Raises FleetError E704 naming the tensor: missing, cut off, or of another dtype or shape than planned.
    """
    pieces = slice_shard(spec, extent)
    sources = _in_shard_file(Path(shard_file), pieces) if shard_file else _in_model(spec, Path(model_dir), pieces)
    _check(sources)
    tensors = _allocate(pieces, kind=kind, device=device)
    largest = max(source.piece.num_elements * STORED_DTYPES[source.entry.dtype].itemsize for source in sources)
    buffer = bytearray(min(BLOCK_BYTES, largest))
    filled: dict[tuple[str, int | None], int] = {}
    for source in sources:
        key = _key(source.piece)
        begin = filled.get(key, 0)
        end = begin + source.piece.sliced_shape[0]
        _read(source, tensors[key][begin:end], buffer, on_read)
        filled[key] = end
    return ShardWeights(tensors)


def _key(piece: TensorSlice) -> tuple[str, int | None]:
    role = _FUSED_ROLES.get(piece.role, piece.role)
    return (role if piece.expert is None else expert_role(role, piece.expert)), piece.layer


def _in_shard_file(path: Path, pieces: tuple[TensorSlice, ...]) -> tuple[_Source, ...]:
    entries = {entry.name: entry for entry in _header(path)}
    return tuple(
        _Source(piece=piece, path=path, entry=_find(entries, piece, path), is_cut=True) for piece in pieces
    )


def _in_model(spec: ModelSpec, model_dir: Path, pieces: tuple[TensorSlice, ...]) -> tuple[_Source, ...]:
    entries = {entry.name: entry for entry in spec.tensors}
    found = [_find(entries, piece, model_dir) for piece in pieces]
    return tuple(
        _Source(piece=piece, path=model_dir / entry.file, entry=entry, is_cut=False)
        for piece, entry in zip(pieces, found, strict=True)
    )


def _header(path: Path) -> tuple[TensorEntry, ...]:
    try:
        return read_header(path)
    except OSError as error:
        raise FleetError(
            "E704", f"{path} cannot be read: {error.strerror}", hint="fetch the shard again"
        ) from error


def _find(entries: dict[str, TensorEntry], piece: TensorSlice, where: Path) -> TensorEntry:
    entry = entries.get(piece.name)
    if entry is None:
        raise FleetError("E704", f"tensor {piece.name} is missing from {where}", hint="fetch the shard again")
    return entry


def _check(sources: tuple[_Source, ...]) -> None:
    sizes: dict[Path, int] = {}
    for source in sources:
        piece, entry, path = source.piece, source.entry, source.path
        want = piece.sliced_shape if source.is_cut else piece.shape
        if entry.dtype not in STORED_DTYPES:
            raise FleetError(
                "E704", f"tensor {piece.name} in {path} has dtype {entry.dtype}; F32, BF16 and F16 can be served"
            )
        if tuple(entry.shape) != want:
            raise FleetError(
                "E704", f"tensor {piece.name} in {path} has shape {list(entry.shape)}, planned was {list(want)}"
            )
        if path not in sizes:
            try:
                sizes[path] = path.stat().st_size
            except OSError as error:
                raise FleetError("E704", f"{path} cannot be read: {error.strerror}") from error
        if entry.offset + entry.length > sizes[path]:
            raise FleetError(
                "E704",
                f"{path} is cut off: tensor {piece.name} ends at byte {entry.offset + entry.length}, "
                f"the file has {sizes[path]}",
                hint="fetch the file again",
            )


def _allocate(
    pieces: tuple[TensorSlice, ...], *, kind: torch.dtype, device: torch.device
) -> dict[tuple[str, int | None], Tensor]:
    shapes: dict[tuple[str, int | None], tuple[int, ...]] = {}
    for piece in pieces:
        rows, *rest = piece.sliced_shape
        before = shapes.get(_key(piece))
        shapes[_key(piece)] = (rows + (before[0] if before else 0), *rest)
    return {key: torch.empty(shape, dtype=kind, device=device) for key, shape in shapes.items()}


def _read(source: _Source, target: Tensor, buffer: bytearray, on_read: Callable[[int], None]) -> None:
    """Fill `target` with the slice, as many rows at a time as the buffer holds."""
    piece, stored = source.piece, STORED_DTYPES[source.entry.dtype]
    row_shape = target.shape[1:]
    row_bytes = math.prod(row_shape) * stored.itemsize
    offset, stride = source.entry.offset, row_bytes
    if not source.is_cut and piece.dim is not None:
        full_row_bytes = math.prod(piece.shape[1:]) * stored.itemsize
        begin_bytes = piece.begin * (full_row_bytes if piece.dim == 0 else stored.itemsize)
        offset, stride = offset + begin_bytes, full_row_bytes
    rows_per_block = max(1, len(buffer) // row_bytes)
    if row_bytes > len(buffer):
        buffer = bytearray(row_bytes)
    view = memoryview(buffer)
    fd = os.open(source.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for row in range(0, target.shape[0], rows_per_block):
            rows = min(rows_per_block, target.shape[0] - row)
            _read_rows(
                fd, view, source, offset=offset + row * stride, row_bytes=row_bytes, stride=stride, rows=rows
            )
            block = torch.frombuffer(buffer, dtype=stored, count=rows * math.prod(row_shape))
            target[row : row + rows].copy_(block.view(rows, *row_shape))
            on_read(rows * row_bytes)
    except OSError as error:
        raise FleetError("E704", f"{source.path} cannot be read: {error.strerror}") from error
    finally:
        os.close(fd)


def _read_rows(
    fd: int, view: memoryview, source: _Source, *, offset: int, row_bytes: int, stride: int, rows: int
) -> None:
    if stride == row_bytes:
        _read_exactly(fd, view[: rows * row_bytes], offset, source)
        return
    for row in range(rows):
        _read_exactly(fd, view[row * row_bytes : (row + 1) * row_bytes], offset + row * stride, source)


def _read_exactly(fd: int, view: memoryview, offset: int, source: _Source) -> None:
    done = 0
    while done < len(view):
        count = os.preadv(fd, [view[done:]], offset + done)
        if count == 0:
            raise FleetError(
                "E704",
                f"{source.path} is cut off inside tensor {source.entry.name}, at byte {offset + done}",
                hint="fetch the file again",
            )
        done += count
