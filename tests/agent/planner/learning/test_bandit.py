"""The bandit against a library's where both apply, and what it does beyond that."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from agent.planner.learning.bandit import ALARM_ROUNDS, ResidualBandit
from agent.planner.learning.choose import Candidate, choose

NUM_FEATURES = 4


def plain(*, ridge: float = 1.0, noise: float = 0.1) -> ResidualBandit:
    """Without what the library lacks: forgetting, drift, a part per model."""
    return ResidualBandit(
        NUM_FEATURES, gamma=1.0, ridge=ridge, noise=noise, has_model_part=False, watches_drift=False
    )


@pytest.mark.parametrize("policy", ["LinUCB", "LinTS"])
def test_without_forgetting_the_means_are_those_of_mabwiser(policy: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mabwiser.mab import MAB, LearningPolicy

    random = np.random.default_rng(5)
    arms = ["pipeline", "tensor", "hybrid"]
    contexts = random.normal(size=(90, NUM_FEATURES))
    chosen = [arms[index % 3] for index in range(90)]
    residuals = random.normal(size=90)
    learning = {
        "LinUCB": LearningPolicy.LinUCB(alpha=0.0, l2_lambda=2.0),
        # A vanishing alpha leaves the mean of what is drawn.
        "LinTS": LearningPolicy.LinTS(alpha=1e-9, l2_lambda=2.0),
    }[policy]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = MAB(arms, learning)
        library.fit(decisions=chosen, rewards=list(residuals), contexts=contexts)
    ours = plain(ridge=2.0)
    for name, features, residual in zip(chosen, contexts, residuals, strict=True):
        ours.observe(name, tuple(features), float(residual))
    for features in random.normal(size=(10, NUM_FEATURES)):
        expected = library.predict_expectations([features])
        for name in arms:
            assert ours.residual(name, tuple(features)) == pytest.approx(expected[name], abs=1e-6)


def test_the_spread_is_that_of_linear_thompson_sampling() -> None:
    ours, features = plain(noise=0.3), np.array([1.0, 0.5, -1.0, 2.0])
    for _ in range(3):
        ours.observe("tensor", tuple(features), 0.2)
    covariance = np.linalg.inv(np.eye(NUM_FEATURES) + 3 * np.outer(features, features))
    _, spread = ours.expect(["tensor"], [tuple(features)])
    assert spread[0, 0] == pytest.approx(0.09 * features @ covariance @ features)


def test_an_arm_that_nobody_tried_shares_what_is_wrong_for_its_model_alone() -> None:
    bandit, features = ResidualBandit(NUM_FEATURES), (1.0, 0.0, 0.0, 0.0)
    for _ in range(40):
        bandit.observe("pipeline", features, 0.5, model="llama")
    tried, untried = (bandit.residual(arm, features, model="llama") for arm in ("pipeline", "tensor"))
    elsewhere = bandit.residual("tensor", features, model="qwen")
    assert 0.4 < tried < 0.5
    assert 0.1 < untried < tried
    assert elsewhere == 0.0


def test_what_is_not_measured_again_fades_back_to_the_cost_model() -> None:
    bandit, features = ResidualBandit(NUM_FEATURES, has_model_part=False), (1.0, 0.0, 0.0, 0.0)
    for _ in range(20):
        bandit.observe("tensor", features, 1.0)
    learnt = bandit.residual("tensor", features)
    for _ in range(600):
        bandit.observe("pipeline", features, 0.0)
    assert learnt > 0.8
    assert 0 < bandit.residual("tensor", features) < learnt / 3


def test_a_link_that_slows_down_raises_the_alarm_and_is_learnt_within_a_few_runs() -> None:
    random = np.random.default_rng(3)
    bandit, features = ResidualBandit(NUM_FEATURES), (1.0, 0.3, 0.0, 0.0)
    before = [bandit.observe("tensor", features, float(random.normal(0.1, 0.08))) for _ in range(60)]
    after = [bandit.observe("tensor", features, float(random.normal(1.2, 0.08))) for _ in range(40)]
    assert not any(before)
    assert after.index(True) < 6
    assert bandit.residual("tensor", features) > 0.8
    assert bandit.alarms in (1, 2), "what comes while it is learnt anew may surprise once more"
    assert 0 < bandit.alarm_rounds_left <= ALARM_ROUNDS


def candidates(*predicted: float, reload_s: float = 0.0) -> list[Candidate]:
    return [
        Candidate(
            arm=f"arm {index}", predicted=value, features=(1.0, 0.0, 0.0, 0.0), reload_s=reload_s * (index > 0)
        )
        for index, value in enumerate(predicted)
    ]


def test_before_anything_is_learnt_the_cost_model_decides() -> None:
    choice = choose(ResidualBandit(NUM_FEATURES), candidates(0.020, 0.010, 0.030), may_explore=False)
    assert choice.index == 1
    assert choice.expected == pytest.approx((0.020, 0.010, 0.030))
    assert choice.propensity == 1.0


def test_exploration_stays_within_the_gap_and_is_repeated_by_its_seed() -> None:
    bandit = ResidualBandit(NUM_FEATURES)
    several = candidates(0.0100, 0.0105, 0.0120)
    choices = [choose(bandit, several, seed=seed) for seed in range(60)]
    assert {choice.index for choice in choices} == {0, 1}, "the third is expected to be 20% worse"
    assert choices == [choose(bandit, several, seed=seed) for seed in range(60)]
    shares = {choice.index: choice.propensity for choice in choices}
    assert shares[0] > shares[1]
    assert shares[0] + shares[1] == pytest.approx(1.0, abs=0.15)
    assert all(choice.is_exploring == (choice.index != 0) for choice in choices)


def test_switching_costs_the_seconds_of_loading_weights() -> None:
    bandit = ResidualBandit(NUM_FEATURES)
    better = candidates(0.0101, 0.0100)
    assert choose(bandit, better, may_explore=False).index == 1
    moved = candidates(0.0101, 0.0100, reload_s=120)
    choice = choose(bandit, moved, may_explore=False, horizon_s=600)
    assert choice.index == 0
    assert choice.expected[1] == pytest.approx(0.0100 * 1.2)


def test_what_was_learnt_overrules_the_cost_model() -> None:
    bandit = ResidualBandit(NUM_FEATURES)
    for _ in range(10):
        bandit.observe("arm 0", (1.0, 0.0, 0.0, 0.0), math.log(2))
        bandit.observe("arm 1", (1.0, 0.0, 0.0, 0.0), 0.0)
    choice = choose(bandit, candidates(0.010, 0.013), may_explore=False)
    assert choice.index == 1
