from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from odctl.bench.measure import UNFINISHED, Figures, Objectives, Outcome, distribution, figures, percentile
from odctl.bench.versus import ratios


def answered(index: int, *pieces: float, tokens: int | None = None, wanted: int = 0) -> Outcome:
    """Sent at 10 s, with pieces so many seconds later."""
    return Outcome(
        index=index,
        sent_s=10.0,
        end_s=10.0 + pieces[-1],
        piece_s=tuple(10.0 + piece for piece in pieces),
        prompt_tokens=100,
        output_tokens=len(pieces) if tokens is None else tokens,
        wanted_output_tokens=wanted,
    )


def failed(index: int, kind: str) -> Outcome:
    return Outcome(index=index, sent_s=10.0, end_s=11.0, error=kind, detail=f"detail of {index}")


def of(*outcomes: Outcome, elapsed_s: float = 2.0, objectives: Objectives | None = None) -> Figures:
    return figures(outcomes, elapsed_s=elapsed_s, objectives=objectives or Objectives())


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(0, 100))
def test_percentiles_are_numpys(values: list[float], percent: float) -> None:
    assert percentile(sorted(values), percent) == pytest.approx(float(np.percentile(values, percent)))


def test_nothing_measured_has_no_distribution() -> None:
    assert distribution([]) is None
    found = of(failed(0, "timeout"))
    assert (found.ttft_s, found.tpot_s, found.gap_s, found.request_s) == (None, None, None, None)
    assert (found.mean_prompt_tokens, found.good_share) == (0.0, 0.0)


def test_time_per_token_leaves_the_first_token_out_and_counts_tokens_not_pieces() -> None:
    assert answered(0, 1.0, 1.5, 2.0).tpot_s == pytest.approx(0.5)
    assert answered(0, 1.0, 2.0, tokens=11).tpot_s == pytest.approx(0.1)
    assert answered(0, 1.0).tpot_s is None
    found = of(answered(0, 1.0), answered(1, 1.0, 1.4))
    assert found.tpot_s is not None
    assert found.tpot_s.count == 1
    assert found.tpot_s.p50 == pytest.approx(0.4)


def test_gaps_are_between_the_pieces_of_one_request() -> None:
    found = of(answered(0, 1.0, 1.1, 1.3), answered(1, 5.0, 5.4))
    assert found.gap_s is not None
    assert found.gap_s.count == 3
    assert found.gap_s.largest == pytest.approx(0.4)


def test_throughput_is_of_answered_requests_over_the_whole_time() -> None:
    found = of(answered(0, 0.5, 1.0), answered(1, 0.5, 1.0), failed(2, "http 503"), elapsed_s=4.0)
    assert (found.requests_per_s, found.input_tokens_per_s, found.output_tokens_per_s) == (0.5, 50.0, 1.0)


def test_goodput_counts_what_held_both_objectives_and_blames_failures() -> None:
    objectives = Objectives(ttft_s=0.5, tpot_s=0.1)
    found = of(
        answered(0, 0.5, 0.6),
        answered(1, 0.6, 0.7),  # too late
        answered(2, 0.4, 0.6),  # too slow
        answered(3, 0.5),  # no second token to be slow
        failed(4, "timeout"),
        elapsed_s=2.0,
        objectives=objectives,
    )
    assert (found.goodput_per_s, found.good_share) == (1.0, 0.4)


def test_errors_are_counted_by_kind_with_the_first_of_their_words() -> None:
    found = of(failed(0, "timeout"), failed(1, "http 503"), failed(2, "timeout"), answered(3, 1.0))
    assert found.errors == {"timeout": 2, "http 503": 1}
    assert found.examples == {"timeout": "detail of 0", "http 503": "detail of 1"}
    assert found.num_failed == 3


def test_what_was_broken_off_is_neither_answered_nor_failed() -> None:
    found = of(answered(0, 1.0), failed(1, UNFINISHED))
    assert (found.num_answered, found.num_failed, found.num_unfinished) == (1, 0, 1)


def test_answers_shorter_than_asked_are_told() -> None:
    assert of(answered(0, 1.0, 2.0, wanted=2), answered(1, 1.0, wanted=2)).num_short == 1


def test_ratios_are_of_the_same_round_and_leave_out_what_has_no_figure() -> None:
    slow, fast = of(answered(0, 2.0, 3.0), elapsed_s=4.0), of(answered(0, 1.0, 1.5), elapsed_s=1.0)
    found = {ratio.what: ratio for ratio in ratios([(fast, slow), (fast, fast), (fast, of(failed(0, "timeout")))])}
    tokens = found["output tokens/s"]
    assert (tokens.median, tokens.least, tokens.largest, tokens.num_rounds) == (2.5, 1.0, 4.0, 2)
    assert tokens.is_more_better
    first = found["time to first token, p50"]
    assert (first.least, first.largest, first.is_more_better) == (0.5, 1.0, False)
    assert ratios([]) == ()
