"""Ollama's store: what is in it, by the names that Ollama gives, and nothing that its blobs do not prove."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.errors import FleetError
from agent.models.fetch import fetch_small_files
from agent.models.files import HEADER_FILE, gguf_files, has_small_files, header_path, read_ollama_text
from agent.models.gguf_header import read_gguf_metadata
from agent.models.holdings import find_model, list_holdings
from agent.models.manifest import check_manifest, read_manifest
from agent.models.ollama_store import find_in_store, known_stores, models_in, name_of_manifest, read_params
from agent.models.sources import DirectorySource
from agent.models.spec import read_spec
from tests.gguf_files import ollama_store, random_model, write_gguf

LAYERS = {"template": b"{{ .Prompt }}", "params": b'{"stop": ["x"]}', "system": b"Be brief.", "license": b"free"}


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny-Q8_0.gguf"
    write_gguf(random_model("llama", head_dim=64, num_hidden_layers=1), path, "Q8_0")
    return path


@pytest.fixture
def manifest(weights: Path, tmp_path: Path) -> Path:
    return ollama_store(tmp_path / "store", "tiny", weights, LAYERS, tag="1b")


def edit(manifest: Path, change: Callable[[dict[str, object]], object]) -> None:
    content = json.loads(manifest.read_text())
    change(content)
    manifest.write_text(json.dumps(content))


def test_a_model_is_known_by_ollama_s_name(manifest: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert read_spec(manifest).name == "tiny:1b"
    assert find_in_store(store, "tiny:1b") == manifest
    assert find_in_store(store, "tiny") is None, "there is no tiny:latest"
    latest = manifest.with_name("latest")
    latest.write_bytes(manifest.read_bytes())
    assert find_in_store(store, "tiny") == latest
    foreign = store / "manifests" / "hf.co" / "user" / "tiny" / "Q8_0"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(manifest.read_bytes())
    assert name_of_manifest(foreign) == "hf.co/user/tiny:Q8_0"
    assert find_in_store(store, "hf.co/user/tiny:Q8_0") == foreign
    assert set(models_in(store)) == {manifest, latest, foreign}


def test_stores_are_found_where_ollama_keeps_them(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "store"))
    assert known_stores() == (tmp_path / "store",)
    monkeypatch.setenv("OLLAMA_MODELS", "")
    assert known_stores() == ()
    monkeypatch.delenv("OLLAMA_MODELS")
    assert (tmp_path / "store") not in known_stores()
    (tmp_path / ".ollama").mkdir()
    (tmp_path / ".ollama" / "models").symlink_to(tmp_path / "store")
    assert (tmp_path / ".ollama" / "models") in known_stores()


def test_it_is_listed_and_found_by_its_digest(manifest: Path, weights: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (held,) = list_holdings([tmp_path / "store"], host="h1", cache_dir=cache)
    assert (held.name, held.path, held.is_complete, held.digest) == ("tiny:1b", str(manifest), True, "")
    assert (held.family, held.quantisation) == ("llama", "Q8_0")
    assert weights.stat().st_size < held.size_bytes < weights.stat().st_size + 100
    found = read_manifest(manifest, cache_dir=cache)
    check_manifest(found, found.digest)
    assert {file.name for file in found.files} == {
        "model.gguf", HEADER_FILE, "ollama_template", "ollama_params", "ollama_system",
    }  # fmt: skip
    assert find_model([], cache_dir=cache, digest=found.digest) == manifest.resolve()
    (held,) = list_holdings([tmp_path / "store"], host="h1", cache_dir=cache)
    assert held.digest == found.digest


async def test_its_small_files_serve_alone(manifest: Path, tmp_path: Path) -> None:
    found = read_manifest(manifest, cache_dir=tmp_path / "cache")
    target = tmp_path / "there"
    fetched = await fetch_small_files(found, target_dir=target, sources=[DirectorySource(manifest)])
    assert fetched == sum(file.size for file in found.files if file.name != "model.gguf")
    assert has_small_files(target)
    header = header_path(target)
    assert header == target / HEADER_FILE
    whole = gguf_files(manifest)["model.gguf"].path
    assert read_gguf_metadata(header) == read_gguf_metadata(whole)
    for path in (manifest, target):
        assert read_ollama_text(path, "template") == "{{ .Prompt }}"
        assert read_ollama_text(path, "system") == "Be brief."
        assert read_params(read_ollama_text(path, "params").encode(), where="here") == {"stop": ["x"]}


def test_a_blob_that_is_not_its_name_is_refused(manifest: Path, tmp_path: Path) -> None:
    blob = gguf_files(manifest)["model.gguf"].path
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(FleetError, match="its name promises") as caught:
        read_manifest(manifest, cache_dir=tmp_path / "cache")
    assert caught.value.code == "E706"


def test_a_broken_store_is_listed_with_its_trouble(manifest: Path, tmp_path: Path) -> None:
    gguf_files(manifest)["model.gguf"].path.unlink()
    (held,) = list_holdings([tmp_path / "store"], host="h1", cache_dir=tmp_path / "cache")
    assert not held.is_complete
    assert "pull the model again" in held.trouble


def test_nothing_leads_out_of_the_store(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    digest = "sha256:../../../secret"
    edit(manifest, lambda content: content["layers"][1].update(digest=digest))  # type: ignore[index]
    with pytest.raises(FleetError, match="no sha256 digest") as caught:
        read_spec(manifest)
    assert caught.value.code == "E704"


@pytest.mark.parametrize(
    ("kind", "said"),
    [("adapter", "has an adapter"), ("model", "has 2 GGUF layers"), ("tensor", "has 0 GGUF layers")],
)
def test_what_is_not_one_gguf_is_refused(kind: str, said: str, manifest: Path) -> None:
    def change(content: dict[str, object]) -> None:
        layers = content["layers"]
        assert isinstance(layers, list)
        media = f"application/vnd.ollama.image.{kind}"
        if kind == "tensor":
            layers[0]["mediaType"] = media
        else:
            layers.append({**layers[0], "mediaType": media})

    edit(manifest, change)
    with pytest.raises(FleetError, match=said) as caught:
        read_spec(manifest)
    assert caught.value.code == "E702"


def test_a_manifest_that_is_garbage_is_refused(manifest: Path) -> None:
    manifest.write_text('{"layers": 3}')
    with pytest.raises(FleetError, match="is no Ollama manifest") as caught:
        read_spec(manifest)
    assert caught.value.code == "E704"


def test_the_same_weights_elsewhere_are_the_same_bytes(manifest: Path, weights: Path, tmp_path: Path) -> None:
    """A copy of the blob as a file of its own is another model to the digest, and has the same weights."""
    cache = tmp_path / "cache"
    of_store = {file.name: file.sha256 for file in read_manifest(manifest, cache_dir=cache).files}
    of_file = {file.name: file.sha256 for file in read_manifest(weights, cache_dir=cache).files}
    assert of_file == {name: of_store[name] for name in ("model.gguf", HEADER_FILE)}
    assert of_file["model.gguf"] == hashlib.sha256(weights.read_bytes()).hexdigest()
