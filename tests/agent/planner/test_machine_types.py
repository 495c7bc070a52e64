from __future__ import annotations

import functools
import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.planner.bound import Curve, counting_bound
from agent.planner.machine_types import MachineType, TypePlan, best_served, serve_types, stage_pareto
from tests.agent.planner.fleets import HELIX_TRAFFIC, helix_types
from tests.shared_data import shared_data

RATES = st.lists(st.integers(1, 60), min_size=1, max_size=4).map(
    lambda rates: tuple(sorted(map(float, rates), reverse=True))
)
TYPES = st.lists(st.tuples(st.integers(1, 4), RATES), min_size=1, max_size=2)
HELIX_LAYERS = 80


@functools.cache
def helix() -> tuple[tuple[MachineType, ...], tuple[TypePlan, ...]]:
    types = helix_types(shared_data("planner/helix_single24.json"))
    return types, stage_pareto(types, HELIX_LAYERS)


def machines(drawn: list[tuple[int, tuple[float, ...]]]) -> list[MachineType]:
    return [
        MachineType(name=f"t{index}", count=count, tokens_per_s=rates) for index, (count, rates) in enumerate(drawn)
    ]


def flow_of(plan: TypePlan, types: list[MachineType]) -> float:
    rates = {kind.name: kind.tokens_per_s for kind in types}
    return min(stage.machines * rates[stage.machine][stage.layers - 1] for stage in plan.stages)


def most_flow(types: list[MachineType], num_layers: int, max_stages: int) -> float:
    """Brute force over every multiset of stages of one type each."""
    choices = [
        (index, p, k) for index, kind in enumerate(types) for p in range(1, kind.count + 1)
        for k in range(1, len(kind.tokens_per_s) + 1)
    ]  # fmt: skip
    best = 0.0
    for count in range(1, max_stages + 1):
        for stages in itertools.combinations_with_replacement(choices, count):
            used = [sum(p for index, p, _ in stages if index == each) for each in range(len(types))]
            if any(n > kind.count for n, kind in zip(used, types, strict=True)):
                continue
            if sum(k for _, _, k in stages) >= num_layers:
                best = max(best, min(p * types[index].tokens_per_s[k - 1] for index, p, k in stages))
    return best


@given(drawn=TYPES, num_layers=st.integers(1, 6))
@settings(max_examples=100, deadline=None)
def test_every_pareto_plan_has_the_most_flow_of_its_stages(
    drawn: list[tuple[int, tuple[float, ...]]], num_layers: int
) -> None:
    types = machines(drawn)
    plans = {len(plan.stages): plan for plan in stage_pareto(types, num_layers)}
    reached = 0.0
    for max_stages in range(1, 4):
        if max_stages in plans:
            reached = plans[max_stages].tokens_per_s
        assert reached == pytest.approx(most_flow(types, num_layers, max_stages))


@given(drawn=TYPES, num_layers=st.integers(1, 10))
@settings(max_examples=100, deadline=None)
def test_plans_cover_the_model_with_the_machines_there_are_and_below_the_bound(
    drawn: list[tuple[int, tuple[float, ...]]], num_layers: int
) -> None:
    types = machines(drawn)
    bound = counting_bound([Curve(tokens_per_s=kind.tokens_per_s, count=kind.count) for kind in types], num_layers)
    plans = stage_pareto(types, num_layers)
    for plan in plans:
        assert sum(stage.layers for stage in plan.stages) == num_layers
        for kind in types:
            assert sum(stage.machines for stage in plan.stages if stage.machine == kind.name) <= kind.count
        assert flow_of(plan, types) >= plan.tokens_per_s * (1 - 1e-9)
        assert plan.tokens_per_s <= bound * (1 + 1e-9)
    assert [len(plan.stages) for plan in plans] == sorted({len(plan.stages) for plan in plans})
    assert all(a.tokens_per_s < b.tokens_per_s for a, b in itertools.pairwise(plans))


def test_more_stages_help_after_one_that_did_not() -> None:
    """At a flow of 3, a stage of three machines covers 4 layers, two of one 4 as well, and three 6."""
    plans = stage_pareto(machines([(3, (3.0, 3.0, 1.0, 1.0))]), 6)
    assert (len(plans[-1].stages), plans[-1].tokens_per_s) == (3, 3.0)


def test_machines_that_cannot_hold_the_model_have_no_plan() -> None:
    assert stage_pareto(machines([(2, (9.0, 4.0))]), 5) == ()


def test_the_public_cluster_reaches_its_counting_bound() -> None:
    types, plans = helix()
    flows = {len(plan.stages): plan.tokens_per_s for plan in plans}
    bound = counting_bound(
        [Curve(tokens_per_s=kind.tokens_per_s, count=kind.count) for kind in types], HELIX_LAYERS
    )
    assert flows[24] >= 2045
    assert flows[24] <= bound * (1 + 1e-9)
    assert flows[24] == pytest.approx(bound, rel=1e-6)
    for stages, flow in ((20, 1754), (14, 1516), (13, 1496), (12, 1393), (11, 1212), (9, 952)):
        assert flows[stages] == pytest.approx(flow, abs=1)


def test_the_plan_for_throughput_has_few_stages() -> None:
    """Helix's simulator serves 270.5 tok/s with 13 stages and 220.6 with the 24 of the most flow."""
    types, plans = helix()
    best, served = best_served(plans, types, HELIX_TRAFFIC)
    assert len(best.stages) in {13, 14}
    most = serve_types(plans[-1], types, HELIX_TRAFFIC)
    assert served.tokens_per_s > most.tokens_per_s
    assert served.round_trip_s < most.round_trip_s
    for plan in plans:
        each = serve_types(plan, types, HELIX_TRAFFIC)
        assert each.sequences == pytest.approx(each.tokens_per_s * each.round_trip_s), "Little's law"


@pytest.mark.parametrize(
    ("stages", "tokens_per_s", "round_trip_s"),
    [(11, 263.7, 1.01), (13, 270.5, 1.27), (14, 268.5, 1.29), (24, 220.6, 1.89)],
)
def test_what_is_served_is_within_an_eighth_of_the_simulated(
    stages: int, tokens_per_s: float, round_trip_s: float
) -> None:
    types, plans = helix()
    plan = next(plan for plan in plans if len(plan.stages) == stages)
    served = serve_types(plan, types, HELIX_TRAFFIC)
    assert served.tokens_per_s == pytest.approx(tokens_per_s, rel=0.125)
    assert served.round_trip_s == pytest.approx(round_trip_s, rel=0.05)


def test_no_memory_for_a_sequence_serves_nothing() -> None:
    kind = MachineType(name="t", count=1, tokens_per_s=(9.0,), memory_bytes=1.0, read_bytes_per_s=1e9)
    plan = stage_pareto([kind], 1)[0]
    assert serve_types(plan, [kind], HELIX_TRAFFIC).tokens_per_s == 0
    assert math.isfinite(serve_types(plan, [kind], HELIX_TRAFFIC).round_trip_s)
