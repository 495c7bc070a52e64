from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from agent.errors import FleetError
from agent.facts.model import ModelSpec
from agent.models import ranges as ranges_module
from agent.models.fetch import fetch_shard, fetch_small_files, shard_path
from agent.models.holdings import list_holdings
from agent.models.manifest import read_manifest
from agent.models.sources import DirectorySource, RangeAnswer, RangeSource
from agent.models.spec import read_spec
from agent.planner.shards import ShardExtent
from agent.wire.agent import RangeRequest
from tests.agent.models.conftest import PLAIN, extent_of, reference_slices, stored_bytes

Models = Callable[[str], Path]
DIGEST = "d" * 64


class FlakySource:
    """A real directory behind a link that gives out: `cut_after` requests, or with a bit flipped."""

    def __init__(
        self, path: Path, *, cut_after: int | None = None, flips: bool = False, stalls: bool = False
    ) -> None:
        self._real = DirectorySource(path)
        self._cut_after = cut_after
        self._flips = flips
        self._stalls = stalls
        self.answered = 0
        self.sent_bytes = 0

    @property
    def name(self) -> str:
        return "gpu07"

    @asynccontextmanager
    async def read(self, request: RangeRequest) -> AsyncIterator[RangeAnswer]:
        if self._stalls:
            await asyncio.Event().wait()
        async with self._real.read(request) as answer:
            yield RangeAnswer(answer.sha256, self._chunks(answer.chunks))
        self.answered += 1

    async def _chunks(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            if self.answered == self._cut_after:
                yield chunk[: len(chunk) // 2]
                raise ConnectionResetError("connection reset by peer")
            self.sent_bytes += len(chunk)
            yield bytes([chunk[0] ^ 1]) + chunk[1:] if self._flips else chunk


@pytest.fixture
def small_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests of 20 kB, so that small models take many of them."""
    monkeypatch.setattr(ranges_module.split_ranges, "__defaults__", (20_000,))


@pytest.fixture
def shard(originals: dict[str, Path]) -> tuple[Path, ModelSpec, ShardExtent]:
    path = originals["llama-sharded"]
    spec = read_spec(path)
    return path, spec, extent_of(spec, layers=(0, 2), share=(1, 2), stages=(True, False))


def _assert_holds(file: Path, path: Path, spec: ModelSpec, extent: ShardExtent) -> None:
    import torch
    from safetensors.torch import load_file

    loaded = load_file(file)
    reference = reference_slices(path, spec, extent)
    assert loaded.keys() == reference.keys()
    for name, tensor in loaded.items():
        assert torch.equal(tensor, reference[name]), name


@pytest.mark.parametrize("name", [*PLAIN, "phi3", "qwen3moe"])
async def test_a_shard_holds_exactly_its_slices(originals: dict[str, Path], tmp_path: Path, name: str) -> None:
    spec = read_spec(originals[name])
    seen: list[tuple[int, int]] = []

    def record(done: int, total: int) -> None:
        seen.append((done, total))

    for share in ((0, 2), (1, 2)):
        extent = extent_of(spec, layers=(1, 3), share=share, stages=(False, True))
        fetched = await fetch_shard(
            spec,
            DIGEST,
            extent,
            target_dir=tmp_path,
            sources=[DirectorySource(originals[name])],
            on_progress=record,
        )
        file = shard_path(tmp_path, spec, extent)
        assert fetched == stored_bytes(spec, extent)
        assert seen[-1] == (file.stat().st_size, file.stat().st_size)
        _assert_holds(file, originals[name], spec, extent)
    assert sorted(path.suffix for path in (tmp_path / "shards").iterdir()) == [".safetensors"] * 2


async def test_tensors_of_two_dtypes_stay_aligned_and_whole(models: Models, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    path = models("qwen2")
    tensors = load_file(path / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.float32)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    spec = read_spec(path)
    extent = extent_of(spec, layers=(0, 3), share=(0, 2))
    fetched = await fetch_shard(spec, DIGEST, extent, target_dir=tmp_path, sources=[DirectorySource(path)])
    assert fetched == stored_bytes(spec, extent)
    _assert_holds(shard_path(tmp_path, spec, extent), path, spec, extent)


async def test_equal_extents_share_one_file(shard: tuple[Path, ModelSpec, ShardExtent], tmp_path: Path) -> None:
    path, spec, extent = shard
    fetches = [
        fetch_shard(spec, DIGEST, extent, target_dir=tmp_path, sources=[DirectorySource(path)]) for _ in range(3)
    ]
    assert sorted(await asyncio.gather(*fetches)) == [0, 0, stored_bytes(spec, extent)]


@pytest.mark.usefixtures("small_requests")
async def test_a_cut_transfer_goes_on_where_it_stood(
    shard: tuple[Path, ModelSpec, ShardExtent], tmp_path: Path
) -> None:
    path, spec, extent = shard
    link = FlakySource(path, cut_after=3)
    with pytest.raises(FleetError, match="gpu07: connection reset by peer") as caught:
        await fetch_shard(spec, DIGEST, extent, target_dir=tmp_path, sources=[link])
    assert caught.value.code == "E707"
    assert not shard_path(tmp_path, spec, extent).exists()
    again = await fetch_shard(spec, DIGEST, extent, target_dir=tmp_path, sources=[DirectorySource(path)])
    assert link.answered == 3
    assert again == stored_bytes(spec, extent) - link.sent_bytes
    _assert_holds(shard_path(tmp_path, spec, extent), path, spec, extent)
    assert await fetch_shard(spec, DIGEST, extent, target_dir=tmp_path, sources=[]) == 0


@pytest.mark.usefixtures("small_requests")
async def test_a_part_that_rotted_on_disk_is_fetched_again(
    shard: tuple[Path, ModelSpec, ShardExtent], tmp_path: Path
) -> None:
    path, spec, extent = shard
    with pytest.raises(FleetError):
        await fetch_shard(spec, DIGEST, extent, target_dir=tmp_path, sources=[FlakySource(path, cut_after=3)])
    part = shard_path(tmp_path, spec, extent).with_suffix(".part")
    journal = part.with_suffix(".journal").read_bytes().splitlines()
    begin, _, _ = msgspec.json.decode(journal[2])
    with part.open("r+b") as file:
        file.seek(begin)
        file.write(b"rot")
    again = await fetch_shard(spec, DIGEST, extent, target_dir=tmp_path, sources=[DirectorySource(path)])
    header_bytes = msgspec.json.decode(journal[0])[1]
    assert again == stored_bytes(spec, extent) - (begin - header_bytes)
    _assert_holds(shard_path(tmp_path, spec, extent), path, spec, extent)


@pytest.mark.usefixtures("small_requests")
async def test_the_next_source_takes_over(shard: tuple[Path, ModelSpec, ShardExtent], tmp_path: Path) -> None:
    path, spec, extent = shard
    first, second = FlakySource(path, cut_after=2), FlakySource(path)
    fetched = await fetch_shard(spec, DIGEST, extent, target_dir=tmp_path, sources=[first, second])
    assert fetched == stored_bytes(spec, extent) == first.sent_bytes + second.sent_bytes
    assert first.answered == 2
    _assert_holds(shard_path(tmp_path, spec, extent), path, spec, extent)


async def test_a_corrupt_transfer_is_never_written(
    shard: tuple[Path, ModelSpec, ShardExtent], tmp_path: Path
) -> None:
    path, spec, extent = shard
    with pytest.raises(FleetError, match=r"came with hash .* was promised") as caught:
        await fetch_shard(spec, DIGEST, extent, target_dir=tmp_path, sources=[FlakySource(path, flips=True)])
    assert caught.value.code == "E707"
    assert not shard_path(tmp_path, spec, extent).exists()
    sources: list[RangeSource] = [FlakySource(path, flips=True), DirectorySource(path)]
    await fetch_shard(spec, DIGEST, extent, target_dir=tmp_path, sources=sources)
    _assert_holds(shard_path(tmp_path, spec, extent), path, spec, extent)


async def test_a_silent_source_is_left_after_its_time(
    shard: tuple[Path, ModelSpec, ShardExtent], tmp_path: Path
) -> None:
    path, spec, extent = shard
    sources: list[RangeSource] = [FlakySource(path, stalls=True), DirectorySource(path)]
    fetched = await fetch_shard(spec, DIGEST, extent, target_dir=tmp_path, sources=sources, request_timeout_s=3)
    assert fetched == stored_bytes(spec, extent)
    with pytest.raises(FleetError, match=r"gpu07: no answer within 0\.1 s"):
        await fetch_shard(
            spec, DIGEST, extent, target_dir=tmp_path / "b", sources=sources[:1], request_timeout_s=0.1
        )


async def test_a_cancelled_fetch_leaves_no_lock(shard: tuple[Path, ModelSpec, ShardExtent], tmp_path: Path) -> None:
    path, spec, extent = shard
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await fetch_shard(spec, DIGEST, extent, target_dir=tmp_path, sources=[FlakySource(path, stalls=True)])
    async with asyncio.timeout(20):
        await fetch_shard(spec, DIGEST, extent, target_dir=tmp_path, sources=[DirectorySource(path)])
    assert shard_path(tmp_path, spec, extent).is_file()


async def test_small_files_arrive_verified_and_once(models: Models, tmp_path: Path) -> None:
    path = models("llama-sharded")
    (path / "tokenizer.json").write_text("{}")
    manifest = read_manifest(path, cache_dir=tmp_path / "cache")
    target = tmp_path / "var" / manifest.digest
    fetched = await fetch_small_files(manifest, target_dir=target, sources=[DirectorySource(path)])
    names = {"config.json", "generation_config.json", "tokenizer.json"}
    assert {file.name for file in target.iterdir()} == names | {"manifest.json"}
    assert fetched == sum((path / name).stat().st_size for name in names)
    assert await fetch_small_files(manifest, target_dir=target, sources=[]) == 0
    (target / "config.json").unlink()
    (path / "tokenizer.json").write_text("[]")
    (target / "tokenizer.json").unlink()
    with pytest.raises(FleetError, match=r"tokenizer\.json came with hash") as caught:
        await fetch_small_files(manifest, target_dir=target, sources=[DirectorySource(path)])
    assert caught.value.code == "E706"
    assert not (target / "tokenizer.json").exists()
    assert not (target / "config.json").exists(), "config.json is there only when all the others are"


async def test_a_host_with_shards_alone_is_listed_as_partial(models: Models, tmp_path: Path) -> None:
    path = models("qwen3")
    manifest = read_manifest(path, cache_dir=tmp_path / "cache")
    target = tmp_path / "var" / manifest.digest
    extent = extent_of(manifest.spec, layers=(0, 1), stages=(True, False))
    small = await fetch_small_files(manifest, target_dir=target, sources=[DirectorySource(path)])
    await fetch_shard(manifest.spec, manifest.digest, extent, target_dir=target, sources=[DirectorySource(path)])
    (holding,) = list_holdings([tmp_path / "var"], host="gpu01", cache_dir=tmp_path / "cache")
    assert (holding.name, holding.digest, holding.is_complete) == ("qwen3", manifest.digest, False)
    assert holding.held_bytes == small + shard_path(target, manifest.spec, extent).stat().st_size
    assert holding.size_bytes == sum(file.size for file in manifest.files)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    path = tmp_path / "tiny"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(path)], check=True)
    yield path
    subprocess.run(["umount", str(path)], check=True)


@pytest.mark.root
async def test_a_full_disk_is_told_with_both_numbers_and_left_clean(
    originals: dict[str, Path], tiny_disk: Path
) -> None:
    path = originals["llama"]
    spec = read_spec(path)
    extent = extent_of(spec, layers=(0, 3))
    source = FlakySource(path)
    with pytest.raises(FleetError, match=r"[0-9]{6} bytes needed, 2[0-9]{5} free in") as caught:
        await fetch_shard(spec, DIGEST, extent, target_dir=tiny_disk, sources=[source])
    assert caught.value.code == "E708"
    assert source.sent_bytes == 0
    assert list((tiny_disk / "shards").iterdir()) == []
    small = extent_of(spec, layers=(0, 1), share=(0, 2), stages=(False, False))
    await fetch_shard(spec, DIGEST, small, target_dir=tiny_disk, sources=[source])
    _assert_holds(shard_path(tiny_disk, spec, small), path, spec, small)
