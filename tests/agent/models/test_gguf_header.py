"""GGUF headers from anywhere: read when they are right, refused with file, place and value when they are not."""

from __future__ import annotations

import random
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from agent.errors import FleetError
from agent.models.gguf_header import MAX_SHORT_ARRAY, read_gguf_header, read_gguf_metadata

U32, U64 = struct.Struct("<I"), struct.Struct("<Q")


def text(value: str) -> bytes:
    return U64.pack(len(value.encode())) + value.encode()


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + U32.pack(kind) + value


def tensor(name: str, shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    sizes = b"".join(U64.pack(size) for size in shape)
    return text(name) + U32.pack(len(shape)) + sizes + U32.pack(kind) + U64.pack(offset)


def document(
    *, keys: tuple[bytes, ...] = (), tensors: tuple[bytes, ...] = (), version: int = 3, **counts: int
) -> bytes:
    num_tensors, num_keys = counts.get("num_tensors", len(tensors)), counts.get("num_keys", len(keys))
    head = b"GGUF" + U32.pack(version) + U64.pack(num_tensors) + U64.pack(num_keys)
    body = head + b"".join(keys) + b"".join(tensors)
    return body + b"\0" * (-len(body) % 32)


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    return path


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """A file of `gguf`'s own writer, with a value of every type."""
    path = tmp_path / "real.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_uint8("u8", 200)
    writer.add_int8("i8", -3)
    writer.add_uint16("u16", 65_000)
    writer.add_int16("i16", -300)
    writer.add_int32("i32", -70_000)
    writer.add_uint64("u64", 1 << 60)
    writer.add_int64("i64", -(1 << 60))
    writer.add_float32("f32", 0.5)
    writer.add_float64("f64", 0.1)
    writer.add_bool("flag", True)
    writer.add_string("said", "grüß Gott")
    writer.add_array("numbers", [1, 2, 3])
    writer.add_array("texts", [f"token {index}" for index in range(MAX_SHORT_ARRAY + 1)])
    writer.add_tensor("a", np.arange(6, dtype=np.float32).reshape(2, 3))
    raw = np.arange(2 * 144, dtype=np.uint8).reshape(2, 144)
    writer.add_tensor("b", raw, raw_dtype=gguf.GGMLQuantizationType.Q4_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_what_gguf_writes_is_read(real: Path) -> None:
    header = read_gguf_header(real)
    values = {name: header.metadata[name] for name in ("u8", "i8", "u16", "i16", "i32", "u64", "i64", "f32", "f64")}
    assert list(values.values()) == [200, -3, 65_000, -300, -70_000, 1 << 60, -(1 << 60), 0.5, 0.1]
    assert header.metadata["flag"] is True
    assert header.metadata["said"] == "grüß Gott"
    assert header.metadata["numbers"] == [1, 2, 3]
    assert "texts" not in header.metadata, "long arrays are for the tokenizer alone"
    assert read_gguf_metadata(real)["texts"][-1] == f"token {MAX_SHORT_ARRAY}"
    first, second = header.tensors
    assert (first.name, first.dtype, first.shape, first.length) == ("a", "F32", (2, 3), 24)
    assert (second.name, second.dtype, second.shape, second.length) == ("b", "Q4_K", (2, 256), 288)
    content = real.read_bytes()
    assert content[first.offset : first.offset + 24] == np.arange(6, dtype=np.float32).tobytes()
    assert content[second.offset : second.offset + 4] == b"\0\1\2\3"
    assert header.data_begin == first.offset


def test_the_header_alone_has_all_metadata(real: Path, tmp_path: Path) -> None:
    header = read_gguf_header(real)
    alone = written(tmp_path, real.read_bytes()[: header.data_begin])
    assert read_gguf_metadata(alone) == read_gguf_metadata(real)


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    path = written(tmp_path, document(keys=(key("a", 4, U32.pack(1)),)))
    assert read_gguf_header(path).metadata == {"a": 1}
    path.unlink()
    written(tmp_path, document(keys=(key("a", 4, U32.pack(2)), key("b", 4, U32.pack(3)))))
    assert read_gguf_header(path).metadata == {"a": 2, "b": 3}


def test_a_file_cut_off_anywhere_is_refused(real: Path, tmp_path: Path) -> None:
    content = real.read_bytes()
    end = read_gguf_header(real).data_begin
    for length in [*range(0, 800, 7), *range(800, end, 9973), end + 5, len(content) - 40]:
        with pytest.raises(FleetError, match=r"m\.gguf") as caught:
            read_gguf_header(written(tmp_path, content[:length]))
        assert caught.value.code == "E704"


def test_random_damage_is_refused_or_read_but_never_more(real: Path, tmp_path: Path) -> None:
    chance = random.Random(5)
    content = real.read_bytes()[:700] + real.read_bytes()[-400:]
    codes = []
    for _ in range(400):
        damaged = bytearray(content)
        for _ in range(chance.randint(1, 6)):
            damaged[chance.randrange(len(damaged))] = chance.choice((0, 1, 0x7F, 0xFF, chance.randrange(256)))
        try:
            read_gguf_header(written(tmp_path, bytes(damaged)))
        except FleetError as error:
            codes.append(error.code)
    assert len(codes) > 300
    assert set(codes) <= {"E702", "E704"}


HUGE = U64.pack(1 << 40)
REFUSED: dict[str, tuple[bytes, str, str]] = {
    "magic": (b"PK\3\4" + b"\0" * 60, "E704", "not a GGUF file"),
    "version 1": (document(version=1), "E702", "version 1"),
    "version 4": (document(version=4), "E702", "version 4"),
    "big-endian": (document(version=3 << 24), "E702", "version 3 in big-endian order"),
    "tensors without end": (document(num_tensors=1 << 50), "E704", "1125899906842624 tensors"),
    "keys without end": (document(num_keys=1 << 50), "E704", "1125899906842624 keys"),
    "a key without end": (document(num_keys=1) + HUGE, "E704", "a key is said to have"),
    "a text without end": (document(keys=(key("t", 8, HUGE),)), "E704", "t is said to have 1099511627776 bytes"),
    "an array without end": (document(keys=(key("t", 9, U32.pack(4) + HUGE),)), "E704", "1099511627776 items"),
    "a long array": (
        document(keys=(key("t", 9, U32.pack(12) + U64.pack(1 << 23)),)),
        "E704",
        "t would end at byte 67108",
    ),
    "arrays in arrays": (document(keys=(key("t", 9, U32.pack(9) + U64.pack(1)),)), "E704", "array of type 9"),
    "a type of value": (document(keys=(key("t", 77, b""),)), "E704", "unknown type 77"),
    "a key twice": (document(keys=(key("t", 4, U32.pack(1)),) * 2), "E704", "key t comes twice"),
    "alignment": (document(keys=(key("general.alignment", 4, U32.pack(7)),)), "E704", "alignment is 7"),
    "dimensions": (document(tensors=(tensor("w", (1,) * 5),)), "E704", "5 dimensions"),
    "no elements": (document(tensors=(tensor("w", (4, 0)),)), "E704", r"shape \[0, 4\]"),
    "elements without end": (
        document(tensors=(tensor("w", (1 << 40, 1 << 40)),)),
        "E704",
        "tensor w has the shape",
    ),
    "a type of tensor": (document(tensors=(tensor("w", (4,), 99),)), "E704", "unknown type 99"),
    "half a block": (document(tensors=(tensor("w", (48,), 8),)) + b"\0" * 64, "E704", "no whole Q8_0 blocks"),
    "an odd place": (document(tensors=(tensor("w", offset=5),)) + b"\0" * 64, "E704", "not a multiple of 32"),
    "data beyond the end": (document(tensors=(tensor("w", (1 << 20,)),)), "E704", "is cut off: tensor w ends at"),
    "overlapping": (
        document(tensors=(tensor("w", (16,)), tensor("v", (16,), offset=32))) + b"\0" * 128,
        "E704",
        "inside the tensor before it",
    ),
    "a tensor twice": (
        document(tensors=(tensor("w"), tensor("w", offset=32))) + b"\0" * 128,
        "E704",
        "tensor w comes twice",
    ),
}


@pytest.mark.parametrize("trouble", REFUSED)
def test_what_is_wrong_is_named_and_costs_no_memory(trouble: str, tmp_path: Path) -> None:
    content, code, said = REFUSED[trouble]
    if trouble == "a key without end":
        content = content[:24] + HUGE
    path = written(tmp_path, content)
    tracemalloc.start()
    with pytest.raises(FleetError, match=said) as caught:
        read_gguf_header(path)
    peak: Any = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.code == code
    assert str(path) in caught.value.message
    assert peak < 1 << 20
