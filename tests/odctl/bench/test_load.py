from __future__ import annotations

import itertools
import statistics

import msgspec
import pytest

from agent.errors import FleetError
from odctl.bench.load import Lengths, Load, check_load, parse_lengths, shots

EIGHT = Lengths(low=8, high=8)
CLOSED = Load(
    arrivals="closed", concurrency=2, rate_per_s=0.0, num_requests=5, duration_s=None, prompt=EIGHT, output=EIGHT
)


@pytest.mark.parametrize("text", ["128", "64..256", "normal:128:32"])
def test_lengths_are_read_and_written_alike(text: str) -> None:
    assert str(parse_lengths(text)) == text


@pytest.mark.parametrize(
    "text", ["", "x", "0", "-1", "5..4", "1..", "normal:5", "normal:0:1", "normal:5:-1", "2000000"]
)
def test_what_is_no_length_is_refused_with_the_ways_to_write_one(text: str) -> None:
    with pytest.raises(FleetError, match="no length") as refusal:
        parse_lengths(text)
    assert refusal.value.code == "E118"


def test_the_same_seed_gives_the_same_load_and_another_one_another() -> None:
    load = msgspec.structs.replace(
        CLOSED, arrivals="poisson", rate_per_s=5.0, num_requests=50, prompt=Lengths(low=10, high=100)
    )
    assert list(shots(load)) == list(shots(load))
    assert list(shots(load)) != list(shots(msgspec.structs.replace(load, seed=1)))


def test_poisson_arrivals_come_at_their_rate_and_scatter_as_much_as_they_should() -> None:
    load = msgspec.structs.replace(CLOSED, arrivals="poisson", rate_per_s=20.0, num_requests=4000)
    times = [shot.at_s for shot in shots(load)]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert times[0] == 0.0
    assert statistics.mean(gaps) == pytest.approx(1 / 20, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(1 / 20, rel=0.1)  # an exponential's deviation is its mean


def test_fixed_arrivals_are_even_and_end_with_the_duration() -> None:
    load = msgspec.structs.replace(CLOSED, arrivals="fixed", rate_per_s=4.0, num_requests=None, duration_s=2.0)
    assert [shot.at_s for shot in shots(load)] == [index / 4 for index in range(8)]


def test_lengths_stay_within_their_bounds_and_beyond_the_prefix() -> None:
    load = msgspec.structs.replace(
        CLOSED,
        num_requests=500,
        prompt=Lengths(low=1, high=1000, mean=100.0, deviation=60.0),
        output=Lengths(low=3, high=9),
        shared_prefix=64,
    )
    found = list(shots(load))
    assert {shot.output_tokens for shot in found} == set(range(3, 10))
    assert min(shot.prompt_tokens for shot in found) == 65
    assert statistics.mean(shot.prompt_tokens for shot in found) == pytest.approx(110, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_requests": None}, "neither a number"),
        ({"num_requests": 0}, "0 requests"),
        ({"concurrency": 5000}, "5000 at a time"),
        ({"duration_s": 1e6}, "1e\\+06 s"),
        ({"arrivals": "poisson"}, "0 requests/s"),
        ({"shared_prefix": 8}, "a shared prefix of 8 tokens in prompts of 8"),
    ],
)
def test_a_load_beyond_a_limit_is_refused_with_the_number(changes: dict[str, object], complaint: str) -> None:
    check_load(CLOSED)
    with pytest.raises(FleetError, match=complaint):
        check_load(msgspec.structs.replace(CLOSED, **changes))
