from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from agent.errors import FleetError
from agent.models import manifest as manifest_module
from agent.models.manifest import (
    MANIFEST_FILE,
    cached_digest,
    check_manifest,
    digest_of,
    hashed_paths,
    load_manifest,
    read_manifest,
)
from agent.wire.agent import ManifestFile
from tests.agent.models.conftest import edit_json

Models = Callable[[str], Path]


def test_only_a_model_s_files_count(models: Models, tmp_path: Path) -> None:
    path = models("llama")
    for name in (
        "README.md",
        "pytorch_model.bin",
        "consolidated.safetensors",
        "model.safetensors.index.json",
        ".x.json",
    ):
        (path / name).write_text("{}")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"):
        (path / name).write_text("{}")
    manifest = read_manifest(path, cache_dir=tmp_path / "cache")
    assert [file.name for file in manifest.files] == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for file in manifest.files:
        content = (path / file.name).read_bytes()
        assert (file.size, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert manifest.spec.digest == manifest.digest == digest_of(manifest.files)
    check_manifest(manifest, manifest.digest)


def test_the_same_files_elsewhere_are_the_same_model(
    models: Models, originals: dict[str, Path], tmp_path: Path
) -> None:
    here = read_manifest(models("llama-sharded"), cache_dir=tmp_path / "cache")
    there = read_manifest(originals["llama-sharded"], cache_dir=tmp_path / "cache")
    assert here.digest == there.digest
    assert "model.safetensors.index.json" in {file.name for file in here.files}


def test_a_restart_reads_no_file_again(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = models("llama")
    hashed: list[str] = []
    original = manifest_module.hash_stream

    def counting(file: Path, length: int) -> str:
        hashed.append(file.name)
        return original(file, length)

    monkeypatch.setattr(manifest_module, "hash_stream", counting)
    assert cached_digest(path, cache_dir=tmp_path / "cache") == ""
    first = read_manifest(path, cache_dir=tmp_path / "cache")
    assert sorted(hashed) == sorted(file.name for file in first.files)
    hashed.clear()
    assert read_manifest(path, cache_dir=tmp_path / "cache") == first
    assert cached_digest(path, cache_dir=tmp_path / "cache") == first.digest
    assert hashed_paths(first.digest, cache_dir=tmp_path / "cache") == [path]
    assert hashed == []


def test_a_changed_file_is_hashed_again(models: Models, tmp_path: Path) -> None:
    path = models("llama")
    first = read_manifest(path, cache_dir=tmp_path / "cache")
    edit_json(path / "generation_config.json", eos_token_id=9)
    assert cached_digest(path, cache_dir=tmp_path / "cache") == ""
    assert read_manifest(path, cache_dir=tmp_path / "cache").digest != first.digest


def test_a_replaced_file_with_the_same_size_and_time_is_noticed(models: Models, tmp_path: Path) -> None:
    path = models("llama")
    first = read_manifest(path, cache_dir=tmp_path / "cache")
    weights = path / "model.safetensors"
    stat = weights.stat()
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    (path / "new").write_bytes(content)
    os.utime(path / "new", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    (path / "new").replace(weights)
    assert read_manifest(path, cache_dir=tmp_path / "cache").digest != first.digest


def test_a_manifest_with_unsafe_names_or_another_digest_is_refused(models: Models, tmp_path: Path) -> None:
    manifest = read_manifest(models("llama"), cache_dir=tmp_path / "cache")
    with pytest.raises(FleetError, match="was expected") as caught:
        check_manifest(manifest, "0" * 64)
    assert caught.value.code == "E706"
    files = (*manifest.files, ManifestFile(name="../evil.safetensors", size=1, sha256="0" * 64))
    digest = digest_of(files)
    evil = msgspec.structs.replace(
        manifest, files=files, digest=digest, spec=msgspec.structs.replace(manifest.spec, digest=digest)
    )
    with pytest.raises(FleetError, match="no model file"):
        check_manifest(evil, digest)


def test_a_garbage_manifest_is_told(tmp_path: Path) -> None:
    assert load_manifest(tmp_path) is None
    (tmp_path / MANIFEST_FILE).write_text("{")
    with pytest.raises(FleetError, match="is not a manifest") as caught:
        load_manifest(tmp_path)
    assert caught.value.code == "E706"
