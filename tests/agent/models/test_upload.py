from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from agent.errors import FleetError
from agent.models.holdings import find_model, list_holdings
from agent.models.manifest import MANIFEST_FILE, read_manifest
from agent.models.upload import receive_upload
from agent.wire.agent import ModelManifest, UploadReply

Models = Callable[[str], Path]


async def _pieces(content: bytes, *, cut_at: int | None = None) -> AsyncIterator[bytes]:
    for begin in range(0, len(content), 7000):
        if cut_at is not None and begin >= cut_at:
            raise ConnectionResetError("the operator's laptop went to sleep")
        yield content[begin : begin + 7000]


async def _push_manifest(target: Path, manifest: ModelManifest) -> UploadReply:
    return await receive_upload(target, manifest.digest, MANIFEST_FILE, 0, _pieces(msgspec.json.encode(manifest)))


@pytest.fixture
def pushed(models: Models, tmp_path: Path) -> tuple[Path, ModelManifest, Path]:
    path = models("llama-sharded")
    manifest = read_manifest(path, cache_dir=tmp_path / "operator-cache")
    return path, manifest, tmp_path / "var" / manifest.digest


async def test_a_pushed_model_is_complete_and_found(
    pushed: tuple[Path, ModelManifest, Path], tmp_path: Path
) -> None:
    path, manifest, target = pushed
    assert (await _push_manifest(target, manifest)).is_complete
    for file in manifest.files:
        listed = list_holdings([target.parent], host="gpu01", cache_dir=tmp_path / "cache")
        assert not listed[0].is_complete
        reply = await receive_upload(
            target, manifest.digest, file.name, 0, _pieces((path / file.name).read_bytes())
        )
        assert reply == UploadReply(received=file.size, is_complete=True)
    (holding,) = list_holdings([target.parent], host="gpu01", cache_dir=tmp_path / "cache")
    assert (holding.name, holding.is_complete, holding.digest) == ("llama-sharded", True, manifest.digest)
    assert holding.held_bytes == holding.size_bytes
    assert find_model([target.parent], digest=manifest.digest, cache_dir=tmp_path / "cache") == target
    assert read_manifest(target, cache_dir=tmp_path / "cache") == manifest


async def test_a_cut_upload_goes_on_where_it_stood(pushed: tuple[Path, ModelManifest, Path]) -> None:
    path, manifest, target = pushed
    await _push_manifest(target, manifest)
    file = max(manifest.files, key=lambda file: file.size)
    content = (path / file.name).read_bytes()
    with pytest.raises(ConnectionResetError):
        await receive_upload(target, manifest.digest, file.name, 0, _pieces(content, cut_at=20_000))
    reply = await receive_upload(target, manifest.digest, file.name, 0, _pieces(content))
    assert reply == UploadReply(received=21_000, is_complete=False)
    assert not (target / file.name).exists()
    reply = await receive_upload(target, manifest.digest, file.name, 21_000, _pieces(content[21_000:]))
    assert reply.is_complete
    assert (target / file.name).read_bytes() == content
    again = await receive_upload(target, manifest.digest, file.name, 0, _pieces(content))
    assert again == UploadReply(received=file.size, is_complete=True)


async def test_a_corrupt_upload_is_refused_and_removed(pushed: tuple[Path, ModelManifest, Path]) -> None:
    path, manifest, target = pushed
    await _push_manifest(target, manifest)
    content = bytearray((path / "config.json").read_bytes())
    content[0] ^= 1
    with pytest.raises(FleetError, match="arrived with hash") as caught:
        await receive_upload(target, manifest.digest, "config.json", 0, _pieces(bytes(content)))
    assert caught.value.code == "E706"
    assert [file.name for file in target.iterdir()] == [MANIFEST_FILE]


async def test_too_many_bytes_are_refused_and_what_fits_is_kept(pushed: tuple[Path, ModelManifest, Path]) -> None:
    path, manifest, target = pushed
    await _push_manifest(target, manifest)
    content = (path / "config.json").read_bytes()
    with pytest.raises(FleetError, match=f"more than the {len(content)} bytes") as caught:
        await receive_upload(target, manifest.digest, "config.json", 0, _pieces(content + b"x"))
    assert caught.value.code == "E709"
    assert (await receive_upload(target, manifest.digest, "config.json", 0, _pieces(content))).is_complete


async def test_nothing_is_taken_without_a_true_manifest(pushed: tuple[Path, ModelManifest, Path]) -> None:
    _, manifest, target = pushed
    with pytest.raises(FleetError, match="has to be uploaded before"):
        await receive_upload(target, manifest.digest, "config.json", 0, _pieces(b"{}"))
    with pytest.raises(FleetError, match="was expected"):
        await receive_upload(target, "0" * 64, MANIFEST_FILE, 0, _pieces(msgspec.json.encode(manifest)))
    with pytest.raises(FleetError, match="is no manifest"):
        await receive_upload(target, manifest.digest, MANIFEST_FILE, 0, _pieces(b"{}"))
    with pytest.raises(FleetError, match="is no digest"):
        await receive_upload(target / "..", "..", MANIFEST_FILE, 0, _pieces(b"{}"))
    await _push_manifest(target, manifest)
    for name in ("../../etc/agent.json", "run.sh", "manifest.json.part"):
        with pytest.raises(FleetError, match="is no file of model"):
            await receive_upload(target, manifest.digest, name, 0, _pieces(b"{}"))


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    path = tmp_path / "tiny"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(path)], check=True)
    yield path
    subprocess.run(["umount", str(path)], check=True)


@pytest.mark.root
async def test_a_full_disk_is_told_before_the_transfer(
    pushed: tuple[Path, ModelManifest, Path], tiny_disk: Path
) -> None:
    _, manifest, _ = pushed
    target = tiny_disk / manifest.digest
    await _push_manifest(target, manifest)
    file = max(manifest.files, key=lambda file: file.size)

    read: list[bytes] = []

    async def body() -> AsyncIterator[bytes]:
        read.append(b"x")
        yield b"x"

    with pytest.raises(FleetError, match=f"{file.size} bytes needed, [0-9]+ free") as caught:
        await receive_upload(target, manifest.digest, file.name, 0, body())
    assert caught.value.code == "E708"
    assert read == []
