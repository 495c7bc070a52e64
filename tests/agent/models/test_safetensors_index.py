from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from safetensors import safe_open

from agent.errors import FleetError
from agent.models.safetensors_index import encode_header, read_header, read_index, weight_files

Models = Callable[[str], Path]


def _write_raw(path: Path, header: bytes, data: bytes) -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def test_every_tensor_is_found_where_safetensors_finds_it(originals: dict[str, Path]) -> None:
    for path in originals.values():
        entries = read_index(path)
        assert [entry.name for entry in entries] == sorted(entry.name for entry in entries)
        for file in weight_files(path):
            with safe_open(path / file, framework="pt") as reference:
                assert {entry.name for entry in entries if entry.file == file} == set(reference.keys())
                raw = (path / file).read_bytes()
                for entry in (entry for entry in entries if entry.file == file):
                    tensor = reference.get_tensor(entry.name)
                    assert entry.shape == tuple(tensor.shape)
                    expected = tensor.view(-1).view(dtype=__import__("torch").uint8).numpy().tobytes()
                    assert raw[entry.offset : entry.offset + entry.length] == expected


def test_a_sharded_model_is_one_index(models: Models) -> None:
    path = models("llama-sharded")
    assert len(weight_files(path)) > 2
    assert {entry.file for entry in read_index(path)} == set(weight_files(path))


def test_a_missing_shard_file_is_named(models: Models) -> None:
    path = models("llama-sharded")
    gone = weight_files(path)[1]
    (path / gone).unlink()
    with pytest.raises(FleetError, match=gone) as caught:
        read_index(path)
    assert caught.value.code == "E704"


def test_a_cut_off_file_is_told_with_both_sizes(models: Models) -> None:
    file = models("llama") / "model.safetensors"
    size = file.stat().st_size
    with file.open("r+b") as handle:
        handle.truncate(size - 1000)
    with pytest.raises(FleetError, match=f"says {size} bytes, the file has {size - 1000}"):
        read_header(file)


def test_bytes_after_the_last_tensor_are_refused(models: Models) -> None:
    file = models("llama") / "model.safetensors"
    with file.open("ab") as handle:
        handle.write(b"xyz")
    with pytest.raises(FleetError, match="after its last tensor"):
        read_header(file)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "0 bytes"),
        (b"PK\x03\x04" + b"x" * 60, "not safetensors or is cut off"),
        (struct.pack("<Q", 4) + b"{]}!", "garbage header"),
        (struct.pack("<Q", 2) + b"[]", "garbage header"),
        (struct.pack("<Q", 14) + b'{"a": {"b":1}}', "garbage header"),
    ],
)
def test_garbage_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(FleetError, match=said) as caught:
        read_header(file)
    assert caught.value.code == "E704"


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ((0, 16), (8, 24), "overlaps"),
        ((0, 16), (24, 40), "gap"),
        ((0, 16), (16, 24), "8 bytes at 16, 16 expected"),
        ((0, 16), (-16, 0), "16 bytes at -16"),
    ],
)
def test_tensors_cover_the_data_exactly(
    tmp_path: Path, first: tuple[int, int], second: tuple[int, int], said: str
) -> None:
    header = msgspec.json.encode(
        {
            "a": {"dtype": "F32", "shape": [4], "data_offsets": first},
            "b": {"dtype": "F32", "shape": [2, 2], "data_offsets": second},
        }
    )
    with pytest.raises(FleetError, match=said):
        read_header(_write_raw(tmp_path / "model.safetensors", header, b"\0" * 40))


def test_a_tensor_twice_in_one_header_is_refused(tmp_path: Path) -> None:
    one = b'"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    with pytest.raises(FleetError, match="names a twice"):
        read_header(_write_raw(tmp_path / "model.safetensors", b"{" + one + b"," + one + b"}", b"\0" * 4))


def test_a_tensor_in_two_files_is_refused(models: Models) -> None:
    path = models("llama-sharded")
    first, second = weight_files(path)[:2]
    (path / second).write_bytes((path / first).read_bytes())
    with pytest.raises(FleetError, match=f"is in both {first} and {second}"):
        read_index(path)


def test_an_index_that_leads_out_of_the_directory_is_refused(models: Models) -> None:
    path = models("llama-sharded")
    (path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../other/model.safetensors"}}')
    with pytest.raises(FleetError, match="not a safetensors file beside it"):
        read_index(path)


def test_pickle_is_never_loaded_and_said_so(models: Models) -> None:
    path = models("llama")
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(FleetError, match=r"pickle \(pytorch_model.bin\), which is never loaded") as caught:
        read_index(path)
    assert "safe_serialization" in caught.value.hint


def test_a_header_of_ours_is_read_by_safetensors(tmp_path: Path) -> None:
    header = encode_header({"w": ("F32", (2, 3)), "v": ("BF16", (5,))}, {"digest": "d"})
    (tmp_path / "x.safetensors").write_bytes(header + bytes(range(34)))
    assert len(header) % 8 == 0
    with safe_open(tmp_path / "x.safetensors", framework="pt") as reference:
        assert reference.metadata() == {"digest": "d"}
        assert tuple(reference.get_tensor("w").shape) == (2, 3)
        assert tuple(reference.get_tensor("v").shape) == (5,)
    assert [entry.name for entry in read_header(tmp_path / "x.safetensors")] == ["w", "v"]
