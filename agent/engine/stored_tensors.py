"""The tensors of a shard as they are stored: exactly the slices of `planner.shards.slice_shard`, fused.

They are read by byte range, through one bounded buffer, into tensors of the serving dtype.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from agent.engine.gguf_blocks import dequantise, unpair_rows
from agent.errors import FleetError
from agent.facts.model import DTYPE_BYTES, ModelSpec, StoredForm, TensorEntry
from agent.models.files import locate
from agent.models.gguf_types import QUANTISED_TYPES, StoredSlice, stored_slice
from agent.models.safetensors_index import read_header
from agent.planner.shards import ShardExtent, TensorSlice, slice_shard

TensorKey = tuple[str, int | None]
"""Role, `qkv` and `gate_up` for fused ones, and layer; None outside the layers."""
BLOCK_BYTES = 32 * 1024 * 1024
"""Most that is read before it is converted."""
QUANTISED_BYTES = 1024 * 1024
"""Likewise of quantised blocks: their float32 values and what comes between take sixteen times as much."""
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


class _Source(msgspec.Struct, frozen=True, kw_only=True):
    """Where one slice's bytes lie: of `entry` in `path`, cut as the slice says or already cut.

    `blocks` are the rows of a quantised tensor of type `dtype`, wherever they lie.
    """

    piece: TensorSlice
    path: Path
    entry: TensorEntry
    is_cut: bool
    dtype: str
    form: StoredForm
    blocks: StoredSlice | None


def read_tensors(
    spec: ModelSpec,
    extent: ShardExtent,
    *,
    shard_file: str,
    model_dir: str,
    kind: torch.dtype,
    device: torch.device,
    on_read: Callable[[int], None],
) -> Iterator[tuple[TensorKey, Tensor]]:
    """The shard's tensors one by one, fused ones whole, vectors before matrices; none is held here once it is out.

    `on_read` is told the bytes of each piece read. Raises FleetError E704 naming the tensor: missing, cut off, or
    of another dtype or shape than planned.
    """
    pieces = slice_shard(spec, extent)
    if shard_file:
        sources = _in_shard_file(spec, Path(shard_file), pieces)
    else:
        sources = _in_model(spec, Path(model_dir), pieces)
    _check(sources)
    by_key: dict[TensorKey, list[_Source]] = {}
    for source in sources:
        by_key.setdefault(key_of(source.piece), []).append(source)
    buffer = bytearray(min(BLOCK_BYTES, max(_num_bytes(source) for source in sources)))
    for key in sorted(by_key, key=lambda key: len(by_key[key][0].piece.shape)):  # stable
        yield key, _read_fused(spec, by_key[key], buffer, kind=kind, device=device, on_read=on_read)


def _read_fused(
    spec: ModelSpec,
    sources: list[_Source],
    buffer: bytearray,
    *,
    kind: torch.dtype,
    device: torch.device,
    on_read: Callable[[int], None],
) -> Tensor:
    """The sources' rows behind each other."""
    row_shape = sources[0].piece.sliced_shape[1:]
    num_rows = sum(source.piece.sliced_shape[0] for source in sources)
    tensor = torch.empty((num_rows, *row_shape), dtype=kind, device=device)
    begin = 0
    for source in sources:
        end = begin + source.piece.sliced_shape[0]
        target = tensor[begin:end]
        _read(source, target, buffer, on_read)
        if source.form == "paired_rows":
            target.copy_(unpair_rows(target, spec.head_size))
        begin = end
    return tensor


def key_of(piece: TensorSlice) -> TensorKey:
    """Where a slice's rows lie: in a tensor of its own, or behind those that it is fused with."""
    role = _FUSED_ROLES.get(piece.role, piece.role)
    return (role if piece.expert is None else expert_role(role, piece.expert)), piece.layer


def _in_shard_file(spec: ModelSpec, path: Path, pieces: tuple[TensorSlice, ...]) -> tuple[_Source, ...]:
    held = {entry.name: entry for entry in _header(path)}
    originals = {entry.name: entry for entry in spec.tensors}
    sources = []
    for piece in pieces:
        entry, original = _find(held, piece, path), originals.get(piece.name)
        blocks = None
        if original is not None and original.dtype in QUANTISED_TYPES:
            cut = stored_slice(original, piece)
            blocks = msgspec.structs.replace(cut, offset=entry.offset, stride=cut.row_bytes)
        sources.append(_source(piece, path, entry, original, is_cut=True, blocks=blocks))
    return tuple(sources)


def _in_model(spec: ModelSpec, model_dir: Path, pieces: tuple[TensorSlice, ...]) -> tuple[_Source, ...]:
    entries = {entry.name: entry for entry in spec.tensors}
    paths: dict[str, Path] = {}
    sources = []
    for piece in pieces:
        entry = _find(entries, piece, model_dir)
        if entry.file not in paths:
            paths[entry.file] = _locate(model_dir, entry.file)
        blocks = None
        if entry.dtype in QUANTISED_TYPES and entry.shape == piece.shape:
            blocks = stored_slice(entry, piece)
        sources.append(_source(piece, paths[entry.file], entry, entry, is_cut=False, blocks=blocks))
    return tuple(sources)


def _source(
    piece: TensorSlice,
    path: Path,
    entry: TensorEntry,
    original: TensorEntry | None,
    *,
    is_cut: bool,
    blocks: StoredSlice | None,
) -> _Source:
    """`entry` is the tensor in the file at `path`, `original` the model's own that it was cut from."""
    dtype = original.dtype if original is not None and blocks is not None else entry.dtype
    form: StoredForm = original.form if original is not None else "plain"
    return _Source(piece=piece, path=path, entry=entry, is_cut=is_cut, dtype=dtype, form=form, blocks=blocks)


def _locate(model_dir: Path, file: str) -> Path:
    try:
        return locate(model_dir, file).path
    except (OSError, FleetError) as error:
        raise FleetError("E704", f"{model_dir / file} cannot be read: {error}") from error


def _num_bytes(source: _Source) -> int:
    if source.blocks is not None:
        return min(QUANTISED_BYTES, source.blocks.row_bytes * source.piece.sliced_shape[0])
    return source.piece.num_elements * STORED_DTYPES[source.dtype].itemsize


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
        if source.blocks is not None and source.is_cut:
            want = (piece.sliced_shape[0], source.blocks.row_bytes)
        if tuple(entry.shape) != want:
            raise FleetError(
                "E704", f"tensor {piece.name} in {path} has shape {list(entry.shape)}, planned was {list(want)}"
            )
        if source.blocks is None and source.dtype not in STORED_DTYPES:
            raise FleetError(
                "E704", f"tensor {piece.name} in {path} has dtype {entry.dtype}; F32, BF16 and F16 can be served"
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


def _read(source: _Source, target: Tensor, buffer: bytearray, on_read: Callable[[int], None]) -> None:
    """Fill `target` with the slice, as many rows at a time as the buffer holds."""
    offset, row_bytes, stride = _rows(source, target)
    room = len(buffer) if source.blocks is None else min(len(buffer), QUANTISED_BYTES)
    rows_per_block = max(1, room // row_bytes)
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
            values = _values(source, buffer, rows=rows, row_shape=target.shape[1:])
            target[row : row + rows].copy_(values)
            on_read(rows * row_bytes if source.blocks is None else values.numel() * DTYPE_BYTES["bfloat16"])
    except OSError as error:
        raise FleetError("E704", f"{source.path} cannot be read: {error.strerror}") from error
    finally:
        os.close(fd)


def _rows(source: _Source, target: Tensor) -> tuple[int, int, int]:
    """Where the first of the target's rows begins, the bytes of each, and how far apart they are."""
    if source.blocks is not None:
        blocks = source.blocks
        return blocks.offset, blocks.row_bytes, blocks.row_bytes if blocks.count == 1 else blocks.stride
    piece, itemsize = source.piece, STORED_DTYPES[source.dtype].itemsize
    row_bytes = math.prod(target.shape[1:]) * itemsize
    if source.is_cut or piece.dim is None:
        return source.entry.offset, row_bytes, row_bytes
    full_row_bytes = math.prod(piece.shape[1:]) * itemsize
    begin_bytes = piece.begin * (full_row_bytes if piece.dim == 0 else itemsize)
    return source.entry.offset + begin_bytes, row_bytes, full_row_bytes


def _values(source: _Source, buffer: bytearray, *, rows: int, row_shape: torch.Size) -> Tensor:
    """What the first `rows` rows in the buffer stand for."""
    blocks = source.blocks
    if blocks is not None:
        raw = torch.frombuffer(buffer, dtype=torch.uint8, count=rows * blocks.row_bytes)
        values = dequantise(raw.view(rows, blocks.row_bytes), source.dtype)
        return values[:, blocks.skip : blocks.skip + row_shape[0]]
    kind = STORED_DTYPES[source.dtype]
    plain = torch.frombuffer(buffer, dtype=kind, count=rows * math.prod(row_shape)).view(rows, *row_shape)
    return plain.float() - 1 if source.form == "plus_one" else plain


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
