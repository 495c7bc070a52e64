"""Which models are on this host: complete directories, and those of which only shards are here."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from agent.errors import FleetError
from agent.models.files import CONFIG_FILE, HEADER_FILE, gguf_models_in, is_model
from agent.models.gguf_types import stored_quantisation
from agent.models.manifest import (
    MANIFEST_FILE,
    cached_digest,
    hashed_paths,
    load_manifest,
    model_parts,
    read_manifest,
)
from agent.models.ollama_store import is_store, models_in
from agent.models.spec import name_of, read_spec
from agent.wire.agent import ModelHolding, ModelManifest

MAX_DEPTH = 3
"""Levels below a search directory: as deep as the hub cache has its `models--org--name/snapshots/hash`."""
MAX_DIRECTORIES = 10_000
log = logging.getLogger(__name__)


def find_model(search_dirs: Sequence[Path], *, cache_dir: Path, digest: str = "", path: str = "") -> Path | None:
    """Path of a complete model with this digest, or this path itself, or None. Blocks.

    With both, what is at the path is hashed if need be. With the digest alone nothing is: a directory is found
    when `read_manifest` was called for it before, or when it was fetched or uploaded here whole.
    """
    if path:
        given = Path(path)
        if not is_model(given):
            return None
        if not digest or _has_digest(given, digest, cache_dir=cache_dir):
            return given
    if not digest:
        return None
    for known in hashed_paths(digest, cache_dir=cache_dir):
        if _digest_if_model(known, cache_dir=cache_dir) == digest:
            return known
    for search_dir in search_dirs:
        uploaded = search_dir / digest
        manifest = load_manifest(uploaded)
        if manifest is not None and not _missing(uploaded, manifest):
            return uploaded if _has_digest(uploaded, digest, cache_dir=cache_dir) else None
    return None


def list_holdings(search_dirs: Sequence[Path], *, host: str, cache_dir: Path) -> tuple[ModelHolding, ...]:
    """All models below these directories, by name and path. Reads headers and no weights; blocks.

    A digest is filled in where it is known already. A directory that has a `config.json` and cannot be run is
    listed with its trouble.
    """
    holdings: dict[str, ModelHolding] = {}
    for search_dir in search_dirs:
        for path in _models_below(search_dir):
            key = str(path.resolve())
            if key not in holdings:
                holdings[key] = _holding(path, host=host, cache_dir=cache_dir)
    return tuple(sorted(holdings.values(), key=lambda holding: (holding.name, holding.path)))


def _holding(path: Path, *, host: str, cache_dir: Path) -> ModelHolding:
    try:
        manifest = load_manifest(path)
        if manifest is not None:
            return _managed_holding(path, manifest, host=host)
        spec = read_spec(path)
        size = sum(part.length for name, part in model_parts(path).items() if name != HEADER_FILE)
        return ModelHolding(
            host=host,
            name=spec.name,
            path=str(path),
            digest=cached_digest(path, cache_dir=cache_dir),
            family=spec.family.name,
            num_parameters=spec.num_parameters,
            size_bytes=size,
            is_complete=True,
            held_bytes=size,
            quantisation=stored_quantisation(spec),
        )
    except (FleetError, OSError) as error:
        return ModelHolding(
            host=host,
            name=name_of(path),
            path=str(path),
            digest="",
            family="",
            num_parameters=0,
            size_bytes=0,
            is_complete=False,
            held_bytes=0,
            trouble=str(error),
        )


def _managed_holding(path: Path, manifest: ModelManifest, *, host: str) -> ModelHolding:
    """Of a directory that fetch or upload wrote: files have their final names only once they were verified."""
    whole = sum((path / file.name).stat().st_size for file in manifest.files if (path / file.name).is_file())
    shards = sum(shard.stat().st_size for shard in (path / "shards").glob("*.safetensors"))
    return ModelHolding(
        host=host,
        name=manifest.spec.name,
        path=str(path),
        digest=manifest.digest,
        family=manifest.spec.family.name,
        num_parameters=manifest.spec.num_parameters,
        size_bytes=sum(file.size for file in manifest.files if file.name != HEADER_FILE),
        is_complete=not _missing(path, manifest),
        held_bytes=whole + shards,
        quantisation=stored_quantisation(manifest.spec),
    )


def _missing(path: Path, manifest: ModelManifest) -> list[str]:
    return [
        file.name
        for file in manifest.files
        if not (path / file.name).is_file() or (path / file.name).stat().st_size != file.size
    ]


def _has_digest(path: Path, digest: str, *, cache_dir: Path) -> bool:
    try:
        return read_manifest(path, cache_dir=cache_dir).digest == digest
    except FleetError as error:
        log.warning("model unusable", extra={"path": str(path), "reason": str(error)})
        return False


def _digest_if_model(path: Path, *, cache_dir: Path) -> str:
    try:
        return cached_digest(path, cache_dir=cache_dir)
    except FleetError:
        return ""  # it was there when it was hashed, and is gone or broken since


def _models_below(search_dir: Path) -> Iterator[Path]:
    """Directories with a `config.json` or a manifest, GGUF files, and what Ollama's stores have, breadth first.

    Nothing hidden, no model inside another.
    """
    level = [search_dir]
    seen = 0
    for _ in range(MAX_DEPTH + 1):
        below: list[Path] = []
        for path in level:
            seen += 1
            if seen > MAX_DIRECTORIES or not path.is_dir():
                continue
            if (path / CONFIG_FILE).is_file() or (path / MANIFEST_FILE).is_file():
                yield path
                continue
            if is_store(path):
                yield from models_in(path)
                continue
            try:
                yield from gguf_models_in(path)
                below += sorted(
                    child for child in path.iterdir() if child.is_dir() and not child.name.startswith(".")
                )
            except OSError as error:
                log.warning("directory unreadable", extra={"path": str(path), "reason": str(error)})
        level = below
