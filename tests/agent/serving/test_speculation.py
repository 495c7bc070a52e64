"""Guesses follow what was said before, and stop where they do not pay."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.serving.speculation import LONGEST_MATCH, RETRY_TOKENS, SHORTEST_MATCH, DraftLength, PromptLookup


def test_the_longest_match_wins_and_the_latest_among_equals() -> None:
    assert PromptLookup([1, 2, 3, 4, 50, 9, 2, 3, 4, 60, 1, 2, 3, 4]).guess(2) == [50, 9]
    assert PromptLookup([2, 3, 50, 2, 3, 60, 2, 3]).guess(2) == [60, 2]
    assert PromptLookup([1, 2, 3, 4, 5, 6, 7]).guess(4) == []


def test_a_text_that_repeats_is_guessed_to_repeat() -> None:
    assert PromptLookup([7, 1, 2, 3, 1, 2, 3]).guess(7) == [1, 2, 3, 1, 2, 3, 1]


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 9), st.integers(0, 40))
def test_a_guess_is_what_a_search_of_the_whole_text_finds(tokens: list[int], count: int, cut: int) -> None:
    lookup = PromptLookup(tokens[:cut])
    lookup.extend(tokens[cut:])
    expected: list[int] = []
    for length in range(LONGEST_MATCH, SHORTEST_MATCH - 1, -1):
        places = [end for end in range(length, len(tokens)) if tokens[end - length : end] == tokens[-length:]]
        if places and len(tokens) >= length:
            text = list(tokens)
            while len(text) < len(tokens) + count:
                text.append(text[places[-1] + len(text) - len(tokens)])
            expected = text[len(tokens) :]
            break
    assert lookup.guess(count) == expected


def test_right_guesses_make_longer_ones_and_wrong_ones_none() -> None:
    length = DraftLength(8)
    first = length.choose(1)
    assert 1 <= first < 8
    for _ in range(6):
        length.note(length.choose(1), length.choose(1))
    assert length.choose(1) == 8
    while length.choose(1):
        length.note(length.choose(1), 0)
    assert length.acceptance < 0.1
    for _ in range(RETRY_TOKENS):
        assert length.choose(1) == 0
        length.note(0, 0)
    assert length.choose(1) == 1


def test_guesses_get_shorter_where_many_sequences_share_a_step() -> None:
    lengths = [DraftLength(8).choose(rows) for rows in (1, 4, 16, 64)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] == 0
