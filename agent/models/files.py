"""What a model's path stands for, and where the bytes of each of its files are.

A path is a directory in Hugging Face's layout; a GGUF file, alone or the first of a split set; a directory with
one such model; or a manifest in Ollama's store. A model's files have plain names of their own, whatever they are
called on this disk: a GGUF model has `model.gguf` (or `model-00001-of-00003.gguf` …), and `header.gguf`, which is
the beginning of the first file: all that serving needs of it. What Ollama keeps beside the weights comes as
`ollama_*` files.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from agent.errors import FleetError
from agent.models import ollama_store
from agent.models.gguf_header import MAGIC, read_gguf_header

HEADER_FILE = "header.gguf"
WHOLE_FILE = "model.gguf"
OLLAMA_FILES = {"template": "ollama_template", "params": "ollama_params", "system": "ollama_system"}
"""The layers of an Ollama model that shape its answers, and what we call them."""
MAX_OLLAMA_TEXT_BYTES = 1024 * 1024
CONFIG_FILE = "config.json"
_SPLIT = re.compile(r"(?P<stem>.*)-(?P<index>\d{5})-of-(?P<count>\d{5})\.gguf")
MAX_SPLITS = 1024


class FilePart(msgspec.Struct, frozen=True, kw_only=True):
    """`length` bytes of a file on this host, from `offset` on. `sha256` is what the store promises, if it does."""

    path: Path
    offset: int
    length: int
    sha256: str = ""


def is_gguf_model(path: Path) -> bool:
    """True of a path that stands for a GGUF model; a directory in Hugging Face's layout is none."""
    if path.is_file():
        return path.suffix == ".gguf" or ollama_store.store_of(path) is not None or _has_magic(path)
    return path.is_dir() and not (path / CONFIG_FILE).is_file() and bool(gguf_models_in(path))


def is_model(path: Path) -> bool:
    """Whether something at this path may be run; what is wrong with it, its headers tell."""
    return (path / CONFIG_FILE).is_file() or is_gguf_model(path)


def gguf_models_in(directory: Path) -> tuple[Path, ...]:
    """The first file of every GGUF model in a directory, sorted; projectors for images are none."""
    found = []
    for path in sorted(directory.glob("*.gguf")):
        match = _SPLIT.fullmatch(path.name)
        is_first = match is None or int(match["index"]) == 1
        if path.is_file() and is_first and "mmproj" not in path.name and path.name != HEADER_FILE:
            found.append(path)
    return tuple(found)


def gguf_files(path: Path) -> dict[str, FilePart]:
    """All files of a GGUF model by their names in its manifest, weights in order first.

    Raises E701 when there is no single model at the path, E702 and E704 when it cannot be read.
    """
    weights = _weights(path)
    first = next(iter(weights.values()))
    header_length = min(read_gguf_header(first.path).data_begin, first.length)
    files = weights | {HEADER_FILE: FilePart(path=first.path, offset=0, length=header_length)}
    if ollama_store.store_of(path) is not None:
        model = ollama_store.read_model(path)
        for kind, name in OLLAMA_FILES.items():
            layer = model.layers.get(kind)
            if layer is not None:
                files[name] = FilePart(path=layer.path, offset=0, length=layer.size, sha256=layer.sha256)
    elif path.is_dir():
        for name in OLLAMA_FILES.values():
            if (path / name).is_file():
                files[name] = _whole(path / name)
    return files


def gguf_weight_files(path: Path) -> dict[str, Path]:
    """The files that hold the tensors, in order."""
    return {name: part.path for name, part in _weights(path).items()}


def locate(model_path: Path, name: str) -> FilePart:
    """Where one file of the model at this path is; `name` is one that a manifest may have. Raises E709."""
    if model_path.is_dir() and (model_path / name).is_file():
        return _whole(model_path / name)
    if is_gguf_model(model_path):
        part = (
            gguf_files(model_path) if name in (HEADER_FILE, *OLLAMA_FILES.values()) else _weights(model_path)
        ).get(name)
        if part is not None:
            return part
    raise FleetError("E709", f"{model_path} has no {name}")


def header_path(model_path: Path) -> Path | None:
    """The file that begins with the model's GGUF header, perhaps all that was fetched; None for other kinds."""
    fetched = model_path / HEADER_FILE
    if model_path.is_dir() and fetched.is_file():
        return fetched
    return next(iter(gguf_weight_files(model_path).values())) if is_gguf_model(model_path) else None


def read_ollama_text(model_path: Path, kind: str) -> str:
    """The `template`, `params` or `system` that an Ollama model brings along; "" without. Raises E704."""
    try:
        part = locate(model_path, OLLAMA_FILES[kind])
    except FleetError as error:
        if error.code == "E709":
            return ""
        raise
    if part.length > MAX_OLLAMA_TEXT_BYTES:
        raise FleetError("E704", f"{part.path} has {part.length} bytes, at most {MAX_OLLAMA_TEXT_BYTES} are read")
    return part.path.read_bytes().decode(errors="replace")


def has_small_files(directory: Path) -> bool:
    """Whether config and tokenizer of a fetched model are here; of either kind, one file is written last."""
    return (directory / CONFIG_FILE).is_file() or (directory / HEADER_FILE).is_file()


def _weights(path: Path) -> dict[str, FilePart]:
    if ollama_store.store_of(path) is not None:
        layer = ollama_store.read_model(path).weights
        return {WHOLE_FILE: FilePart(path=layer.path, offset=0, length=layer.size, sha256=layer.sha256)}
    if path.is_dir():
        models = gguf_models_in(path)
        if len(models) != 1:
            names = ", ".join(model.name for model in models[:6])
            raise FleetError(
                "E701",
                f"{path} has {len(models)} GGUF models{': ' + names if names else ''}",
                hint="give the path of one of them" if models else "",
            )
        path = models[0]
    if not path.is_file():
        raise FleetError("E701", f"{path} is no GGUF file")
    match = _SPLIT.fullmatch(path.name)
    if match is None:
        return {WHOLE_FILE: _whole(path)}
    count = int(match["count"])
    if not 1 <= count <= MAX_SPLITS:
        raise FleetError("E704", f"{path} is said to be one of {count} files, at most {MAX_SPLITS} are read")
    parts = {}
    missing = []
    for index in range(1, count + 1):
        tail = f"-{index:05}-of-{count:05}.gguf"
        part = path.with_name(match["stem"] + tail)
        if part.is_file():
            parts[f"model{tail}"] = _whole(part)
        else:
            missing.append(part.name)
    if missing:
        raise FleetError(
            "E704",
            f"{len(missing)} of {count} files of {path.name} are missing: {', '.join(missing[:6])}",
            hint="copy them there; the download was probably cut off",
        )
    return parts


def _whole(path: Path) -> FilePart:
    return FilePart(path=path, offset=0, length=path.stat().st_size)


def _has_magic(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False  # not ours to read
