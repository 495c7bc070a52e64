from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from agent.models.holdings import find_model, list_holdings
from agent.models.manifest import read_manifest
from tests.agent.models.conftest import edit_json

Models = Callable[[str], Path]


def test_models_are_listed_with_what_is_wrong_with_them(models: Models, tmp_path: Path) -> None:
    good, bad = models("llama"), models("qwen2")
    edit_json(bad / "config.json", architectures=["GPT2LMHeadModel"])
    (tmp_path / "models" / "notes").mkdir()
    holdings = list_holdings(
        [tmp_path, tmp_path / "models", tmp_path / "absent"], host="h", cache_dir=tmp_path / "c"
    )
    assert [(holding.name, holding.is_complete) for holding in holdings] == [("llama", True), ("qwen2", False)]
    assert "GPT2LMHeadModel" in holdings[1].trouble
    assert (holdings[0].digest, holdings[0].path, holdings[0].host) == ("", str(good), "h")
    assert holdings[0].size_bytes > 100_000
    digest = read_manifest(good, cache_dir=tmp_path / "c").digest
    assert list_holdings([good], host="h", cache_dir=tmp_path / "c")[0].digest == digest


def test_a_hub_cache_is_searched(models: Models, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--org--Small" / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    models("llama").rename(snapshot)
    (holding,) = list_holdings([tmp_path / "hub"], host="h", cache_dir=tmp_path / "c")
    assert (holding.name, holding.path) == ("Small", str(snapshot))


def test_a_model_is_found_by_path_and_by_digest(models: Models, tmp_path: Path) -> None:
    path = models("llama")
    cache_dir = tmp_path / "c"
    assert find_model([], path=str(path), cache_dir=cache_dir) == path
    assert find_model([], path=str(tmp_path), cache_dir=cache_dir) is None
    digest = read_manifest(path, cache_dir=tmp_path / "elsewhere").digest
    assert find_model([tmp_path], digest=digest, cache_dir=cache_dir) is None
    assert find_model([], digest=digest, path=str(path), cache_dir=cache_dir) == path
    assert find_model([], digest=digest, cache_dir=cache_dir) == path
    assert find_model([], digest="0" * 64, path=str(path), cache_dir=cache_dir) is None


def test_a_model_that_changed_is_not_the_one_asked_for(models: Models, tmp_path: Path) -> None:
    path = models("llama")
    digest = read_manifest(path, cache_dir=tmp_path / "c").digest
    edit_json(path / "generation_config.json", eos_token_id=9)
    assert find_model([], digest=digest, cache_dir=tmp_path / "c") is None
    (path / "model.safetensors").unlink()
    assert find_model([], digest=digest, path=str(path), cache_dir=tmp_path / "c") is None
