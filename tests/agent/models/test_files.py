"""What a path stands for: a directory, a file, a split set, or a manifest of Ollama's store."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from agent.errors import FleetError
from agent.models.files import HEADER_FILE, gguf_files, gguf_models_in, header_path, is_gguf_model, is_model, locate
from agent.models.holdings import find_model, list_holdings
from agent.models.manifest import MANIFEST_FILE, read_manifest
from agent.models.ranges import check_ranges, read_ranges
from agent.models.spec import read_spec
from agent.wire.agent import ByteRange
from tests.gguf_files import random_model, write_gguf

Models = Callable[[str], Path]


@pytest.fixture
def gguf_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    write_gguf(random_model("llama", head_dim=64, num_hidden_layers=1), folder / "a-Q8_0.gguf", "Q8_0")
    return folder


def test_a_directory_with_one_file_is_that_model(gguf_dir: Path, tmp_path: Path) -> None:
    file = gguf_dir / "a-Q8_0.gguf"
    assert is_gguf_model(file)
    assert is_gguf_model(gguf_dir)
    of_file, of_directory = (read_manifest(path, cache_dir=tmp_path / "cache") for path in (file, gguf_dir))
    assert of_file.digest == of_directory.digest
    assert (of_file.spec.name, of_directory.spec.name) == ("a-Q8_0", "folder")
    assert {part.name for part in of_file.files} == {"model.gguf", HEADER_FILE}
    assert header_path(gguf_dir) == file


def test_a_directory_with_several_asks_which(gguf_dir: Path) -> None:
    shutil.copy(gguf_dir / "a-Q8_0.gguf", gguf_dir / "b.gguf")
    (gguf_dir / "mmproj-a.gguf").write_bytes(b"GGUF")
    assert [path.name for path in gguf_models_in(gguf_dir)] == ["a-Q8_0.gguf", "b.gguf"]
    with pytest.raises(FleetError, match=r"has 2 GGUF models: a-Q8_0\.gguf, b\.gguf") as caught:
        read_spec(gguf_dir)
    assert caught.value.code == "E701"


def test_files_are_listed_beside_directories(gguf_dir: Path, models: Models, tmp_path: Path) -> None:
    shutil.copytree(models("llama"), tmp_path / "folder" / "plain")
    (gguf_dir / "broken.gguf").write_bytes(b"GGUF\3\0\0\0")
    found = {held.name: held for held in list_holdings([gguf_dir], host="h", cache_dir=tmp_path / "cache")}
    assert set(found) == {"a-Q8_0", "broken", "plain"}
    assert found["a-Q8_0"].quantisation == "Q8_0"
    assert found["plain"].quantisation == ""
    assert "would end at byte" in found["broken"].trouble


def test_an_uploaded_model_is_the_same_model(gguf_dir: Path, tmp_path: Path) -> None:
    """Upload writes every file of the manifest under its own name: the header is then there twice."""
    manifest = read_manifest(gguf_dir / "a-Q8_0.gguf", cache_dir=tmp_path / "cache")
    target = tmp_path / "models" / manifest.digest
    target.mkdir(parents=True)
    (target / MANIFEST_FILE).write_bytes(msgspec.json.encode(manifest))
    for file in manifest.files:
        part = locate(gguf_dir / "a-Q8_0.gguf", file.name)
        (target / file.name).write_bytes(part.path.read_bytes()[: part.length])
    there = tmp_path / "models"
    uploaded = find_model([there], cache_dir=there, digest=manifest.digest)
    assert uploaded == target
    assert read_manifest(target, cache_dir=there) == manifest
    (held,) = list_holdings([there], host="h", cache_dir=there)
    assert (held.name, held.is_complete, held.quantisation) == ("a-Q8_0", True, "Q8_0")


def test_the_header_is_a_part_of_the_file(gguf_dir: Path) -> None:
    parts = gguf_files(gguf_dir)
    header, whole = parts[HEADER_FILE], parts["model.gguf"]
    assert header.path == whole.path
    assert 0 < header.length < whole.length
    wanted = ByteRange(file=HEADER_FILE, offset=0, length=header.length, stride=header.length, count=1)
    assert b"".join(read_ranges(gguf_dir, [wanted])) == whole.path.read_bytes()[: header.length]
    with pytest.raises(FleetError, match="a range up to") as caught:
        check_ranges(gguf_dir, [ByteRange(file=HEADER_FILE, offset=1, length=header.length, stride=1, count=1)])
    assert caught.value.code == "E709"


@pytest.mark.parametrize("name", ["other.gguf", "config.json", "a-Q8_0.gguf.bak"])
def test_only_the_model_s_own_files_are_found(name: str, gguf_dir: Path) -> None:
    with pytest.raises(FleetError, match=f"has no {name}") as caught:
        locate(gguf_dir / "a-Q8_0.gguf", name)
    assert caught.value.code == "E709"


def test_a_directory_of_config_and_safetensors_stays_one(models: Models) -> None:
    path = models("llama")
    write_gguf(random_model("llama", head_dim=64, num_hidden_layers=1), path / "same.gguf", "F32")
    assert is_model(path)
    assert not is_gguf_model(path)
    assert header_path(path) is None
    assert read_spec(path).num_layers == 3
    assert locate(path, "model.safetensors").path == path / "model.safetensors"


def test_what_is_no_model_is_none(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("GGU")
    assert not is_model(tmp_path)
    assert not is_model(tmp_path / "notes.txt")
    assert not is_model(tmp_path / "missing.gguf")
