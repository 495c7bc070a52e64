"""Detokenisation piece by piece says the same as in one go, and never half a character."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from agent.errors import FleetError
from agent.serving.tokens import Detokenizer, ModelTokens, StopScanner
from tests.agent.serving.tokenizer import BOS, EOS, SPECIAL_TOKENS, VOCAB_SIZE, small_tokenizer, write_tokenizer

TOKENS = ModelTokens(small_tokenizer(), eos_token_ids=frozenset({EOS}))


def pieces_of(tokens: list[int], prompt: tuple[int, ...] = ()) -> list[str]:
    detokenizer = Detokenizer(TOKENS, prompt)
    return [*[detokenizer.push(token) for token in tokens], detokenizer.flush()]


@given(st.text(max_size=60) | st.text("\ufffdaé🦙", max_size=12))
def test_pieces_join_to_the_text_and_hold_no_broken_characters(text: str) -> None:
    pieces = pieces_of(list(TOKENS.encode(text, adds_special=False)))
    assert "".join(pieces) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


@given(st.lists(st.integers(len(SPECIAL_TOKENS), VOCAB_SIZE - 1), max_size=60))
def test_any_tokens_give_valid_text_that_agrees_up_to_what_never_became_a_character(tokens: list[int]) -> None:
    """A model may write bytes that are no UTF-8: each run of them reads as U+FFFD, however it was cut."""
    joined = "".join(pieces_of(tokens))
    joined.encode()
    whole = TOKENS.decode(tokens)
    assert [part for part in joined.split("\ufffd") if part] == [part for part in whole.split("\ufffd") if part]


def test_an_emoji_comes_out_whole_with_its_last_byte() -> None:
    tokens = list(TOKENS.encode("a🦙b", adds_special=False))
    pieces = [piece for piece in pieces_of(tokens) if piece]
    assert len(tokens) == 6
    assert pieces == ["a", "🦙", "b"]


def test_an_unfinished_character_at_the_end_is_left_out() -> None:
    tokens = list(TOKENS.encode("ok🦙", adds_special=False))[:-1]
    assert "".join(pieces_of(tokens)) == "ok"


def test_the_prompt_gives_the_context_that_keeps_a_leading_space() -> None:
    """sentencepiece-like decoders drop the first space of what they decode."""
    vocab = {"<unk>": 0, "▁the": 1, "▁cat": 2}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))  # noqa: S106 -- no password
    tokenizer.decoder = decoders.Metaspace()
    tokens = ModelTokens(tokenizer, eos_token_ids=frozenset())
    detokenizer = Detokenizer(tokens, (1,))
    assert [detokenizer.push(token) for token in (2, 1)] == [" cat", " the"]


def test_special_tokens_have_no_text_but_a_label() -> None:
    assert pieces_of([EOS, BOS]) == ["", "", ""]
    assert TOKENS.text_of(EOS) == "<|end|>"
    assert TOKENS.bytes_of(EOS) == b"<|end|>"


@given(st.text(min_size=1, max_size=30))
def test_the_bytes_of_tokens_join_to_the_text(text: str) -> None:
    tokens = TOKENS.encode(text, adds_special=False)
    assert b"".join(TOKENS.bytes_of(token) for token in tokens) == text.encode()


def test_text_before_a_stop_string_is_given_and_nothing_after() -> None:
    scanner = StopScanner(("STOP",))
    assert scanner.push("ab S") == ("ab ", False)
    assert scanner.push("TO") == ("", False)
    assert scanner.push("P more") == ("", True)
    assert scanner.flush() == ""


def test_what_only_looked_like_a_stop_string_is_given_late() -> None:
    scanner = StopScanner(("STOP",))
    assert scanner.push("xST") == ("x", False)
    assert scanner.push("ART") == ("START", False)
    assert scanner.push("ST") == ("", False)
    assert scanner.flush() == "ST"


@given(
    text=st.text(alphabet="ab\n", max_size=40),
    stops=st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(1, 5), max_size=40),
)
def test_stop_strings_are_found_however_the_text_is_cut(text: str, stops: list[str], cuts: list[int]) -> None:
    """Cut character by character the first match ends the text; nothing of it may have been given before."""
    scanner, given_text, rest, is_found = StopScanner(tuple(stops)), "", text, False
    for cut in [*cuts, len(text) + 1]:
        piece, rest = rest[:cut], rest[cut:]
        emitted, is_found = scanner.push(piece)
        given_text += emitted
        if is_found:
            break
    given_text += scanner.flush()
    if is_found:
        assert text.startswith(given_text)
        assert any(text[len(given_text) :].startswith(stop) for stop in stops)
        assert not any(stop in given_text for stop in stops)
    else:
        assert given_text == text
        assert not any(stop in text for stop in stops)


def test_a_text_stream_ends_at_a_stop_string_inside_a_token() -> None:
    stream = TOKENS.stream((), stop=("ll",))
    emitted = ""
    for token in TOKENS.encode("he called", adds_special=False):
        piece, is_stopped = stream.push(token)
        emitted += piece
        if is_stopped:
            break
    assert emitted == "he ca"


def test_loading_adds_the_end_tokens_of_the_generation_config(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokens = ModelTokens.load(tmp_path, eos_token_ids=(5,))
    assert tokens.eos_token_ids == {EOS, 5}
    assert tokens.encode("hi", adds_special=True)[0] == BOS
    assert tokens.encode("hi", adds_special=False)[0] != BOS


def test_a_directory_without_a_usable_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match=r"no tokenizer\.json") as missing:
        ModelTokens.load(tmp_path)
    assert missing.value.code == "E710"
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": "?"}))
    with pytest.raises(FleetError, match="cannot be read"):
        ModelTokens.load(tmp_path)
