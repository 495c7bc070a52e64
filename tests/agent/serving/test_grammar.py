"""Grammars over a small vocabulary: whatever is drawn under their masks parses and validates."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from typing import Any

import jsonschema
import pytest

from agent.serving.grammar import GrammarCompiler, GrammarRefused, TokenGrammar, any_json_object
from agent.serving.request import GrammarBroken
from agent.serving.tokens import ModelTokens
from tests.agent.serving.tokenizer import EOS, VOCAB_SIZE, small_tokenizer

TOKENS = ModelTokens(small_tokenizer(), eos_token_ids=frozenset({EOS}))
PERSON: Any = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "colours": {"type": "array", "items": {"enum": ["red", "grün"]}, "minItems": 1, "maxItems": 3},
        "born": {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]},
        "home": {"$ref": "#/$defs/Home"},
    },
    "required": ["name", "age", "colours", "born", "home"],
    "additionalProperties": False,
    "$defs": {
        "Home": {
            "type": "object",
            "properties": {"code": {"type": "string", "pattern": "^[A-Z]{2}[0-9]{3}$"}},
            "required": ["code"],
            "additionalProperties": False,
        }
    },
}


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(TOKENS, vocab_size=VOCAB_SIZE)


def allowed(grammar: TokenGrammar) -> list[int]:
    mask = grammar.mask()
    assert len(mask) == -(-VOCAB_SIZE // 32) * 4
    return [token for token in range(VOCAB_SIZE) if mask[token // 8] >> token % 8 & 1]


def draw(grammar: TokenGrammar, seed: int, limit: int = 2000) -> tuple[list[int], bool]:
    """(tokens, whether it came to an end): every allowed token is as likely."""
    chance, tokens = random.Random(seed), list[int]()
    while len(tokens) < limit:
        token = chance.choice(allowed(grammar))
        grammar.accept(token)
        if token == EOS:
            return tokens, True
        tokens.append(token)
        if grammar.is_complete:
            return tokens, True
    return tokens, False


@pytest.mark.parametrize("seed", range(20))
def test_random_tokens_under_a_schema_are_a_value_of_it(compiler: GrammarCompiler, seed: int) -> None:
    tokens, is_ended = draw(compiler.compile_schema(PERSON), seed)
    assert is_ended
    jsonschema.validate(json.loads(TOKENS.decode(tokens)), PERSON)


@pytest.mark.parametrize("seed", range(5))
def test_random_tokens_in_json_mode_are_an_object(compiler: GrammarCompiler, seed: int) -> None:
    tokens, is_ended = draw(compiler.compile(any_json_object()), seed)
    assert is_ended
    assert isinstance(json.loads(TOKENS.decode(tokens)), dict)


def test_an_end_token_is_allowed_where_the_value_may_end_and_nowhere_else(compiler: GrammarCompiler) -> None:
    grammar = compiler.compile_schema({"type": "integer"})
    assert EOS not in allowed(grammar)
    grammar.accept(TOKENS.encode("7", adds_special=False)[0])
    assert EOS in allowed(grammar)
    assert not grammar.is_complete


def test_every_end_token_of_the_model_ends_it() -> None:
    several = ModelTokens(small_tokenizer(), eos_token_ids=frozenset({EOS, 3, 5}))
    for end in (EOS, 3, 5):
        grammar = GrammarCompiler(several, vocab_size=VOCAB_SIZE).compile_schema({"type": "integer"})
        assert not {EOS, 3, 5} & set(allowed(grammar))
        grammar.accept(TOKENS.encode("7", adds_special=False)[0])
        assert {EOS, 3, 5} <= set(allowed(grammar))
        grammar.accept(end)


def test_a_replay_of_the_tokens_gives_the_same_mask(compiler: GrammarCompiler) -> None:
    first = compiler.compile_schema(PERSON)
    tokens, _ = draw(first, seed=3, limit=12)
    again = compiler.compile_schema(PERSON)
    for token in tokens:
        again.accept(token)
    assert again.mask() == first.mask()


def test_a_fork_goes_its_own_way(compiler: GrammarCompiler) -> None:
    grammar = compiler.compile_schema({"enum": ["a", "b"]})
    fork = grammar.fork()
    draw(grammar, seed=1)
    assert grammar.is_complete
    assert not fork.is_complete
    assert draw(fork, seed=2)[1]


def test_a_token_that_cannot_follow_is_told(compiler: GrammarCompiler) -> None:
    grammar = compiler.compile_schema({"type": "integer"})
    with pytest.raises(GrammarBroken):
        grammar.accept(TOKENS.encode("x", adds_special=False)[0])
    assert any(grammar.mask()), "a rank is always left something to draw"


@pytest.mark.parametrize(
    ("schema", "place", "complaint"),
    [
        ({"type": "object", "properties": {"a": {"type": "strin"}}}, ".properties.a", "strin"),
        ({"items": {"anyOf": [{"type": "null"}, {"pattern": "(?=a)b"}]}}, ".items.anyOf[1]", "look-around"),
        ({"properties": {"a": {"$ref": "#/$defs/b"}}}, ".properties.a", "does not exist"),
        ({"properties": {"a": {"$ref": "http://elsewhere/b"}}}, ".properties.a", "does not fetch"),
        ({"type": "array", "uniqueItems": True}, "", "uniqueItems"),
        ({"enum": []}, "", "Unsatisfiable"),
    ],
)
def test_a_schema_that_cannot_be_held_is_refused_with_the_place(
    compiler: GrammarCompiler, schema: Any, place: str, complaint: str
) -> None:
    with pytest.raises(GrammarRefused, match=complaint) as refused:
        compiler.compile_schema(schema)
    assert refused.value.place == place


def test_a_lenient_schema_leaves_out_what_cannot_be_held(compiler: GrammarCompiler) -> None:
    schema = {"type": "array", "items": {"type": "boolean"}, "uniqueItems": True, "maxItems": 2}
    tokens, is_ended = draw(compiler.compile_schema(schema, is_strict=False), seed=1)
    assert is_ended
    assert all(isinstance(item, bool) for item in json.loads(TOKENS.decode(tokens)))


def test_a_monstrous_schema_is_refused(compiler: GrammarCompiler) -> None:
    with pytest.raises(GrammarRefused, match="more than"):
        compiler.compile_schema({"enum": ["x" * 100] * 4000})
    deep: Any = {"type": "string"}
    for _ in range(5000):
        deep = {"items": deep}
    with pytest.raises(GrammarRefused, match=r"deep|recursion"):
        compiler.compile_schema(deep)


def test_a_gateway_that_never_constrains_does_not_load_the_library() -> None:
    code = "import sys, agent.api.gateway_app; sys.exit('llguidance' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
