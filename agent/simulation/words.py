"""Token ids for requests of which only the lengths are known. No I/O. Deterministic.

Every token is another one, so that prompts share nothing but what their group shares, and nothing is guessed right.
`repetition` is the chance that a drawn token goes on in what the prompt says: what prompt lookup finds.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from agent.simulation.trace import TraceRequest

NUM_TOKEN_IDS = 1 << 32
"""Block keys pack ids into 32 bits; whether a model's vocabulary has them the scheduler does not ask."""


class Words:
    """Prompts and answers of one simulation."""

    def __init__(self, *, seed: int, repetition: float = 0.0) -> None:
        assert 0 <= repetition < 1, f"repetition {repetition}"
        self._seed = seed
        self._repetition = repetition
        self._next_id = 0
        self._of_group: dict[str, list[int]] = {}

    def prompt(self, asked: TraceRequest) -> tuple[int, ...]:
        """To be called in the order of the trace."""
        begin: Sequence[int] = ()
        if asked.prefix_group:
            shared = self._of_group.setdefault(asked.prefix_group, [])
            shared.extend(self._fresh(asked.prefix_tokens - len(shared)))
            begin = shared[: asked.prefix_tokens]
        return (*begin, *self._fresh(asked.prompt_tokens - len(begin)))

    def answer(self, index: int, prompt: Sequence[int], num_tokens: int) -> list[int]:
        """What the model draws for request `index`, whatever it is asked with."""
        if not self._repetition:
            return self._fresh(num_tokens)
        randomness = random.Random(f"{self._seed} {index}")
        place = randomness.randrange(len(prompt))
        drawn: list[int] = []
        for _ in range(num_tokens):
            if randomness.random() < self._repetition:
                drawn.append(prompt[place])
                place = (place + 1) % len(prompt)
            else:
                drawn += self._fresh(1)
                place = randomness.randrange(len(prompt))
        return drawn

    def guesses(self, index: int, answer: Sequence[int], first: int, count: int, *, acceptance: float) -> list[int]:
        """What a draft model takes the tokens of an answer from `first` on to be, each right by chance."""
        randomness = random.Random(f"{self._seed} {index} {first}")
        return [
            token if randomness.random() < acceptance else (token + 1) % NUM_TOKEN_IDS
            for token in answer[first : first + count]
        ]

    def _fresh(self, count: int) -> list[int]:
        begin = self._next_id
        self._next_id = begin + max(0, count)
        return [each % NUM_TOKEN_IDS for each in range(begin, self._next_id)]
