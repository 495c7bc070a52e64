"""Text to token ids and back, one token at a time: never half a character, never a stop string."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from agent.errors import FleetError

PROMPT_TAIL_TOKENS = 6
"""Prompt tokens decoded before the first new one: sentencepiece-like decoders drop a leading space otherwise."""
MAX_HELD_TOKENS = 4
"""A UTF-8 character has at most four bytes, so after four tokens without an end it was no character at all."""
MAX_WINDOW_TOKENS = 32
"""Held tokens after which the window moves on, so that a model that writes no text costs no quadratic time."""
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
"""How SentencePiece writes a byte that is in none of its pieces."""
_BROKEN = "\ufffd"


class ModelTokens:
    """A model's tokenizer. Immutable after loading; encoding releases the interpreter's lock."""

    def __init__(self, tokenizer: Any, *, eos_token_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self.eos_token_ids = eos_token_ids
        self._is_byte_level = '"ByteLevel"' in json.dumps(json.loads(tokenizer.to_str()).get("decoder"))

    @classmethod
    def load(cls, model_dir: Path, *, eos_token_ids: tuple[int, ...] = ()) -> ModelTokens:
        """Read `tokenizer.json` and the end tokens of `generation_config.json`. Raises FleetError E710."""
        path = model_dir / "tokenizer.json"
        if not path.is_file():
            raise FleetError(
                "E710",
                f"no tokenizer.json in {model_dir}",
                hint="only models with a fast tokenizer can be served; save it with transformers' AutoTokenizer",
            )
        try:
            tokenizer = Tokenizer.from_file(str(path))
        # tokenizers raises bare Exception for a file that it cannot parse.
        except Exception as error:
            raise FleetError("E710", f"{path} cannot be read: {error}") from error
        return cls(tokenizer, eos_token_ids=frozenset(eos_token_ids) | _eos_of_generation_config(model_dir))

    def serialised(self) -> str:
        """The tokenizer as the text of a tokenizer.json."""
        return str(self._tokenizer.to_str())

    def encode(self, text: str, *, adds_special: bool) -> tuple[int, ...]:
        """Token ids. `adds_special` puts the model's own start tokens in front; chat templates bring theirs."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=adds_special).ids)

    def decode(self, tokens: list[int]) -> str:
        """Text of tokens, special ones left out. Bytes that are no UTF-8 become U+FFFD."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def text_of(self, token: int) -> str:
        """One token alone, special ones included: what log probabilities are labelled with."""
        return str(self._tokenizer.decode([token], skip_special_tokens=False))

    def bytes_of(self, token: int) -> bytes:
        """The bytes of one token; exact for byte-level tokenizers even inside a character."""
        name = self._tokenizer.id_to_token(token)
        if self._is_byte_level and name is not None and all(character in _BYTE_OF for character in name):
            return bytes(_BYTE_OF[character] for character in name)
        if name is not None and (byte := _BYTE_TOKEN.fullmatch(name)) is not None:
            return bytes.fromhex(byte[1])
        return self.text_of(token).encode()

    def special_id(self, text: str) -> int | None:
        """The special token that is written so; None when it is no token, or an ordinary one."""
        token = self._tokenizer.token_to_id(text)
        return int(token) if token is not None and not self.decode([token]) else None

    def added_id(self, text: str) -> int | None:
        """The token that was added to the vocabulary for exactly this text, special or not."""
        token = self._tokenizer.token_to_id(text)
        return int(token) if token in self._tokenizer.get_added_tokens_decoder() else None

    def stream(
        self, prompt: tuple[int, ...], *, stop: tuple[str, ...] = (), shown: tuple[str, ...] = ()
    ) -> TextStream:
        """`shown`: special tokens that are text here, because a reader of the answer looks for them."""
        ids = {token: text for text in shown if (token := self.special_id(text)) is not None}
        return TextStream(Detokenizer(self, prompt, shown=ids), StopScanner(stop))


class Detokenizer:
    """Text of a growing token sequence, character by whole character.

    Decodes a sliding window instead of the whole sequence. A trailing U+FFFD may be the first bytes of a
    character to come, so it is held until the next tokens tell.
    """

    def __init__(
        self, tokens: ModelTokens, prompt: tuple[int, ...] = (), *, shown: Mapping[int, str] | None = None
    ) -> None:
        self._tokens = tokens
        self._shown = shown or {}
        self._window = list(prompt[-PROMPT_TAIL_TOKENS:])
        self._num_settled = len(self._window)
        """Tokens of the window whose text is out."""
        self._num_emitted = len(self._finished(tokens.decode(self._window))) if self._window else 0
        """Characters of the window's text that are out."""

    def push(self, token: int) -> str:
        """Text that became certain with this token; often none."""
        if token in self._shown:
            piece = self.flush() + self._shown[token]
            self._window, self._num_settled, self._num_emitted = [], 0, 0
            return piece
        self._window.append(token)
        text = self._tokens.decode(self._window)
        if not text.endswith(_BROKEN) or self._finished(text) == text:
            piece = text[self._num_emitted :]
            if piece:
                self._slide()
            return piece
        num_held = len(self._window) - self._num_settled
        if num_held <= MAX_HELD_TOKENS:
            return ""
        if num_held > MAX_WINDOW_TOKENS:
            piece = text[self._num_emitted :]
            self._slide()
            return piece
        certain = len(text) - 1
        piece = text[self._num_emitted : certain]
        self._num_emitted = max(self._num_emitted, certain)
        return piece

    def flush(self) -> str:
        """What is still held, less the bytes that never became a character."""
        text = self._tokens.decode(self._window)
        piece = self._finished(text)[self._num_emitted :]
        self._num_emitted = len(text)
        return piece

    def _finished(self, text: str) -> str:
        """The window's text without the U+FFFD at its end, but for those that are written: they are characters."""
        finished = text.rstrip(_BROKEN)
        if finished == text:
            return text
        written = b"".join(map(self._tokens.bytes_of, self._window)).decode(errors="ignore")
        num_written = len(written) - len(written.rstrip(_BROKEN))
        return finished + _BROKEN * min(num_written, len(text) - len(finished))

    def _slide(self) -> None:
        self._window = self._window[self._num_settled :]
        self._num_settled = len(self._window)
        self._num_emitted = len(self._tokens.decode(self._window))


class StopScanner:
    """Finds the first stop string in a text that comes in pieces, and holds back what might begin one."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        assert all(stop), "empty stop strings are refused at the door"
        self._stop = stop
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """(text that belongs to no stop string, whether one was found). Nothing may be pushed after a find."""
        text = self._held + piece
        found = [index for index in (text.find(stop) for stop in self._stop) if index >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        held = max((overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False

    def flush(self) -> str:
        """What was held: no stop string came of it."""
        held, self._held = self._held, ""
        return held


class TextStream:
    """Detokenizer and stop strings in one: tokens in, text for the client out."""

    def __init__(self, detokenizer: Detokenizer, scanner: StopScanner) -> None:
        self._detokenizer = detokenizer
        self._scanner = scanner

    def push(self, token: int) -> tuple[str, bool]:
        """(certain text, whether a stop string was found)."""
        return self._scanner.push(self._detokenizer.push(token))

    def flush(self) -> tuple[str, bool]:
        """(all that is left, whether a stop string was found in it)."""
        piece, is_stopped = self._scanner.push(self._detokenizer.flush())
        return piece + self._scanner.flush(), is_stopped


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


def _eos_of_generation_config(model_dir: Path) -> frozenset[int]:
    try:
        eos = json.loads((model_dir / "generation_config.json").read_text()).get("eos_token_id")
    except FileNotFoundError:
        return frozenset()
    except (json.JSONDecodeError, AttributeError) as error:
        raise FleetError("E710", f"{model_dir / 'generation_config.json'} cannot be read: {error}") from error
    if isinstance(eos, int):
        return frozenset({eos})
    return frozenset(token for token in eos or () if isinstance(token, int))


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte (`bytes_to_unicode` of its encoder.py), inverted."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    return alphabet | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTE_OF = _byte_level_alphabet()
