"""Guesses of the next tokens: what followed the same words before, at no cost, and how many of them pay.

No I/O. Deterministic.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.planner.step_cost import count_paying_guesses

LONGEST_MATCH, SHORTEST_MATCH = 4, 2
"""Tokens that must agree with an earlier place before what followed there is guessed, tried from the longest."""
MEMORY = 0.9
"""Weight that a verdict keeps with each one after it."""
RETRY_TOKENS = 24
"""Tokens without a guess after which one is tried again, for texts turn repetitive late."""


class PromptLookup:
    """Every place of a sequence by the tokens before it. Costs a few dictionary entries per token."""

    def __init__(self, tokens: Iterable[int]) -> None:
        self._tokens: list[int] = []
        self._places: dict[tuple[int, ...], int] = {}
        self.extend(tokens)

    def __len__(self) -> int:
        return len(self._tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Go on. A place is entered once it has a token, so that the end of the sequence never finds itself."""
        known, places = self._tokens, self._places
        for token in tokens:
            place = len(known)
            for length in range(SHORTEST_MATCH, min(LONGEST_MATCH, place) + 1):
                places[tuple(known[place - length :])] = place
            known.append(token)

    def guess(self, count: int) -> list[int]:
        """Up to `count` tokens that followed the latest place with the longest matching end; none without one.

        Past the end of what is known the guess goes on in itself: a text that repeats is guessed to repeat.
        """
        known = self._tokens
        for length in range(min(LONGEST_MATCH, len(known)), SHORTEST_MATCH - 1, -1):
            place = self._places.get(tuple(known[-length:]))
            if place is not None:
                guess = known[place : place + count]
                while len(guess) < count:
                    guess.append(guess[place - len(known)])
                return guess
        return []


class DraftLength:
    """How many guesses pay for one sequence, from how its last ones fared."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._right, self._judged = 1.0, 2.0
        self._num_idle = 0

    @property
    def acceptance(self) -> float:
        """Chance that a guess is right when those before it were."""
        return self._right / self._judged

    @property
    def is_due(self) -> bool:
        """Guesses did not pay for so long that one is tried again."""
        return self._num_idle >= RETRY_TOKENS

    def choose(self, num_rows: int, *, draft_cost: float = 0.0) -> int:
        """Guesses for a step that has `num_rows` already: as many as pay for their rows, and for being guessed."""
        length = count_paying_guesses(self.acceptance, num_rows=num_rows, limit=self._limit, draft_cost=draft_cost)
        if length == 0 and self.is_due:
            return min(1, self._limit)
        return length

    def note(self, proposed: int, accepted: int) -> None:
        """The verdict on a step's guesses; `proposed` 0 when there were none."""
        if proposed == 0:
            self._num_idle += 1
            return
        self._num_idle = 0
        is_refused = accepted < proposed
        self._right = MEMORY * self._right + accepted
        self._judged = MEMORY * self._judged + accepted + is_refused
