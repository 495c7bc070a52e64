"""Ollama's model store, read only: `manifests/REGISTRY/NAMESPACE/NAME/TAG` names layers, `blobs/sha256-HASH` are.

A blob's name is its hash: whoever hashes one holds it against that. Everything in a manifest is untrusted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import FleetError

MANIFESTS, BLOBS = "manifests", "blobs"
DEFAULT_REGISTRY, DEFAULT_NAMESPACE, DEFAULT_TAG = "registry.ollama.ai", "library", "latest"
MAX_MANIFEST_BYTES = 1024 * 1024
MAX_MODELS = 10_000
MAX_CONFIG_BYTES = 1024 * 1024
_LEVELS = 4  # registry, namespace, name, tag
_MEDIA_PREFIX = "application/vnd.ollama.image."
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_KNOWN_STORES = ("~/.ollama/models", "/usr/share/ollama/.ollama/models", "/var/lib/ollama/.ollama/models")


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    path: Path
    size: int
    sha256: str


class OllamaModel(msgspec.Struct, frozen=True, kw_only=True):
    """`layers` has what there is beside the weights, by kind: `template`, `params`, `system`, `license` …"""

    name: str
    weights: Layer
    layers: dict[str, Layer]


class _ManifestLayer(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    media_type: str
    digest: str
    size: int


class _Manifest(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    layers: tuple[_ManifestLayer, ...]


def known_stores() -> tuple[Path, ...]:
    """Where Ollama keeps models here: OLLAMA_MODELS if that is set (empty: nowhere), else its usual places."""
    said = os.environ.get("OLLAMA_MODELS")
    if said is not None:
        places = [Path(said)] if said else []
    else:
        places = [Path(place).expanduser() for place in _KNOWN_STORES]
    return tuple(place for place in places if is_store(place))


def is_store(directory: Path) -> bool:
    try:
        return (directory / MANIFESTS).is_dir() and (directory / BLOBS).is_dir()
    except OSError:
        return False  # another user's home


def store_of(path: Path) -> Path | None:
    """The store that this file is a manifest of, or None."""
    if len(path.parents) <= _LEVELS or path.parents[_LEVELS - 1].name != MANIFESTS:
        return None
    store = path.parents[_LEVELS]
    return store if is_store(store) and path.is_file() else None


def models_in(store: Path) -> Iterator[Path]:
    """The manifests of a store, sorted; what is hidden or deeper is none."""
    paths = sorted((store / MANIFESTS).glob("/".join("*" * _LEVELS)))
    for path in paths[:MAX_MODELS]:
        if path.is_file() and not any(part.startswith(".") for part in path.parts[-_LEVELS:]):
            yield path


def name_of_manifest(path: Path) -> str:
    """What `ollama list` calls it: `llama3.2:1b`, `user/model:tag`, `hf.co/user/model:tag`."""
    registry, namespace, name, tag = path.parts[-_LEVELS:]
    if registry != DEFAULT_REGISTRY:
        return f"{registry}/{namespace}/{name}:{tag}"
    return f"{name}:{tag}" if namespace == DEFAULT_NAMESPACE else f"{namespace}/{name}:{tag}"


def find_in_store(store: Path, name: str) -> Path | None:
    """The manifest of the model that Ollama knows by this name, or None."""
    wanted = full_name(name)
    return next((path for path in models_in(store) if name_of_manifest(path) == wanted), None)


def full_name(name: str) -> str:
    """With its tag: Ollama takes `latest` for a name without one."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:{DEFAULT_TAG}"


def read_model(path: Path) -> OllamaModel:
    """Raises E702 for a model that is not one GGUF file, and E704 for a broken manifest or missing blobs."""
    store = store_of(path)
    assert store is not None, f"{path} is no manifest"
    layers: dict[str, list[Layer]] = {}
    for entry in _read_manifest(path).layers:
        kind = entry.media_type.removeprefix(_MEDIA_PREFIX)
        layers.setdefault(kind, []).append(_layer(store, path, entry))
    weights = layers.pop("model", [])
    if len(weights) != 1 or "adapter" in layers:
        found = "an adapter" if "adapter" in layers else f"{len(weights)} GGUF layers"
        raise FleetError(
            "E702",
            f"{name_of_manifest(path)} in {store} has {found}; one GGUF layer without adapters can be run",
        )
    return OllamaModel(
        name=name_of_manifest(path),
        weights=weights[0],
        layers={kind: found[0] for kind, found in layers.items()},
    )


def read_params(content: bytes, *, where: str) -> dict[str, Any]:
    """The `params` layer: options of Ollama's API. Raises E704."""
    try:
        return msgspec.json.decode(content, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise FleetError("E704", f"{where} is not a JSON object: {error}") from error


def _read_manifest(path: Path) -> _Manifest:
    size = path.stat().st_size
    if size > MAX_MANIFEST_BYTES:
        raise FleetError("E704", f"{path} has {size} bytes, a manifest has at most {MAX_MANIFEST_BYTES}")
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Manifest)
    except msgspec.DecodeError as error:
        raise FleetError("E704", f"{path} is no Ollama manifest: {error}", hint="pull the model again") from error


def _layer(store: Path, manifest: Path, entry: _ManifestLayer) -> Layer:
    match = _DIGEST.fullmatch(entry.digest)
    if match is None:
        raise FleetError("E704", f"{manifest} names the layer {entry.digest!r}, which is no sha256 digest")
    blob = store / BLOBS / f"sha256-{match[1]}"
    if not blob.is_file() and (old := store / BLOBS / entry.digest).is_file():
        blob = old  # what stores before 2024 call them
    try:
        size = blob.stat().st_size
    except OSError as error:
        raise FleetError(
            "E704",
            f"{manifest} names {blob.name}, which is not there: {error.strerror}",
            hint="pull the model again",
        ) from error
    if size != entry.size:
        raise FleetError("E704", f"{blob} has {size} bytes, {manifest.name} says {entry.size}")
    return Layer(path=blob, size=size, sha256=match[1])
