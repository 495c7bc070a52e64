from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import FleetError
from agent.models.ranges import READ_PIECE_BYTES, hash_ranges, ranges_of, read_ranges, split_ranges
from agent.models.spec import read_spec
from agent.planner.shards import slice_shard
from agent.wire.agent import ByteRange
from tests.agent.models.conftest import PLAIN, extent_of, reference_slices, stored_bytes

Models = Callable[[str], Path]


@pytest.mark.parametrize("name", [*PLAIN, "phi3", "gemma3", "mixtral", "qwen3moe"])
@pytest.mark.parametrize("share", [(0, 1), (0, 2), (1, 2)])
def test_ranges_are_what_torch_cuts(originals: dict[str, Path], name: str, share: tuple[int, int]) -> None:
    import torch

    spec = read_spec(originals[name])
    extent = extent_of(spec, layers=(1, 3), share=share, stages=(False, True))
    ranges = ranges_of(spec, slice_shard(spec, extent))
    assert sum(piece.num_bytes for piece in ranges) == stored_bytes(spec, extent)
    reference = reference_slices(originals[name], spec, extent)
    for piece, bytes_of in zip(slice_shard(spec, extent), ranges, strict=True):
        expected = reference[piece.name].view(-1).view(dtype=torch.uint8).numpy().tobytes()
        assert b"".join(read_ranges(originals[name], [bytes_of])) == expected
        assert bytes_of.count == 1 or piece.dim == 1


_RANGES = st.lists(
    st.builds(
        ByteRange,
        file=st.just("model.safetensors"),
        offset=st.integers(0, 500),
        length=st.integers(0, 90),
        stride=st.just(90),
        count=st.integers(1, 20),
    ),
    max_size=6,
)


@settings(deadline=None)
@given(ranges=_RANGES, limit=st.integers(1, 200))
def test_split_requests_give_the_same_bytes_within_the_limit(
    tmp_path_factory: pytest.TempPathFactory, ranges: list[ByteRange], limit: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "split"
    if not path.is_dir():
        path.mkdir()
        (path / "model.safetensors").write_bytes(bytes(index % 251 for index in range(4096)))
    requests = list(split_ranges(ranges, limit))
    assert all(sum(piece.num_bytes for piece in request) <= limit for request in requests)
    assert b"".join(b"".join(read_ranges(path, request)) for request in requests) == b"".join(
        read_ranges(path, ranges)
    )


def test_pieces_are_bounded_and_hash_to_what_is_promised(tmp_path: Path) -> None:
    content = bytes(range(256)) * (3 * READ_PIECE_BYTES // 256) + b"end"
    (tmp_path / "model.safetensors").write_bytes(content)
    whole = [ByteRange(file="model.safetensors", offset=0, length=len(content), stride=len(content), count=1)]
    pieces = list(read_ranges(tmp_path, whole))
    assert b"".join(pieces) == content
    assert max(len(piece) for piece in pieces) <= READ_PIECE_BYTES
    assert hash_ranges(tmp_path, whole) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("piece", "said"),
    [
        (ByteRange("model.safetensors", 90, 20, 20, 1), "has 100 bytes, a range up to 110"),
        (ByteRange("model.safetensors", 0, 10, 50, 3), "a range up to 110"),
        (ByteRange("model.safetensors", -1, 10, 10, 1), "negative"),
        (ByteRange("model.safetensors", 0, 10, 0, 5), "overlapping"),
        (ByteRange("../model.safetensors", 0, 1, 1, 1), "no model file"),
        (ByteRange("/etc/passwd", 0, 1, 1, 1), "no model file"),
        (ByteRange("other.safetensors", 0, 1, 1, 1), "has no other.safetensors"),
    ],
)
def test_what_cannot_be_served_is_refused(tmp_path: Path, piece: ByteRange, said: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(FleetError, match=said) as caught:
        read_ranges(tmp_path, [piece])
    assert caught.value.code == "E709"


def test_more_than_the_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(FleetError, match="100 bytes were asked for at once, at most 99"):
        read_ranges(tmp_path, [ByteRange("model.safetensors", 0, 50, 50, 2)], limit=99)
