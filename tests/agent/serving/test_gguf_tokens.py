"""Tokenizers out of GGUF metadata give the ids of the tokenizers that went in, and of llama.cpp's algorithm."""

from __future__ import annotations

import itertools
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from agent.errors import FleetError
from agent.serving.chat import ChatTemplate
from agent.serving.gguf_tokens import BYTE, CONTROL, NORMAL, SPLITS, UNKNOWN, gguf_chat_template, gguf_tokens
from tests.agent.serving.tokenizer import BOS, CHAT_TEMPLATE, EOS, small_tokenizer

TEXTS = (
    "",
    "Hello world",
    " leading and  double   spaces ",
    "def f(x):\n\treturn x['key'] + 3.1415\r\n\r\n",
    "I'll, we'LL, DON'T; it's 12345678 o'clock",
    "Grüße, 東京 および Привет 🚀🏳️‍🌈 e\u0301",
    "<|user|>\nhi<|end|>\n<|assistant|>",
)
# what the models' own tokenizer.json files say
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
GPT4O_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level_metadata(**changes: Any) -> dict[str, Any]:
    content = json.loads(small_tokenizer().to_str())
    vocab: dict[str, int] = content["model"]["vocab"]
    special = {each["content"] for each in content["added_tokens"]}
    tokens = sorted(vocab, key=vocab.__getitem__)
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL if token in special else NORMAL for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in content["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": BOS,
        "tokenizer.ggml.eos_token_id": EOS,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    } | changes


def sentencepiece_metadata(**changes: Any) -> dict[str, Any]:
    """Pieces of a real BPE over the words of a text, scored by the order in which they were made."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(
        [str(json.__doc__), str(pytest.__doc__), *TEXTS],
        trainers.BpeTrainer(vocab_size=300, show_progress=False),
    )
    vocab = tokenizer.get_vocab()
    pieces = sorted(vocab, key=vocab.__getitem__)
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    special = ["<unk>", "<s>", "</s>"]
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [*special, *fallback, *pieces],
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(index) for index in range(len(pieces))],
        "tokenizer.ggml.token_type": [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(pieces),
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    } | changes


def merged_as_llama_cpp(metadata: dict[str, Any], text: str) -> list[int]:
    """`llm_tokenizer_spm`: the adjacent pair whose union scores best is merged, the leftmost of equals."""
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    ids = {token: index for index, token in enumerate(tokens)}
    scores: list[float] = metadata["tokenizer.ggml.scores"]
    symbols = list("▁" + text.replace(" ", "▁")) if text else []
    while True:
        pairs = [
            (-scores[ids[left + right]], place)
            for place, (left, right) in enumerate(itertools.pairwise(symbols))
            if left + right in ids
        ]
        if not pairs:
            break
        _, place = min(pairs)
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
    found: list[int] = []
    for symbol in symbols:
        found += [ids[symbol]] if symbol in ids else [3 + byte for byte in symbol.encode()]
    return found


@pytest.mark.parametrize("text", TEXTS)
def test_a_byte_level_tokenizer_comes_back_whole(text: str) -> None:
    ours, original = gguf_tokens(byte_level_metadata()), small_tokenizer()
    for adds_special in (True, False):
        assert (
            list(ours.encode(text, adds_special=adds_special))
            == original.encode(text, add_special_tokens=adds_special).ids
        )
    assert ours.decode(list(ours.encode(text, adds_special=True))) == original.decode(original.encode(text).ids)


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40))
def test_any_text_has_the_original_ids(text: str) -> None:
    ours = gguf_tokens(byte_level_metadata())
    assert (
        list(ours.encode(text, adds_special=False)) == small_tokenizer().encode(text, add_special_tokens=False).ids
    )


@pytest.mark.parametrize(("name", "pattern"), [("llama-bpe", LLAMA3_PATTERN), ("gpt-4o", GPT4O_PATTERN)])
def test_texts_are_split_as_the_model_s_own_tokenizer_splits_them(name: str, pattern: str) -> None:
    theirs = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    ours = [pre_tokenizers.Split(Regex(each), behavior="isolated") for each in SPLITS[name].patterns]
    for text in TEXTS:
        assert pre_tokenizers.Sequence(ours).pre_tokenize_str(text) == theirs.pre_tokenize_str(text)


def test_qwen_splits_as_transformers_qwen_does() -> None:
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    theirs = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    (pattern,) = SPLITS["qwen2"].patterns
    ours = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    for text in TEXTS:
        assert ours.pre_tokenize_str(text) == theirs.pre_tokenize_str(text)


@pytest.mark.parametrize("text", TEXTS)
def test_a_sentencepiece_tokenizer_merges_by_score(text: str) -> None:
    metadata = sentencepiece_metadata()
    ours = gguf_tokens(metadata)
    ids = ours.encode(text, adds_special=False)
    assert list(ids) == merged_as_llama_cpp(metadata, text)
    assert ours.decode(list(ids)) == text
    assert ours.encode("a", adds_special=True)[0] == 1
    assert ours.bytes_of(3 + 0xE2) == b"\xe2"


def test_gemma_s_sentencepiece_puts_no_space_in_front() -> None:
    ours = gguf_tokens(sentencepiece_metadata(**{"tokenizer.ggml.add_space_prefix": False}))
    assert ours.decode(list(ours.encode(" a b", adds_special=False))) == " a b"
    assert ours.encode("a", adds_special=False) != gguf_tokens(sentencepiece_metadata()).encode(
        "a", adds_special=False
    )


def test_end_tokens_are_found_by_name_and_by_text() -> None:
    metadata = byte_level_metadata()
    tokens = [*metadata["tokenizer.ggml.tokens"], "<|eot_id|>", "<|im_end|>"]
    kinds = [*metadata["tokenizer.ggml.token_type"], CONTROL, NORMAL]
    metadata |= {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.eot_token_id": 7,
    }
    ours = gguf_tokens(metadata, eos_token_ids=(9,))
    assert ours.eos_token_ids == {EOS, 7, 9, len(tokens) - 2}


def test_the_file_s_own_template_is_rendered() -> None:
    chat = _chat(byte_level_metadata(), go_template="{{ .Prompt }} <|im_start|>")
    assert chat.render([{"role": "user", "content": " hi "}]) == "<|begin|><|user|>\nhi<|end|>\n<|assistant|>\n"


@pytest.mark.parametrize(
    ("go_template", "prompt"),
    [
        ("{{ range .Messages }}<|im_start|>{{ .Role }}", "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"),
        (
            "<|start_header_id|>system<|end_header_id|>",
            "<|begin|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        ("<start_of_turn>user", "<|begin|><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n"),
        ("[INST] {{ .Prompt }} [/INST]", "<|begin|>[INST] hi [/INST]"),
        ("{{ if .System }}<|system|>{{ .System }}<|end|>", "<|user|>\nhi<|end|>\n<|assistant|>\n"),
    ],
)
def test_a_go_template_is_known_by_its_marks(go_template: str, prompt: str) -> None:
    metadata = byte_level_metadata()
    del metadata["tokenizer.chat_template"]
    chat = _chat(metadata, go_template=go_template)
    assert not chat.is_plain
    assert chat.render([{"role": "user", "content": "hi"}]) == prompt


def test_without_a_known_template_chats_are_plain() -> None:
    metadata = byte_level_metadata()
    del metadata["tokenizer.chat_template"]
    assert _chat(metadata, go_template="{{ .Prompt }}").is_plain


def test_what_ollama_brings_along_counts_where_the_client_says_nothing() -> None:
    params = {"stop": ["<|user|>", ""], "temperature": 0.2, "num_ctx": 9, "top_k": "many"}
    chat = _chat(byte_level_metadata(), params=params, system="Be brief.")
    assert chat.stop == ("<|user|>",)
    assert chat.options == {"temperature": 0.2}
    assert "Be brief." in chat.render([{"role": "user", "content": "hi"}])
    own = chat.render([{"role": "system", "content": "Mine."}, {"role": "user", "content": "hi"}])
    assert "Mine." in own
    assert "Be brief." not in own


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokenizer.ggml.pre": "klingon"}, "pre-tokenizer 'klingon' is not known"),
        ({"tokenizer.ggml.model": "bert"}, "tokenizer model 'bert' is not known"),
        ({"tokenizer.ggml.merges": ["a nothing"]}, "merges of tokens that are not in its vocabulary"),
        ({"tokenizer.ggml.tokens": None}, "no list tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.token_type": [1]}, "512 tokens, 1 types"),
    ],
)
def test_what_cannot_be_rebuilt_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(FleetError, match=said) as caught:
        gguf_tokens(byte_level_metadata(**changes))
    assert caught.value.code == "E710"


def _chat(metadata: dict[str, Any], **more: Any) -> ChatTemplate:
    return gguf_chat_template(metadata, now=lambda: datetime(2026, 1, 1, tzinfo=UTC), **more)
