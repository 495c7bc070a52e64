"""The goals of the replay, on one seed: what `make bench-learning` shows on several."""

from __future__ import annotations

import statistics

from tests.benchmarks.learning import DATA, LAST, MIXES, OURS, POLICIES, replay
from tests.benchmarks.silicon import read_cases
from tests.shared_data import shared_data

SEED = 11
LEARNERS = ("cost model only", "bandit without prior", "bandit with prior", OURS)


def test_learning_costs_little_in_calm_and_least_with_a_fault() -> None:
    cases = read_cases(shared_data(DATA))
    weight = MIXES["balanced"]
    calm = replay(cases, POLICIES[OURS], seed=SEED, weight=weight, has_fault=False)
    faulty = {
        name: replay(cases, make, seed=SEED, weight=weight, has_fault=True) for name, make in POLICIES.items()
    }
    assert statistics.fmean(calm) <= 0.05
    totals = {name: statistics.fmean(regrets) for name, regrets in faulty.items()}
    assert min(totals, key=lambda name: totals[name]) == OURS, totals
    last = {name: statistics.fmean(faulty[name][-LAST:]) for name in LEARNERS}
    assert min(last, key=lambda name: last[name]) == OURS, last
