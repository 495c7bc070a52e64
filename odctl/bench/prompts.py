"""Prompts of a wanted length in tokens, for a tokenizer that only the server has.

Prompts are made of words. How many tokens a word has on average is learnt from the server's own counts: every word
is in a prompt as often as every other, give or take one, so the average over all words is what matters.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import msgspec

_WORDS = """
time year day man way life hand part eye week case room home area door road name book
game line idea body back face city team word land side kind head air
"""
WORDS = tuple(_WORDS.split())
"""Common and short: most tokenizers have one token for each, the smallest ones not many."""


class WordCost(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt of n words has `tokens_per_word` x n + `overhead_tokens` (the begin token, a chat template)."""

    tokens_per_word: float
    overhead_tokens: float

    def words_for(self, num_tokens: int) -> int:
        """At least one: an empty prompt is no request."""
        return max(1, round((num_tokens - self.overhead_tokens) / self.tokens_per_word))


def word_cost(*, once: int, twice: int) -> WordCost:
    """From the server's counts of `calibration_prompt(1)` and `calibration_prompt(2)`."""
    tokens_per_word = max(twice - once, 1) / len(WORDS)
    return WordCost(tokens_per_word=tokens_per_word, overhead_tokens=once - tokens_per_word * len(WORDS))


def calibration_prompt(rounds: int) -> str:
    return _text(words(random.Random(0), rounds * len(WORDS)))


class PromptMaker:
    """Prompts that share with their group its first tokens, and nothing else beyond chance."""

    def __init__(self, cost: WordCost, *, seed: int = 0, part: str = "") -> None:
        """Makers of different parts share the prefixes only."""
        self._cost = cost
        self._seed = seed
        self._source = f"{seed} {part}"

    def prompt(self, index: int, num_tokens: int, *, group: str = "", shared_tokens: int = 0) -> str:
        """The prompt of request `index`: the same for the same seed. `shared_tokens` of it are those of `group`."""
        prefix: list[str] = []
        if shared_tokens:
            count = max(1, round((shared_tokens - self._cost.overhead_tokens) / self._cost.tokens_per_word))
            prefix = words(random.Random(f"{self._seed} prefix {group}"), count)
        rest = max(1, self._cost.words_for(num_tokens) - len(prefix))
        return _text([*prefix, *words(random.Random(f"{self._source} {index}"), rest)])


def words(randomness: random.Random, count: int) -> list[str]:
    """So many words, in shuffled rounds of all of them."""

    def rounds() -> Iterator[str]:
        while True:
            yield from randomness.sample(WORDS, len(WORDS))

    source = rounds()
    return [next(source) for _ in range(count)]


def _text(chosen: list[str]) -> str:
    return " " + " ".join(chosen)
