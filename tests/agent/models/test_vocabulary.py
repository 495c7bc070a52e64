"""Two models speak of the same tokens or do not, whatever kind of file says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, models

from agent.errors import FleetError
from agent.models.files import HEADER_FILE, locate
from agent.models.manifest import read_manifest
from agent.models.vocabulary import first_difference, read_vocabulary, vocabulary_file
from tests.agent.models.conftest import save_model
from tests.gguf_files import random_model, write_gguf

WORDS = {"a": 0, "b": 1, "ab": 2}


def save_tokenizer(folder: Path, tokenizer: Tokenizer) -> Path:
    folder.mkdir(exist_ok=True)
    tokenizer.add_special_tokens([AddedToken("<end>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_a_tokenizer_of_either_kind_has_its_pieces_and_what_was_added(tmp_path: Path) -> None:
    merged = Tokenizer(models.BPE(vocab=WORDS, merges=[("a", "b")]))
    scored = Tokenizer(models.Unigram([("a", 0.0), ("b", -1.0), ("ab", -2.0)], unk_id=0))
    expected = {0: "a", 1: "b", 2: "ab", 3: "<end>"}
    assert read_vocabulary(save_tokenizer(tmp_path / "bpe", merged)) == expected
    assert read_vocabulary(save_tokenizer(tmp_path / "unigram", scored)) == expected


def test_a_gguf_has_the_tokens_of_its_header_and_its_header_alone_is_enough(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE(vocab=WORDS, merges=[("a", "b")]))
    write_gguf(random_model("llama", head_dim=64, vocab_size=6), tmp_path / "m.gguf", "F32", tokenizer=tokenizer)
    found = read_vocabulary(tmp_path / "m.gguf")
    assert found == {0: "a", 1: "b", 2: "ab"}, "padding is left out"
    part = locate(tmp_path / "m.gguf", HEADER_FILE)
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    (fetched / HEADER_FILE).write_bytes(part.path.read_bytes()[: part.length])
    assert read_vocabulary(fetched) == found
    manifest = read_manifest(tmp_path / "m.gguf", cache_dir=tmp_path / "cache")
    assert vocabulary_file(manifest).size == part.length


def test_padding_is_no_difference_and_another_token_is(tmp_path: Path) -> None:
    one = {0: "a", 1: "b", 2: "c"}
    assert first_difference(one, {0: "a", 1: "b"}) is None
    assert first_difference({0: "a"}, one) is None
    assert first_difference(one, {0: "a", 1: "c", 2: "d"}) == 1


def test_what_has_no_vocabulary_is_told(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="cannot be read") as refused:
        read_vocabulary(tmp_path)
    assert refused.value.code == "E710"
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {}}))
    with pytest.raises(FleetError, match="KeyError"):
        read_vocabulary(tmp_path)
    save_model(tmp_path / "bare", "llama", dtype="float32")
    with pytest.raises(FleetError, match=r"has no tokenizer\.json"):
        vocabulary_file(read_manifest(tmp_path / "bare", cache_dir=tmp_path / "cache"))
