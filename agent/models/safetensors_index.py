"""The headers of a model's safetensors files -> one index of its tensors. Weights are never read here.

Format: 8 bytes little-endian header length, that much JSON, then the data, which the tensors cover exactly.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import FleetError
from agent.facts.model import TensorEntry

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100 * 1024 * 1024
"""The safetensors library's own limit."""
DTYPE_SIZES: dict[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip
_LENGTH = struct.Struct("<Q")


class _HeaderTensor(msgspec.Struct, frozen=True, kw_only=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def weight_files(model_dir: Path) -> tuple[str, ...]:
    """Names of the safetensors files that make up the model, sorted.

    Raises E701 when there are none, E702 when there is only pickle, E704 when the index is broken.
    """
    if (model_dir / SINGLE_FILE).is_file():
        return (SINGLE_FILE,)
    if (model_dir / INDEX_FILE).is_file():
        return tuple(sorted(set(_weight_map(model_dir).values())))
    if not model_dir.is_dir():
        raise FleetError("E701", f"{model_dir} is not a directory", hint="give the directory that has config.json")
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in model_dir.glob(pattern))
    if pickles:
        raise FleetError(
            "E702",
            f"{model_dir} has its weights as pickle ({pickles[0]}), which is never loaded",
            hint="convert them: model.save_pretrained(directory, safe_serialization=True) in transformers",
        )
    raise FleetError("E701", f"no weights in {model_dir}: neither {SINGLE_FILE} nor {INDEX_FILE}")


def read_index(model_dir: Path) -> tuple[TensorEntry, ...]:
    """Every tensor of a model directory, sorted by name.

    Raises E701, E702 (`weight_files`) or E704 naming the file: missing, cut off, garbage, or a tensor twice.
    """
    files = weight_files(model_dir)
    missing = [name for name in files if not (model_dir / name).is_file()]
    if missing:
        raise FleetError(
            "E704",
            f"{len(missing)} of {len(files)} weight files are missing from {model_dir}: {', '.join(missing)}",
            hint="copy them there; the download was probably cut off",
        )
    entries: dict[str, TensorEntry] = {}
    for name in files:
        for entry in read_header(model_dir / name):
            if entry.name in entries:
                raise FleetError("E704", f"tensor {entry.name} is in both {entries[entry.name].file} and {name}")
            entries[entry.name] = entry
    if (model_dir / SINGLE_FILE).is_file():
        return tuple(entries[name] for name in sorted(entries))
    for tensor, name in _weight_map(model_dir).items():
        if tensor not in entries or entries[tensor].file != name:
            raise FleetError("E704", f"{INDEX_FILE} promises tensor {tensor} in {name}, which does not have it")
    return tuple(entries[name] for name in sorted(entries))


def read_header(path: Path) -> tuple[TensorEntry, ...]:
    """The tensors of one safetensors file in the order of their data; offsets count from the file's start.

    Raises E704 with both numbers when the file is shorter or longer than its header says.
    """
    size = path.stat().st_size
    if size < _LENGTH.size:
        raise FleetError("E704", f"{path} has {size} bytes, too few for a safetensors header")
    with path.open("rb") as file:
        (header_length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        if header_length > MAX_HEADER_BYTES or _LENGTH.size + header_length > size:
            raise FleetError(
                "E704",
                f"{path} is not safetensors or is cut off: its header is said to have {header_length} bytes, "
                f"the file has {size}",
            )
        header = file.read(header_length)
    data_begin = _LENGTH.size + header_length
    tensors = _decode_header(path, header)
    entries = []
    covered = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].data_offsets, item[0])):
        begin, end = tensor.data_offsets
        _check_tensor(path, name, tensor)
        if begin != covered:
            what = "overlaps the tensor before it" if begin < covered else "leaves a gap before it"
            raise FleetError("E704", f"{path}: tensor {name} {what}: it begins at {begin}, not at {covered}")
        covered = end
        entries.append(
            TensorEntry(
                name=name,
                file=path.name,
                dtype=tensor.dtype,
                shape=tensor.shape,
                offset=data_begin + begin,
                length=end - begin,
            )
        )
    if data_begin + covered != size:
        what = "is cut off" if data_begin + covered > size else "has bytes after its last tensor"
        raise FleetError(
            "E704",
            f"{path} {what}: its header says {data_begin + covered} bytes, the file has {size}",
            hint="fetch the file again",
        )
    return tuple(entries)


def encode_header(tensors: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str]) -> bytes:
    """Header of a safetensors file that holds these tensors (name to dtype and shape), data in this order."""
    header: dict[str, Any] = {"__metadata__": metadata}
    begin = 0
    for name, (dtype, shape) in tensors.items():
        end = begin + math.prod(shape) * DTYPE_SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (begin, end)}
        begin = end
    body = msgspec.json.encode(header)
    body += b" " * (-len(body) % 8)  # data aligned to 8 bytes can be mapped without a copy
    return _LENGTH.pack(len(body)) + body


def _weight_map(model_dir: Path) -> dict[str, str]:
    path = model_dir / INDEX_FILE
    try:
        content = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        weight_map = msgspec.convert(content.get("weight_map"), dict[str, str])
    except msgspec.DecodeError as error:
        raise FleetError("E704", f"{path} is not the index of a sharded model: {error}") from error
    for name in weight_map.values():
        if name != Path(name).name or not name.endswith(".safetensors"):
            raise FleetError("E704", f"{path} names {name!r}, which is not a safetensors file beside it")
    return weight_map


def _decode_header(path: Path, header: bytes) -> dict[str, _HeaderTensor]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if len(names) != len(set(names)):
            twice = next(name for name in names if names.count(name) > 1)
            raise FleetError("E704", f"{path} names {twice} twice in its header")
        return dict(pairs)

    try:
        # not msgspec's own decoder: it keeps the last of two equal keys in silence
        content = json.loads(header, object_pairs_hook=unique)
        if isinstance(content, dict):
            content.pop("__metadata__", None)
        return msgspec.convert(content, dict[str, _HeaderTensor])
    except (ValueError, RecursionError) as error:
        raise FleetError("E704", f"{path} has a garbage header: {error}", hint="fetch the file again") from error


def _check_tensor(path: Path, name: str, tensor: _HeaderTensor) -> None:
    begin, end = tensor.data_offsets
    if tensor.dtype not in DTYPE_SIZES:
        raise FleetError("E704", f"{path}: tensor {name} has the unknown dtype {tensor.dtype}")
    want = math.prod(tensor.shape) * DTYPE_SIZES[tensor.dtype]
    if min(tensor.shape, default=0) < 0 or begin < 0 or end - begin != want:
        raise FleetError(
            "E704",
            f"{path}: tensor {name} has {end - begin} bytes at {begin}, {want} expected for "
            f"{tensor.dtype} {list(tensor.shape)}",
        )
