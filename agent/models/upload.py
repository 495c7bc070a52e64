"""Takes in a model that the operator pushes: manifest first, then each file, from where it stood. Verified last."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from agent.errors import FleetError
from agent.models.fetch import FULL_DISK, commit, locked, raise_if_full, to_end, write_whole
from agent.models.manifest import MANIFEST_FILE, check_manifest, hash_stream, load_manifest
from agent.wire.agent import ManifestFile, ModelManifest, UploadReply

MAX_MANIFEST_BYTES = 64 * 1024 * 1024
_WRITE_BYTES = 4 * 1024 * 1024
_DIGEST = re.compile(r"[0-9a-f]{64}")


async def receive_upload(
    target_dir: Path, digest: str, file: str, offset: int, chunks: AsyncIterator[bytes]
) -> UploadReply:
    """Append to one file of the model in `target_dir` (`var/models/DIGEST`).

    `manifest.json` comes first and whole. Of the others, `offset` must be what is here already; if it is not,
    nothing is read and the answer says where to go on. What came before a cut is kept. Raises E706 when the
    manifest is missing or the finished file has another hash (it is removed then), E708 when the disk is full,
    E709 for a file or an amount that the manifest does not know, or a digest that is none.
    """
    if not _DIGEST.fullmatch(digest):
        raise FleetError("E709", f"{digest!r} is no digest of a model")
    async with locked(target_dir):
        if file == MANIFEST_FILE:
            return await _receive_manifest(target_dir, digest, chunks)
        entry = _entry(target_dir, digest, file)
        final = target_dir / entry.name
        if await asyncio.to_thread(_size, final) == entry.size:
            return UploadReply(received=entry.size, is_complete=True)
        part = target_dir / f"{entry.name}.part"
        received = await asyncio.to_thread(_size, part) or 0
        if received != offset:
            return UploadReply(received=received, is_complete=False)
        _check_room(target_dir, entry, received)
        try:
            received = await _append(part, entry, received, chunks)
            if received == entry.size:
                await asyncio.to_thread(_finish, part, final, entry)
        except OSError as error:
            if error.errno in FULL_DISK:
                part.unlink(missing_ok=True)
            raise_if_full(error, final, entry.size)
            raise
        return UploadReply(received=received, is_complete=received == entry.size)


async def _receive_manifest(target_dir: Path, digest: str, chunks: AsyncIterator[bytes]) -> UploadReply:
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > MAX_MANIFEST_BYTES:
            raise FleetError("E709", f"a manifest over {MAX_MANIFEST_BYTES} bytes")
    try:
        manifest = msgspec.json.decode(bytes(body), type=ModelManifest)
    except msgspec.DecodeError as error:
        raise FleetError("E706", f"{MANIFEST_FILE} of {len(body)} bytes is no manifest: {error}") from error
    check_manifest(manifest, digest)
    await asyncio.to_thread(write_whole, target_dir / MANIFEST_FILE, bytes(body))
    return UploadReply(received=len(body), is_complete=True)


def _entry(target_dir: Path, digest: str, file: str) -> ManifestFile:
    manifest = load_manifest(target_dir)
    if manifest is None:
        raise FleetError("E706", f"{MANIFEST_FILE} of model {digest[:12]} has to be uploaded before {file}")
    check_manifest(manifest, digest)
    for entry in manifest.files:
        if entry.name == file:
            return entry
    raise FleetError("E709", f"{file!r} is no file of model {digest[:12]}")


def _check_room(target_dir: Path, entry: ManifestFile, received: int) -> None:
    free = shutil.disk_usage(target_dir).free
    if entry.size - received > free:
        raise FleetError(
            "E708",
            f"no room for {entry.name}: {entry.size - received} bytes needed, {free} free in {target_dir}",
            hint="free some space there, or set model_dirs of the agent to another disk",
        )


async def _append(part: Path, entry: ManifestFile, received: int, chunks: AsyncIterator[bytes]) -> int:
    waiting = bytearray()
    try:
        async for chunk in chunks:
            if received + len(waiting) + len(chunk) > entry.size:
                raise FleetError("E709", f"more than the {entry.size} bytes of {entry.name} came")
            waiting += chunk
            if len(waiting) >= _WRITE_BYTES:
                received += await _flush(part, waiting)
    finally:
        # a client that went away must not have sent this in vain
        received += await _flush(part, waiting)
    return received


async def _flush(part: Path, waiting: bytearray) -> int:
    data = bytes(waiting)
    waiting.clear()
    await to_end(_write_at_end, part, data)
    return len(data)


def _write_at_end(part: Path, data: bytes) -> None:
    with part.open("ab") as file:
        file.write(data)


def _finish(part: Path, final: Path, entry: ManifestFile) -> None:
    actual = hash_stream(part)
    if actual != entry.sha256:
        part.unlink()
        raise FleetError(
            "E706",
            f"{entry.name} arrived with hash {actual[:12]}, the manifest says {entry.sha256[:12]}",
            hint="upload it again; if it changed meanwhile, push the model anew",
        )
    with part.open("rb") as file:
        os.fsync(file.fileno())
    commit(part, final)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
