"""Finds a model by what its user typed: a directory or GGUF file here, or a name, path or digest on the fleet."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from agent.errors import ErrorDetail, FleetError
from agent.facts.model import ModelSpec
from agent.models.files import is_gguf_model, locate
from agent.models.manifest import MANIFEST_FILE, read_manifest
from agent.models.ollama_store import find_in_store, full_name, known_stores
from agent.models.ranges import split_ranges
from agent.models.vocabulary import first_difference, read_vocabulary, vocabulary_file
from agent.planner.plan import ModelRef
from agent.wire.agent import (
    ByteRange,
    ManifestFile,
    ModelHolding,
    ModelManifest,
    ModelQuery,
    RangeRequest,
    UploadReply,
)
from odctl.fleet import Fleet

if TYPE_CHECKING:
    import httpx

MANIFEST_TIMEOUT_S = 1800.0
"""The first question about a model makes its holder hash it."""
UPLOAD_PIECE_BYTES = 1 << 20
READ_TIMEOUT_S = 60.0
MSGPACK = "application/msgpack"


class FoundModel(msgspec.Struct, frozen=True, kw_only=True):
    """Where a model is, and all that planning needs of it."""

    ref: ModelRef
    manifest: ModelManifest

    @property
    def spec(self) -> ModelSpec:
        return self.manifest.spec


def cache_dir() -> Path:
    """Hashes of model files that the operator's side has read before."""
    home = os.environ.get("ODCTL_HOME")
    path = (Path(home) if home else Path.home() / ".local" / "share" / "odctl") / "cache"
    path.mkdir(parents=True, exist_ok=True)
    return path


async def find_model(fleet: Fleet, wanted: str) -> FoundModel:
    """A path on this machine wins over the fleet's models, and those over Ollama's here. Raises E701 naming all."""
    local = _local_model(wanted)
    if local is not None:
        return await _here(local)
    holdings = await _holdings(fleet)
    complete = [holding for holding in holdings if holding.is_complete]
    for holding in complete:
        is_digest = len(wanted) >= 8 and holding.digest.startswith(wanted)
        if holding.name in (wanted, full_name(wanted)) or wanted == holding.path or is_digest:
            return await _on_host(fleet, holding)
    for store in known_stores():
        if (found := find_in_store(store, wanted)) is not None:
            return await _here(found)
    known = ", ".join(sorted({holding.name for holding in complete})) or "none"
    raise FleetError(
        "E701",
        f"no model `{wanted}`: it is no directory or GGUF file here, and no reachable host has it whole",
        hint=f"models on the fleet: {known}",
    )


async def check_model(fleet: Fleet, ref: ModelRef) -> ModelManifest:
    """The plan's model as it is now. Raises E402 when it is another one than was planned."""
    if ref.source_host:
        query = ModelQuery(digest=ref.digest, path=ref.path)
        manifest = await _ask_manifest(fleet, ref.source_host, query)
    else:
        manifest = await asyncio.to_thread(read_manifest, Path(ref.path), cache_dir=cache_dir())
    if manifest.digest != ref.digest:
        where = f"on {ref.source_host}" if ref.source_host else "here"
        raise FleetError(
            "E402",
            f"the model at {ref.path} {where} has changed: "
            f"digest {manifest.digest[:12]}, planned {ref.digest[:12]}",
            hint="plan again",
        )
    return manifest


async def check_same_tokens(fleet: Fleet, model: FoundModel, draft: FoundModel) -> None:
    """A draft model guesses in its own tokens. Raises E711 naming the first id that means another one to it.

    Ids that only one of them has are padding, or tokens that are never guessed.
    """
    ours, theirs = vocabulary_file(model.manifest), vocabulary_file(draft.manifest)
    if (ours.name, ours.sha256) == (theirs.name, theirs.sha256):
        return
    known, guessed = await _vocabulary(fleet, model, ours), await _vocabulary(fleet, draft, theirs)
    differs = first_difference(known, guessed)
    if differs is not None:
        raise FleetError(
            "E711",
            f"{draft.ref.name} cannot draft for {model.ref.name}: token {differs} is {guessed[differs]!r} to it, "
            f"and {known[differs]!r} to the model",
            hint="a draft model has its model's tokenizer: most often it is a smaller one of the same family",
        )


async def push_model(fleet: Fleet, host: str, ref: ModelRef, manifest: ModelManifest) -> int:
    """Bring the operator's model to a host whole, resumable; the bytes that were sent (0: it was there)."""
    client = await fleet.client_of(host, f"{await fleet.prefix(host)}/run/agent.sock")
    if await _is_complete(fleet, host, ref.digest):
        return 0
    base = f"/v1/upload/{ref.digest}"
    await _put(client, host, f"{base}/{MANIFEST_FILE}", 0, msgspec.json.encode(manifest))
    sent = 0
    for file in manifest.files:
        offset = 0
        reply = await _put(client, host, f"{base}/{file.name}", offset, b"")
        while not reply.is_complete:
            offset = reply.received
            piece = await asyncio.to_thread(_read_piece, Path(ref.path), file.name, offset)
            if not piece and offset >= file.size:
                raise FleetError("E706", f"{file.name} arrived on {host} and was not accepted", host=host)
            reply = await _put(client, host, f"{base}/{file.name}", offset, piece)
            sent += len(piece)
    return sent


async def _vocabulary(fleet: Fleet, model: FoundModel, file: ManifestFile) -> dict[int, str]:
    host, ref = model.ref.source_host, model.ref
    if not host:
        return await asyncio.to_thread(read_vocabulary, Path(ref.path))
    client = await fleet.client_of(host, f"{await fleet.prefix(host)}/run/agent.sock")
    whole = ByteRange(file=file.name, offset=0, length=file.size, stride=file.size, count=1)
    content = b""
    for ranges in split_ranges([whole]):
        content += await _read_ranges(client, host, RangeRequest(digest=ref.digest, ranges=ranges))

    def read() -> dict[int, str]:
        with tempfile.TemporaryDirectory(prefix="odctl-") as folder:
            (Path(folder) / file.name).write_bytes(content)
            return read_vocabulary(Path(folder))

    return await asyncio.to_thread(read)


async def _read_ranges(client: httpx.AsyncClient, host: str, request: RangeRequest) -> bytes:
    import httpx

    body, headers = msgspec.msgpack.encode(request), {"accept": MSGPACK, "content-type": MSGPACK}
    try:
        response = await client.post("/v1/ranges", content=body, headers=headers, timeout=READ_TIMEOUT_S)
    except httpx.HTTPError as error:
        raise FleetError("E211", f"reading broke off: {error or type(error).__name__}", host=host) from error
    if response.is_error:
        raise FleetError.from_detail(msgspec.msgpack.decode(response.content, type=ErrorDetail), host=host)
    return response.content


def _local_model(wanted: str) -> Path | None:
    path = Path(wanted).expanduser()
    return path.resolve() if path.is_dir() or is_gguf_model(path) else None


async def _here(path: Path) -> FoundModel:
    manifest = await asyncio.to_thread(read_manifest, path, cache_dir=cache_dir())
    ref = ModelRef(name=manifest.spec.name, path=str(path), digest=manifest.digest)
    return FoundModel(ref=ref, manifest=manifest)


async def _is_complete(fleet: Fleet, host: str, digest: str) -> bool:
    holdings = await fleet.get(host, "/v1/models", tuple[ModelHolding, ...])
    return any(holding.is_complete and holding.digest == digest for holding in holdings)


async def _put(client: httpx.AsyncClient, host: str, route: str, offset: int, body: bytes) -> UploadReply:
    import httpx

    try:
        response = await client.put(route, params={"offset": offset}, content=body, timeout=300.0)
    except httpx.HTTPError as error:
        raise FleetError("E211", f"the upload broke off: {error or type(error).__name__}", host=host) from error
    if response.is_error:
        detail = msgspec.msgpack.decode(response.content, type=ErrorDetail)
        raise FleetError.from_detail(detail, host=host)
    return msgspec.msgpack.decode(response.content, type=UploadReply)


def _read_piece(model_path: Path, name: str, offset: int) -> bytes:
    part = locate(model_path, name)
    with part.path.open("rb") as file:
        file.seek(part.offset + offset)
        return file.read(min(UPLOAD_PIECE_BYTES, max(part.length - offset, 0)))


async def _holdings(fleet: Fleet) -> list[ModelHolding]:
    answers = await fleet.get_all("/v1/models", tuple[ModelHolding, ...])
    return [holding for answer in answers.values() if not isinstance(answer, FleetError) for holding in answer]


async def _on_host(fleet: Fleet, holding: ModelHolding) -> FoundModel:
    query = ModelQuery(digest=holding.digest, path=holding.path)
    manifest = await _ask_manifest(fleet, holding.host, query)
    ref = ModelRef(name=holding.name, path=holding.path, digest=manifest.digest, source_host=holding.host)
    return FoundModel(ref=ref, manifest=manifest)


async def _ask_manifest(fleet: Fleet, host: str, query: ModelQuery) -> ModelManifest:
    return await fleet.post(host, "/v1/manifest", query, ModelManifest, timeout_s=MANIFEST_TIMEOUT_S)
