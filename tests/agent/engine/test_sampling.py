"""Filters, penalties and draws, each against a plain reading of its definition."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agent.engine.sampling import (
    Sampler,
    _draw_unfiltered,
    draw_token,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise,
    report_logprobs,
    softmax,
    uniform,
)
from agent.errors import FleetError
from agent.wire.rank import SamplingParams, SequenceSlice

logits_lists = st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=40)
seeds = st.integers(-(2**63), 2**64 - 1)


def piece(
    tokens: list[int], *, start: int = 0, slot: int = 0, params: SamplingParams | None = None
) -> SequenceSlice:
    return SequenceSlice(slot=slot, start=start, tokens=tokens, samples=True, params=params)


@given(logits_lists, seeds, st.integers(0, 100_000))
def test_a_draw_depends_on_seed_and_position_alone(values: list[float], seed: int, position: int) -> None:
    logits = np.array(values)
    params = SamplingParams(seed=seed, temperature=0.9)
    again = [draw_token(logits.copy(), params, [], position) for _ in range(3)]
    other_history = draw_token(logits, params, [0, 1, 0], position)
    assert len({*again, other_history}) == 1
    assert 0 <= again[0] < len(values)


@given(logits_lists, st.integers(1, 50), seeds)
def test_top_k_keeps_the_k_likeliest(values: list[float], top_k: int, seed: int) -> None:
    logits = np.array(values)
    ids, kept = keep_top_k(logits, top_k)
    want = sorted(range(len(values)), key=lambda token: (-values[token], token))[:top_k]
    assert ids.tolist() == want
    assert kept.tolist() == [values[token] for token in want]
    assert draw_token(logits, SamplingParams(seed=seed, temperature=2.0, top_k=top_k), [], 3) in want


@given(logits_lists, st.floats(0.0, 1.0), seeds)
def test_top_p_keeps_the_fewest_that_reach_p(values: list[float], top_p: float, seed: int) -> None:
    logits = np.array(values)
    ids, ordered = keep_top_k(logits, 0)
    count = keep_top_p(ordered, top_p)
    probabilities = softmax(ordered)
    assert count >= 1
    if count < len(values):
        assert probabilities[:count].sum() >= top_p - 1e-9
    if count > 1:
        assert probabilities[: count - 1].sum() < top_p + 1e-9
    assert (
        draw_token(logits, SamplingParams(seed=seed, temperature=1.5, top_p=top_p), [], 3) in ids[:count].tolist()
    )


@given(logits_lists, st.floats(0.001, 1.0), seeds)
def test_min_p_keeps_what_is_likely_enough(values: list[float], min_p: float, seed: int) -> None:
    logits = np.array(values)
    ids, ordered = keep_top_k(logits, 0)
    probabilities = softmax(ordered)
    count = keep_min_p(ordered, min_p)
    assert all(probability >= min_p * probabilities[0] - 1e-9 for probability in probabilities[:count])
    assert all(probability <= min_p * probabilities[0] + 1e-9 for probability in probabilities[count:])
    assert (
        draw_token(logits, SamplingParams(seed=seed, temperature=1.5, min_p=min_p), [], 3) in ids[:count].tolist()
    )


@given(
    st.lists(st.floats(-20, 20), min_size=8, max_size=8),
    st.lists(st.integers(0, 7), max_size=30),
    st.floats(1.01, 2.0),
    st.floats(-1, 1),
    st.floats(-1, 1),
    st.integers(-1, 10),
)
def test_penalties_follow_llama_cpp(
    values: list[float], history: list[int], repeat: float, presence: float, frequency: float, last_n: int
) -> None:
    params = SamplingParams(
        repeat_penalty=repeat, presence_penalty=presence, frequency_penalty=frequency, repeat_last_n=last_n
    )
    logits = np.array(values)
    got = penalise(logits, params, history)
    window = history if last_n < 0 else history[len(history) - min(last_n, len(history)) :]
    counts = Counter(window)
    for token, value in enumerate(values):
        want = value
        if token in counts:
            want = value / repeat if value > 0 else value * repeat
            want -= presence + frequency * counts[token]
        assert got[token] == pytest.approx(want)
    assert logits.tolist() == values, "the raw logits are still needed for logprobs"


def test_presence_and_frequency_count_from_where_they_are_told() -> None:
    """OpenAI's leave the prompt out; the repeat penalty does not."""
    params = SamplingParams(
        repeat_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25, repeat_last_n=-1, penalties_from=3
    )
    got = penalise(np.array([4.0, 4.0, 4.0, 4.0]), params, [0, 1, 1, 1, 2, 2])
    assert got.tolist() == [2.0, 2.0 - 0.75, 2.0 - 1.0, 4.0]


def test_a_penalty_turns_greedy_away_from_repetition() -> None:
    logits = np.array([1.0, 0.9, 0.0])
    assert draw_token(logits, SamplingParams(), [0, 0], 2) == 0
    assert draw_token(logits, SamplingParams(repeat_penalty=1.5), [0, 0], 2) == 1
    assert draw_token(logits, SamplingParams(repeat_penalty=1.5, repeat_last_n=1), [0, 2], 2) == 0


def test_draws_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05]))
    counts = Counter(
        draw_token(logits, SamplingParams(seed=seed, temperature=1.0), [], position)
        for seed in range(40)
        for position in range(100)
    )
    shares = [counts[token] / 4000 for token in range(4)]
    assert shares == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)


def test_the_generator_is_pinned() -> None:
    """A stream replayed by a later release must go on with the same tokens."""
    assert [round(uniform(seed, position), 12) for seed, position in ((0, 0), (1, 0), (0, 1), (-1, 7))] == [
        0.011546754286,
        0.303568034307,
        0.813354060979,
        0.074881006767,
    ]


@given(logits_lists, st.integers(0, 5))
def test_logprobs_are_the_softmax_of_the_raw_logits(values: list[float], alternatives: int) -> None:
    logits = np.array(values)
    reported = report_logprobs(logits, 1, alternatives)
    expected = torch.log_softmax(torch.tensor(values, dtype=torch.float64), dim=0)
    assert reported[0][0] == 1
    assert len(reported) == 1 + min(alternatives, len(values))
    for token, logprob in reported:
        assert logprob == pytest.approx(float(expected[token]), abs=1e-9)
    ranked = [logprob for _, logprob in reported[1:]]
    assert ranked == sorted(ranked, reverse=True)


def test_history_is_the_sequence_as_its_slices_say() -> None:
    sampler = Sampler(batch=2)
    params = SamplingParams(repeat_penalty=4.0, repeat_last_n=-1, logprobs=0)
    sampler.extend([piece([3, 1], params=params)])
    logits = torch.tensor([[0.5, 2.0, 1.0, 3.0]])
    last = piece([2], start=2)
    sampler.extend([last])
    (sampled,) = sampler.sample([last], logits)
    assert (sampled.slot, sampled.position, sampled.token) == (0, 3, 3)  # 3/4 is still the most
    assert sampled.logprobs[0][0] == 3
    assert sampled.logprobs[0][1] == pytest.approx(-0.460773, abs=1e-6)
    back = piece([0], start=1)
    sampler.extend([back])  # 3, 0: 1 and 2 are not of the sequence any more
    assert sampler.sample([back], logits)[0].token == 1
    new = piece([1])
    sampler.extend([new])  # a new sequence without parameters is greedy, unpenalised
    assert sampler.sample([new], logits)[0].token == 3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_an_error(bad: float) -> None:
    sampler = Sampler(batch=2)
    slices = [piece([1]), piece([1], slot=1)]
    sampler.extend(slices)
    with pytest.raises(FleetError, match=r"slots \[1\]") as caught:
        sampler.sample(slices, torch.tensor([[0.0, 1.0], [bad, 1.0]]))
    assert caught.value.code == "E803"


@pytest.mark.parametrize("spread", [0.2, 3.0])
@pytest.mark.parametrize(("top_p", "min_p"), [(0.9, 0.0), (0.3, 0.0), (1.0, 0.02), (1.0, 1e-9), (0.99, 0.01)])
def test_sorting_the_likeliest_first_changes_no_draw(top_p: float, min_p: float, spread: float) -> None:
    random = np.random.default_rng(7)
    logits = random.normal(size=5000) * spread
    logits[random.integers(0, 5000, 900)] = -math.inf  # as a mask leaves them
    ids, ordered = keep_top_k(logits, 0)
    kept = min(int(np.isfinite(ordered).sum()), keep_top_p(ordered, top_p))
    kept = min(kept, keep_min_p(ordered, min_p))
    cumulative = softmax(ordered[:kept] / 0.8).cumsum()
    for position in range(200):
        place = int(np.searchsorted(cumulative, uniform(3, position) * cumulative[-1], side="right"))
        params = SamplingParams(seed=3, temperature=0.8, top_p=top_p, min_p=min_p)
        assert draw_token(logits, params, [], position) == ids[min(place, kept - 1)]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_without_a_filter_tokens_are_drawn_by_their_probabilities(temperature: float) -> None:
    logits = np.array([0.0, -math.inf, 1.0, 2.0, -math.inf])
    drawn = [draw_token(logits, SamplingParams(seed=seed, temperature=temperature), [], 7) for seed in range(4000)]
    shares = np.bincount(drawn, minlength=5) / len(drawn)
    assert shares == pytest.approx(softmax(logits / temperature), abs=0.03)
    assert shares[[1, 4]].tolist() == [0.0, 0.0]


def test_a_chance_next_to_one_is_the_last_token_that_can_be() -> None:
    logits = np.array([0.0, -800.0, 0.0, -math.inf])
    assert _draw_unfiltered(logits, 1.0, float(np.nextafter(1.0, 0.0))) == 2
    assert _draw_unfiltered(logits, 1.0, 0.0) == 0
