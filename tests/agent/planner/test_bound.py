from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.errors import FleetError
from agent.planner.bound import Curve, counting_bound, throughput_bound
from agent.planner.plan import Objective, Serving, StrategyKind
from agent.planner.problem import make_problem
from tests.agent.planner.clusters import LLAMA_70B, MIXED_GPUS, cluster, gpu, host, model, plan_for, request

CURVES = st.lists(
    st.lists(st.floats(0.1, 100), min_size=1, max_size=4).map(
        lambda rates: Curve(tokens_per_s=tuple(sorted(rates, reverse=True)))
    ),
    min_size=1,
    max_size=4,
)


def best_flow(curves: list[Curve], num_layers: int) -> float:
    """Of all placements with one machine or several equal shares of a stage: brute force over layers per machine.

    A placement is a layer interval for each machine; its flow is the least, over layers, of the sum of the rates of
    the machines that hold it, no machine counting more than its rate. That is at least what any routing reaches.
    """
    best = 0.0
    intervals = [
        [(0, 0), *((a, a + k) for k in range(1, len(c.tokens_per_s) + 1) for a in range(num_layers - k + 1))]
        for c in curves
    ]
    for placed in itertools.product(*intervals):
        per_layer = [0.0] * num_layers
        for curve, (begin, end) in zip(curves, placed, strict=True):
            for layer in range(begin, end):
                per_layer[layer] += curve.tokens_per_s[end - begin - 1]
        best = max(best, min(per_layer))
    return best


@given(curves=CURVES, num_layers=st.integers(1, 4))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_placement_of_machines_exceeds_the_bound(curves: list[Curve], num_layers: int) -> None:
    curves = curves[:3]
    bound = counting_bound(curves, num_layers)
    assert best_flow(curves, num_layers) <= bound * (1 + 1e-9)


@given(curves=CURVES, extra=CURVES, num_layers=st.integers(1, 8))
@settings(max_examples=100, deadline=None)
def test_one_more_machine_never_lowers_the_bound(curves: list[Curve], extra: list[Curve], num_layers: int) -> None:
    assert counting_bound([*curves, extra[0]], num_layers) >= counting_bound(curves, num_layers) * (1 - 1e-9)


def test_a_machine_that_holds_everything_bounds_itself_exactly() -> None:
    assert counting_bound([Curve(tokens_per_s=(30, 14, 9))], 3) == pytest.approx(9)
    four = counting_bound([Curve(tokens_per_s=(30, 14, 9), count=4)], 3)
    assert four == pytest.approx(40), "4 x 30 passes of one layer, for 3 layers each"


def test_machines_that_hold_too_few_layers_serve_nothing() -> None:
    assert counting_bound([Curve(tokens_per_s=(30, 14), count=2)], 5) == 0
    assert counting_bound([], 5) == 0


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_plan_exceeds_the_bound_of_its_devices(data: st.DataObject) -> None:
    draw = data.draw
    spec = model(
        num_layers=draw(st.integers(1, 12)), hidden=1024, intermediate=4096, heads=8, kv_heads=4, head_size=128
    )
    device = st.builds(
        gpu,
        st.just(0),
        st.sampled_from(["RTX 4090", "T4", "L4"]),
        st.floats(1.3, 4),
        read_gb_per_s=st.floats(10, 900),
    )
    facts = cluster(*(host(f"h{index}", draw(device)) for index in range(draw(st.integers(1, 4)))))
    strategies: list[StrategyKind] = ["adaptive", "pipeline", "hybrid"]
    asked = request(
        spec,
        facts,
        objective=Objective(kind="throughput", strategy=draw(st.sampled_from(strategies))),
        serving=Serving(context=512, batch=draw(st.integers(1, 40)), prefill_chunk=64),
        replicas=draw(st.integers(1, 2)),
    )
    try:
        plan = plan_for(spec, facts, objective=asked.objective, serving=asked.serving, replicas=asked.replicas)
    except FleetError as error:
        if error.code not in {"E601", "E602"}:
            raise
        return
    assert plan.predicted.tokens_per_s <= throughput_bound(make_problem(asked)) * (1 + 1e-5)


def test_a_plan_for_throughput_tells_its_distance_to_the_bound() -> None:
    plan = plan_for(LLAMA_70B, MIXED_GPUS, objective=Objective(kind="throughput"))
    told = [line for line in plan.why if line.startswith("counting bound: ")]
    assert len(told) == 1
    share = int(re.search(r"reaches (\d+)% of it", told[0])[1])  # type: ignore[index]
    assert 10 <= share <= 100
    assert not any("counting bound" in line for line in plan_for(LLAMA_70B, MIXED_GPUS).why)
