"""Linear Thompson sampling on what the cost model gets wrong, which forgets, and notices when things change. Pure.

For arm a, features x and model m, log(actual / predicted) is c_m + x . theta_a plus noise: what the cost model
gets wrong of a language model whatever the arm, and of this arm beyond that. Without c an arm that nobody tried
would be judged by the cost model's bias, and one that was tried without it. It is one regression on a constant in
the model's place and x in the arm's (as the hybrid model of Li, Chu, Langford and Schapire, 2010): with
A = r I + sum z z^T and b the sum of z times that logarithm, the parameters are Gaussian around A^-1 b (Agrawal and
Goyal, 2013).

Each round moves the statistics towards the prior, which is that the cost model is right: A <- g A + (1 - g) r I
and b <- g b (Russac, Vernade and Cappe, 2019). When one arm's measurements leave what was learnt, all is forgotten
faster for a while: what changed, a link or a device, is seldom one plan's alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from agent.planner.learning.drift import PageHinkley

Floats = NDArray[np.float64]

GAMMA = 0.995
"""Half of what was learnt is forgotten in 139 rounds."""
ALARM_GAMMA = 0.9
ALARM_ROUNDS = 50
NOISE = 0.1
"""Standard deviation of one measurement's logarithm: what scales exploration."""
RIDGE = 3.0
"""Measurements that the prior weighs as much as."""


class ResidualBandit:
    """Learns log(actual / predicted) per arm and per model, starting from a cost model that is right."""

    def __init__(
        self,
        num_features: int,
        *,
        gamma: float = GAMMA,
        noise: float = NOISE,
        ridge: float = RIDGE,
        has_model_part: bool = True,
        watches_drift: bool = True,
    ) -> None:
        self._num_features = num_features
        self._gamma = gamma
        self._noise = noise
        self._ridge = ridge
        self._has_model_part = has_model_part
        self._watches_drift = watches_drift
        self._blocks: dict[str, int] = {}
        """Of each arm and each model, where its part of A and b begins."""
        self._drift: dict[str, PageHinkley] = {}
        self._precision: Floats = np.eye(0)
        self._response: Floats = np.zeros(0)
        self._solved: tuple[Floats, Floats] | None = None
        self.runs: dict[str, int] = {}
        """Measurements taken in, by arm."""
        self.alarms = 0
        self.alarm_rounds_left = 0
        """Rounds for which what was learnt before the last alarm still fades fast."""

    def expect(
        self, arms: Sequence[str], features: Sequence[Sequence[float]], *, model: str = ""
    ) -> tuple[Floats, Floats]:
        """Means and covariance of log(actual / predicted) of these arms for one model, a row of features each."""
        self._grow(arms, model)
        rows = np.stack([self._row(name, known, model) for name, known in zip(arms, features, strict=True)])
        theta, covariance = self._solve()
        return rows @ theta, self._noise**2 * (rows @ covariance @ rows.T)

    def residual(self, name: str, features: Sequence[float], *, model: str = "") -> float:
        """Expected log(actual / predicted)."""
        return float(self.expect([name], [features], model=model)[0][0])

    def observe(self, name: str, features: Sequence[float], residual: float, *, model: str = "") -> bool:
        """Take one measurement in. True when it raises the alarm."""
        surprise = residual - self.residual(name, features, model=model)
        self._forget()
        row = self._row(name, features, model)
        self._precision = self._precision + np.outer(row, row)
        self._response = self._response + residual * row
        self._solved = None
        self.runs[name] = self.runs.get(name, 0) + 1
        if not self._watches_drift:
            return False
        self._drift[name] = self._drift.get(name, PageHinkley()).with_value(surprise)
        if not self._drift[name].is_alarmed:
            return False
        self._drift.clear()
        self.alarms += 1
        self.alarm_rounds_left = ALARM_ROUNDS
        return True

    def _forget(self) -> None:
        gamma = min(self._gamma, ALARM_GAMMA) if self.alarm_rounds_left else self._gamma
        self.alarm_rounds_left = max(0, self.alarm_rounds_left - 1)
        prior = self._ridge * np.eye(len(self._response))
        self._precision = gamma * self._precision + (1 - gamma) * prior
        self._response = gamma * self._response

    def _grow(self, arms: Sequence[str], model: str) -> None:
        """Make room for arms and a model that are new: they know the prior alone."""
        wanted = [(f"arm {name}", self._num_features) for name in arms]
        wanted += [(f"model {model}", 1)] if self._has_model_part else []
        for key, size in wanted:
            if key in self._blocks:
                continue
            self._blocks[key] = known = len(self._response)
            grown = self._ridge * np.eye(known + size)
            grown[:known, :known] = self._precision
            self._precision = grown
            self._response = np.concatenate([self._response, np.zeros(size)])
            self._solved = None

    def _row(self, name: str, features: Sequence[float], model: str) -> Floats:
        row = np.zeros(len(self._response))
        begin = self._blocks[f"arm {name}"]
        row[begin : begin + self._num_features] = features
        if self._has_model_part:
            row[self._blocks[f"model {model}"]] = 1.0
        return row

    def _solve(self) -> tuple[Floats, Floats]:
        if self._solved is None:
            covariance: Floats = np.linalg.inv(self._precision).astype(np.float64)
            self._solved = (covariance @ self._response, covariance)
        return self._solved
