"""Structured output: which tokens may come next, so that an answer is JSON, or JSON of a schema.

llguidance does the work (docs/adr/0004). It is imported with the first constrained request: a gateway that never
constrains does not pay for it. A grammar's state is a function of the tokens it accepted, so a replay restores it.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from agent.serving.request import GrammarBroken
from agent.serving.tokens import ModelTokens

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

WHITESPACE = r"( |\n{1,2}[ \t]{0,20})?"
"""Between JSON's tokens, as llama.cpp allows it: a model that knows no end would indent for ever."""
MAX_GRAMMAR_CHARACTERS = 256 * 1024
MAX_PLACE_TRIALS = 100
"""Parts of a refused schema that are compiled alone to find the one at fault."""
KEPT_GRAMMARS = 32
"""Compiled grammars that are kept: an application sends the same schema again and again."""
_NESTED = ("properties", "$defs", "definitions", "patternProperties")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties")


class GrammarRefused(Exception):
    """A grammar that cannot be compiled. `place` leads to the part at fault: `.properties.age`; empty for all."""

    def __init__(self, message: str, *, place: str = "") -> None:
        super().__init__(message)
        self.place = place


def any_json_object() -> str:
    """A grammar of every JSON object."""
    return json_of_schema({"type": "object"})


def json_of_schema(schema: Mapping[str, Any] | bool, *, is_strict: bool = True) -> str:
    """A grammar of the values of a JSON schema. Raises GrammarRefused.

    What no grammar can hold of it (`not`, `uniqueItems` …) is refused when strict, else left out as Ollama does.
    """
    try:
        return json.dumps({"grammars": [{"json_schema": schema_with_options(schema, is_strict=is_strict)}]})
    except RecursionError as error:
        raise GrammarRefused("nested too deeply") from error


def schema_with_options(schema: Mapping[str, Any] | bool, *, is_strict: bool) -> dict[str, Any]:
    """A schema that tells llguidance how to read it."""
    options = {"whitespace_pattern": WHITESPACE}
    body: Any = {"allOf": [schema]} if isinstance(schema, bool) else dict(schema)
    body["x-guidance"] = options | ({} if is_strict else {"lenient": True, "coerce_one_of": True})
    return dict(body)


class TokenGrammar:
    """One answer's place in a grammar (`serving.request.Grammar`)."""

    def __init__(self, matcher: LLMatcher, *, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        """The matcher knows the first end token alone: to it the others are the same."""
        self._matcher = matcher
        self._eos = eos_token_ids
        self._mask_bytes = -(-vocab_size // 32) * 4
        self._mask: bytes | None = None
        self._is_dead_end = False

    @property
    def is_complete(self) -> bool:
        return self._matcher.is_stopped()

    def mask(self) -> bytes:
        """Tens of microseconds, rarely milliseconds; computed once for each place."""
        if self._mask is None:
            mask = b"" if self._matcher.is_error() else self._matcher.compute_bitmask()[: self._mask_bytes]
            self._is_dead_end = not any(mask)
            # A rank must be left something to draw: `accept` then tells what was wrong.
            self._mask = b"\xff" * self._mask_bytes if self._is_dead_end else self._with_all_ends(mask)
        return self._mask

    def accept(self, token: int) -> None:
        known = self._eos[0] if token in self._eos else token
        if self._is_dead_end or not self._matcher.consume_token(known):
            reason = self._matcher.get_error().partition("\n")[0]
            raise GrammarBroken(reason or "no token of this model can follow")
        self._mask = None

    def fork(self) -> TokenGrammar:
        """An independent grammar at the same place."""
        copy = TokenGrammar(self._matcher.deep_copy(), vocab_size=self._mask_bytes * 8, eos_token_ids=self._eos)
        copy._mask, copy._is_dead_end = self._mask, self._is_dead_end
        return copy

    def _with_all_ends(self, mask: bytes) -> bytes:
        if len(self._eos) < 2 or not _has(mask, self._eos[0]):
            return mask
        widened = bytearray(mask)
        for token in self._eos:
            widened[token // 8] |= 1 << token % 8
        return bytes(widened)


class GrammarCompiler:
    """Grammars over one model's vocabulary. Thread-safe; blocks, for a second at the first grammar."""

    def __init__(self, tokens: ModelTokens, *, vocab_size: int) -> None:
        self._tokens = tokens
        self._vocab_size = vocab_size
        self._eos = tuple(sorted(token for token in tokens.eos_token_ids if token < vocab_size))
        self._lock = threading.Lock()
        self._vocabulary: LLTokenizer | None = None
        self._kept: OrderedDict[str, TokenGrammar] = OrderedDict()

    def compile(self, grammar: str) -> TokenGrammar:
        """A grammar at its beginning, its first mask ready. Raises GrammarRefused."""
        if len(grammar) > MAX_GRAMMAR_CHARACTERS:
            raise GrammarRefused(f"{len(grammar)} characters are more than {MAX_GRAMMAR_CHARACTERS}")
        with self._lock:
            known = self._kept.get(grammar)
            if known is None:
                known = self._kept[grammar] = self._compile(grammar)
                if len(self._kept) > KEPT_GRAMMARS:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(grammar)
            return known.fork()

    def compile_schema(self, schema: Mapping[str, Any] | bool, *, is_strict: bool = True) -> TokenGrammar:
        """As `compile`; the refusal names the place in the schema."""
        try:
            return self.compile(json_of_schema(schema, is_strict=is_strict))
        except GrammarRefused as refused:
            with self._lock:
                trials = iter(range(MAX_PLACE_TRIALS))
                place = self._place_of(str(refused), schema, schema, is_strict=is_strict, trials=trials)
            raise GrammarRefused(str(refused), place=place) from None

    def _compile(self, grammar: str) -> TokenGrammar:
        from llguidance import LLMatcher

        matcher = LLMatcher(self._load_vocabulary(), grammar, log_level=0)
        if matcher.is_error():
            raise GrammarRefused(" ".join(matcher.get_error().split()))
        compiled = TokenGrammar(matcher, vocab_size=self._vocab_size, eos_token_ids=self._eos)
        compiled.mask()
        if matcher.is_error():
            raise GrammarRefused(" ".join(matcher.get_error().split()))
        return compiled

    def _load_vocabulary(self) -> LLTokenizer:
        if self._vocabulary is None:
            from llguidance import LLTokenizer

            try:
                self._vocabulary = LLTokenizer(
                    self._tokens.serialised(),
                    n_vocab=self._vocab_size,
                    eos_token=self._eos[0] if self._eos else None,
                )
            # llguidance raises ValueError and RuntimeError for tokenizers that it cannot turn into bytes.
            except (ValueError, RuntimeError) as error:
                raise GrammarRefused(f"this model's tokenizer cannot be constrained: {error}") from error
        return self._vocabulary

    def _place_of(self, message: str, schema: Any, root: Any, *, is_strict: bool, trials: Iterator[int]) -> str:
        """Path of the innermost part that alone gives the same refusal."""
        for (name, part), _ in zip(_parts_of(schema), trials, strict=False):
            whole = part
            if isinstance(part, dict) and isinstance(root, dict):
                whole = {key: root[key] for key in ("$defs", "definitions") if key in root} | part
            try:
                self._compile(json_of_schema(whole, is_strict=is_strict))
            except GrammarRefused as refused:
                if str(refused) == message:
                    return name + self._place_of(message, part, root, is_strict=is_strict, trials=trials)
        return ""


def _has(mask: bytes, token: int) -> bool:
    return bool(mask[token // 8] >> token % 8 & 1)


def _parts_of(schema: Any) -> Iterator[tuple[str, Any]]:
    """The schemas right inside a schema, with how they are reached."""
    if not isinstance(schema, dict):
        return
    for key in _NESTED:
        inner = schema.get(key)
        if isinstance(inner, dict):
            yield from ((f".{key}.{name}", part) for name, part in inner.items() if isinstance(part, dict | bool))
    for key in _LISTS:
        inner = schema.get(key)
        if isinstance(inner, list):
            yield from ((f".{key}[{index}]", part) for index, part in enumerate(inner))
    for key in _SINGLE:
        if isinstance(schema.get(key), dict):
            yield f".{key}", schema[key]
