from __future__ import annotations

from agent.planner.calibration import COVERAGE
from tests.benchmarks.silicon_fit import DATA, GLOBAL_GOAL, RANKING_GOAL, REFIT_GOAL, judge
from tests.benchmarks.silicon_runs import read_runs
from tests.shared_data import shared_data


def test_the_calibrated_model_meets_its_goals_on_systems_it_was_not_fitted_to() -> None:
    figures = judge(read_runs(shared_data(DATA)).runs)
    assert figures.fitted.mean_error <= GLOBAL_GOAL
    assert figures.refitted.mean_error <= REFIT_GOAL
    assert figures.ranking_share >= RANKING_GOAL
    assert figures.bare.mean_error > 2 * figures.fitted.mean_error
    assert figures.fitted.covered >= COVERAGE
    assert figures.refitted.covered >= COVERAGE, (
        "intervals that shrink with evidence still contain what is measured"
    )
    assert figures.refitted.half_width < 0.6 * figures.fitted.half_width
