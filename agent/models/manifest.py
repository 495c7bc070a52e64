"""Every file of a model with its content hash, and one digest over them: what "the same model" means.

Hashes are remembered in SQLite by path, size, mtime and inode, so that a restart does not read a model again.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from fnmatch import fnmatch
from pathlib import Path

import msgspec

from agent.errors import FleetError
from agent.models.files import HEADER_FILE, OLLAMA_FILES, FilePart, gguf_files, is_gguf_model
from agent.models.safetensors_index import INDEX_FILE, SINGLE_FILE, weight_files
from agent.models.spec import read_spec
from agent.wire.agent import ManifestFile, ModelManifest

MANIFEST_FILE = "manifest.json"
"""Beside a fetched or uploaded model: its ModelManifest as JSON, written before anything else."""
SMALL_FILE_PATTERNS = (
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "chat_template*",
    HEADER_FILE,
    *OLLAMA_FILES.values(),
)
HASH_PIECE_BYTES = 4 * 1024 * 1024
_CACHE_FILE = "hashes.sqlite"
_CACHE_TIMEOUT_S = 30.0
_CACHE_SCHEMA = """
CREATE TABLE IF NOT EXISTS hashes
  (path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, inode INTEGER, sha256 TEXT);
CREATE TABLE IF NOT EXISTS models (path TEXT PRIMARY KEY, digest TEXT);
"""


def model_parts(path: Path) -> dict[str, FilePart]:
    """The files that make up a model, by name, and where on this host their bytes are; READMEs, pickles and second
    copies do not count. Raises E701, E702 or E704 when there is no model."""
    if is_gguf_model(path):
        return gguf_files(path)
    weights = weight_files(path)
    small = {file.name for pattern in SMALL_FILE_PATTERNS for file in path.glob(pattern) if file.is_file()}
    # an index beside model.safetensors belongs to a second, sharded copy
    index = () if weights == (SINGLE_FILE,) else (INDEX_FILE,)
    return {
        name: FilePart(
            path=path / name, offset=0, length=(path / name).stat().st_size if (path / name).is_file() else 0
        )
        for name in {*small, *weights, *index}
    }


def is_small_file(name: str) -> bool:
    """True of the files that every host of a deployment needs: config, tokenizer, chat template."""
    return any(fnmatch(name, pattern) for pattern in SMALL_FILE_PATTERNS)


def is_model_file(name: str) -> bool:
    """True of names that a manifest may have. All are plain names: nothing leads out of the directory."""
    is_plain = name == Path(name).name and not name.startswith(".")
    return is_plain and (is_small_file(name) or name == INDEX_FILE or name.endswith((".safetensors", ".gguf")))


def read_manifest(path: Path, *, cache_dir: Path, name: str = "") -> ModelManifest:
    """Manifest of a model directory. Reads whatever is not hashed yet in full, so it blocks for minutes.

    Raises E701 to E705 like `read_spec`, and E706 when a file changes under our eyes.
    """
    written = load_manifest(path)
    spec = read_spec(path, name=name or (written.spec.name if written is not None else ""))
    files = []
    with closing(_open_cache(cache_dir)) as cache:
        for file, part in sorted(model_parts(path).items()):
            sha256 = _cached(part, cache) or _hash_part(part, cache)
            files.append(ManifestFile(name=file, size=part.length, sha256=sha256))
        digest = digest_of(files)
        with cache:
            cache.execute("INSERT OR REPLACE INTO models VALUES (?, ?)", (str(path.resolve()), digest))
    return ModelManifest(digest=digest, files=tuple(files), spec=msgspec.structs.replace(spec, digest=digest))


def cached_digest(path: Path, *, cache_dir: Path) -> str:
    """Digest of a model directory if all its files are hashed and unchanged, else "". Reads no weights.

    Raises E701, E702 or E704 when there is no model.
    """
    files = []
    with closing(_open_cache(cache_dir)) as cache:
        for file, part in model_parts(path).items():
            sha256 = _cached(part, cache)
            if not sha256:
                return ""
            files.append(ManifestFile(name=file, size=part.length, sha256=sha256))
    return digest_of(files)


def hashed_paths(digest: str, *, cache_dir: Path) -> list[Path]:
    """Directories that had this digest when they were hashed last."""
    with closing(_open_cache(cache_dir)) as cache:
        rows = cache.execute("SELECT path FROM models WHERE digest = ? ORDER BY path", (digest,)).fetchall()
    return [Path(path) for (path,) in rows]


def digest_of(files: Sequence[ManifestFile]) -> str:
    """sha256 over the files' names, sizes and hashes, sorted by name."""
    lines = (f"{file.name}\0{file.size}\0{file.sha256}\n" for file in sorted(files, key=lambda file: file.name))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_manifest(manifest: ModelManifest, digest: str) -> None:
    """Raises E706 unless the manifest is the one with this digest, and all its names are safe to write."""
    actual = digest_of(manifest.files)
    if not manifest.digest == manifest.spec.digest == digest == actual:
        raise FleetError("E706", f"a manifest of model {digest[:12]} was expected, its files hash to {actual[:12]}")
    for file in manifest.files:
        if not is_model_file(file.name) or file.size < 0:
            raise FleetError(
                "E706", f"the manifest of model {digest[:12]} names {file.name!r}, which is no model file"
            )


def load_manifest(path: Path) -> ModelManifest | None:
    """The manifest that fetch or upload left in this directory, or None. Raises E706 when it is garbage."""
    file = path / MANIFEST_FILE
    try:
        return msgspec.json.decode(file.read_bytes(), type=ModelManifest)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except msgspec.DecodeError as error:
        raise FleetError("E706", f"{file} is not a manifest: {error}", hint="delete the directory") from error


def hash_stream(path: Path, length: int | None = None) -> str:
    """sha256 of a file in hex, read in pieces; of its first `length` bytes if that is given."""
    digest = hashlib.sha256()
    missing = path.stat().st_size if length is None else length
    with path.open("rb") as file:
        while piece := file.read(min(HASH_PIECE_BYTES, missing) if length is not None else HASH_PIECE_BYTES):
            digest.update(piece)
            missing -= len(piece)
    return digest.hexdigest()


def _hash_part(part: FilePart, cache: sqlite3.Connection) -> str:
    before = _identity(part.path)
    sha256 = hash_stream(part.path, part.length)
    if _identity(part.path) != before:
        raise FleetError(
            "E706", f"{part.path} changed while it was read", hint="wait until it is written, then ask again"
        )
    if part.sha256 and sha256 != part.sha256:
        raise FleetError(
            "E706",
            f"{part.path} has the hash {sha256[:12]}, its name promises {part.sha256[:12]}",
            hint="pull the model again",
        )
    with cache:
        cache.execute("INSERT OR REPLACE INTO hashes VALUES (?, ?, ?, ?, ?)", (_key(part), *before, sha256))
    return sha256


def _cached(part: FilePart, cache: sqlite3.Connection) -> str:
    """The hash that is known of these bytes, or "" when there is none or the file is another now."""
    if not part.path.is_file():
        return ""
    row = cache.execute(
        "SELECT sha256 FROM hashes WHERE path = ? AND size = ? AND mtime_ns = ? AND inode = ?",
        (_key(part), *_identity(part.path)),
    ).fetchone()
    return "" if row is None else str(row[0])


def _key(part: FilePart) -> str:
    path = part.path.resolve()
    return str(path) if part.length == path.stat().st_size else f"{path}\0{part.length}"


def _identity(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _open_cache(cache_dir: Path) -> sqlite3.Connection:
    cache_dir.mkdir(parents=True, exist_ok=True)
    cache = sqlite3.connect(cache_dir / _CACHE_FILE, timeout=_CACHE_TIMEOUT_S)
    cache.executescript(_CACHE_SCHEMA)
    return cache
