"""Which of several plans to take: the one expected to be best, or now and then one that may be. Pure, seeded."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from agent.planner.learning.bandit import ResidualBandit

EXPLORED_GAP = 0.15
"""An arm expected to be worse by more than this is not tried for the sake of knowing."""
NUM_DRAWS = 256
"""Draws that propensities are counted from."""
JITTER = 1e-12
"""Added to variances: two plans with one arm and the same features make their matrix singular."""
HORIZON_S = 3600.0
"""How long a plan is taken to serve, for the seconds of loading its weights to be weighed against."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One plan. `predicted` is what the cost model says and is to be small: seconds per token, joules …"""

    arm: str
    predicted: float
    features: tuple[float, ...]
    reload_s: float = 0.0
    """Seconds until its weights are loaded; 0 for the plan that runs."""


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    expected: tuple[float, ...]
    """Of each candidate, what was predicted as corrected by what was learnt, switching included."""
    propensity: float
    """Likelihood with which this candidate was chosen: 1 without exploration."""
    is_exploring: bool
    """Whether another one was expected to be better."""


def choose(
    bandit: ResidualBandit,
    candidates: Sequence[Candidate],
    *,
    model: str = "",
    seed: int | Sequence[int] = 0,
    may_explore: bool = True,
    explored_gap: float = EXPLORED_GAP,
    horizon_s: float = HORIZON_S,
) -> Choice:
    """The candidate with the least expected value, or by Thompson sampling one within the gap of it."""
    assert candidates, "there is nothing to choose from"
    means, covariance = bandit.expect(
        [each.arm for each in candidates], [each.features for each in candidates], model=model
    )
    known = [math.log(each.predicted) + math.log1p(each.reload_s / horizon_s) for each in candidates]
    logs = np.array(known) + means
    best = int(logs.argmin())
    expected = tuple(float(value) for value in np.exp(logs))
    near = np.flatnonzero(logs - logs[best] < math.log1p(explored_gap))
    if not may_explore or len(near) == 1:
        return Choice(index=best, expected=expected, propensity=1.0, is_exploring=False)
    spread = np.linalg.cholesky(covariance[np.ix_(near, near)] + JITTER * np.eye(len(near)))
    normal = np.random.default_rng(seed).standard_normal((NUM_DRAWS, len(near)))
    winners = (logs[near] + normal @ spread.T).argmin(axis=1)
    drawn = int(winners[0])
    return Choice(
        index=int(near[drawn]),
        expected=expected,
        propensity=float((winners == drawn).mean()),
        is_exploring=int(near[drawn]) != best,
    )
