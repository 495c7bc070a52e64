from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.planner.calibration import (
    PRIOR,
    Calibration,
    MeasuredTime,
    fit_calibration,
    predict_interval,
    scale_parts,
    seconds_of,
    sum_parts,
)
from agent.planner.interval import Interval

NAMES = ("cuda reads", "cuda launches", "unprobed cpu reads", "tls reduces", "tls messages", "step")
PARTS = st.dictionaries(st.sampled_from(NAMES), st.floats(1e-5, 1.0), min_size=1)
RUNS = st.lists(
    st.builds(
        lambda parts, factor, model: MeasuredTime(
            parts=parts, measured_s=sum(parts.values()) * factor, model=model
        ),
        PARTS,
        st.floats(0.2, 5.0),
        st.sampled_from(["", "a", "b"]),
    ),
    max_size=6,
)
MANY = settings(max_examples=50, deadline=None)


@MANY
@given(RUNS, RUNS, PARTS, st.sampled_from(["", "a"]))
def test_more_runs_never_widen_an_interval(
    runs: list[MeasuredTime], more: list[MeasuredTime], parts: dict[str, float], model: str
) -> None:
    before = predict_interval(parts, fit_calibration(runs), model=model)
    after = predict_interval(parts, fit_calibration([*runs, *more]), model=model)
    assert after.log_width <= before.log_width + 1e-9


@MANY
@given(st.dictionaries(st.sampled_from(NAMES), st.floats(-0.5, 0.5)), PARTS)
def test_a_refit_without_runs_is_what_it_started_from(start: dict[str, float], parts: dict[str, float]) -> None:
    assert fit_calibration([]) == PRIOR
    begun = Calibration(corrections=start)
    assert fit_calibration([], start=begun) == begun
    assert predict_interval(parts, fit_calibration([], start=begun)) == predict_interval(parts, begun)


@MANY
@given(RUNS, PARTS, st.sampled_from(["", "a"]))
def test_an_interval_contains_what_is_expected(
    runs: list[MeasuredTime], parts: dict[str, float], model: str
) -> None:
    calibration = fit_calibration(runs)
    found = predict_interval(parts, calibration, model=model)
    assert 0 < found.low < found.expected < found.high
    assert found.expected == seconds_of(parts, calibration, model=model)


@MANY
@given(RUNS, PARTS, st.sampled_from(NAMES), st.floats(1.0, 10.0))
def test_more_to_do_is_never_faster(
    runs: list[MeasuredTime], parts: dict[str, float], name: str, factor: float
) -> None:
    calibration = fit_calibration(runs)
    more = {**parts, name: parts.get(name, 1e-3) * factor}
    assert seconds_of(more, calibration) >= seconds_of(parts, calibration)
    assert seconds_of(scale_parts(parts, 2), calibration) == pytest.approx(2 * seconds_of(parts, calibration))


@MANY
@given(RUNS)
def test_the_order_of_runs_does_not_matter(runs: list[MeasuredTime]) -> None:
    there, back = fit_calibration(runs), fit_calibration(runs[::-1])
    assert there.names == back.names
    for name in there.names:
        assert there.corrections[name] == pytest.approx(back.corrections[name], abs=1e-4)


def test_runs_of_a_faster_machine_move_the_expected_there_and_narrow_it() -> None:
    parts = {"unprobed cpu reads": 0.08, "unprobed cpu launches": 0.01, "step": 0.001}
    runs = [MeasuredTime(parts=parts, measured_s=0.05, model="m") for _ in range(4)]
    before, after = predict_interval(parts, PRIOR, model="m"), None
    for count in range(1, 5):
        after = predict_interval(parts, fit_calibration(runs[:count]), model="m")
        assert after.low < 0.05 < after.high
    assert after is not None
    assert after.expected == pytest.approx(0.05, rel=0.05)
    assert after.log_width < before.log_width / 3


def test_what_one_model_was_measured_to_need_says_less_of_another() -> None:
    parts = {"cuda reads": 0.01, "cuda launches": 0.002}
    calibration = fit_calibration([MeasuredTime(parts=parts, measured_s=0.02, model="a")] * 3)
    own, other = (predict_interval(parts, calibration, model=model) for model in ("a", "b"))
    assert own.expected > other.expected > 0.012, "what both have in common is learned from either"
    assert own.log_width < other.log_width


def test_one_run_says_less_against_a_rehearsal_than_against_a_table() -> None:
    """The very run: what the engine's own layers were measured to take is known better."""
    moved = {}
    for device in ("cpu", "rehearsed cpu"):
        parts = {f"{device} reads": 0.09, f"{device} launches": 0.01}
        fitted = fit_calibration([MeasuredTime(parts=parts, measured_s=0.08, model="m")])
        moved[device] = 1 - seconds_of(parts, fitted, model="m") / 0.1
    assert 0 < moved["rehearsed cpu"] < 0.6 * moved["cpu"]


def test_one_run_of_a_busy_machine_does_not_spoil_the_rest() -> None:
    parts = {"cuda reads": 0.01}
    runs = [MeasuredTime(parts=parts, measured_s=0.01, model="m") for _ in range(6)]
    busy = MeasuredTime(parts=parts, measured_s=0.1, model="m")
    assert seconds_of(parts, fit_calibration([*runs, busy]), model="m") < 0.0115


def test_equal_runs_give_equal_bytes() -> None:
    runs = [MeasuredTime(parts={"cuda reads": 0.01 * n, "step": 1e-3}, measured_s=0.02 * n) for n in (1, 2, 3)]
    first, second = (msgspec.json.encode(fit_calibration(runs)) for _ in range(2))
    assert first == second


def test_parts_add_up_by_name() -> None:
    assert sum_parts({"b": 1.0}, {"a": 2.0, "b": 3.0}) == {"a": 2.0, "b": 4.0}
    assert list(sum_parts({"b": 1.0}, {"a": 2.0})) == ["a", "b"]


def test_an_interval_upside_down_is_refused() -> None:
    with pytest.raises(AssertionError, match="does not hold"):
        Interval(low=2.0, expected=1.0, high=3.0)
    assert Interval(low=1.0, expected=2.0, high=math.e).log_width == pytest.approx(1.0)
