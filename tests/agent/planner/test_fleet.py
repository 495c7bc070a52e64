from __future__ import annotations

import itertools
import math
import random

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.errors import FleetError
from agent.planner.fleet import (
    ACROSS,
    Fleet,
    FleetPlan,
    Seatings,
    fleet_bound,
    fleet_layouts,
    fleet_of,
    plan_fleet,
    seat_sizes,
    without_host,
)
from agent.planner.plan import Objective, Serving
from agent.planner.problem import make_problem
from tests.agent.planner.clusters import LLAMA_70B, cluster, gpu, host, model, request
from tests.agent.planner.fleets import fleet_facts, fleet_problem, grouped_facts
from tests.agent.planner.test_split import compositions

SMALL = model(num_layers=6, hidden=1024, intermediate=4096, heads=8, kv_heads=4, head_size=128)


def small_fleet(sizes: list[float], *, racks: int = 2) -> Fleet:
    """Hosts of so many gigabytes and of speeds that follow from the number, dealt into racks."""
    hosts = [
        msgspec.structs.replace(
            host(f"h{index:03}", gpu(0, "L4", size, read_gb_per_s=50 + 40 * (index % 3))),
            labels={"rack": str(index % racks)},
        )
        for index, size in enumerate(sizes)
    ]
    serving = Serving(context=512, batch=4, prefill_chunk=64)
    return fleet_of(make_problem(request(SMALL, cluster(*hosts), serving=serving)))


def check_fleet_plan(fleet: Fleet, plan: FleetPlan) -> None:
    """Every device at most once, every layer once, memory kept, times true."""
    used = [index for group in plan.groups for index in group.seats]
    assert len(used) == len(set(used))
    assert not set(used) & plan.lost
    for group in plan.groups:
        assert sum(group.layers) == fleet.num_layers
        assert min(group.layers) >= 1
        times = []
        for position, (index, count) in enumerate(zip(group.seats, group.layers, strict=True)):
            kind = fleet.kind[index]
            first, last = position == 0, position == len(group.seats) - 1
            caps = {(True, True): fleet.cap_only, (True, False): fleet.cap_first, (False, True): fleet.cap_last}
            assert count <= caps.get((first, last), fleet.cap_middle)[kind]
            times.append(count * fleet.layer_s[kind] + first * fleet.first_s[kind] + last * fleet.last_s[kind])
        assert max(times) == pytest.approx(group.slowest_s)
        domains = {int(fleet.domain[index]) for index in group.seats}
        assert group.domain == ACROSS or domains == {group.domain}


@given(
    sizes=st.lists(st.floats(1.2, 2.2), min_size=1, max_size=24), lost=st.integers(0, 23), racks=st.integers(1, 3)
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_fleet_plan_is_sound_and_below_its_bound(sizes: list[float], lost: int, racks: int) -> None:
    """And so is the plan after a host is lost."""
    fleet = small_fleet([round(size, 1) for size in sizes], racks=racks)
    plan = plan_fleet(fleet)
    check_fleet_plan(fleet, plan)
    assert plan.passes_per_s <= fleet_bound(fleet) * (1 + 1e-9)
    after = without_host(fleet, plan, f"h{lost % len(sizes):03}")
    check_fleet_plan(fleet, after)
    assert after.lost == {lost % len(sizes)}


def test_a_group_is_split_as_well_as_brute_force_splits_it() -> None:
    """The slowest stage of every group against all divisions of the layers over the same devices in that order."""
    rng = random.Random(4)
    checked = 0
    for _ in range(30):
        fleet = small_fleet([rng.choice([1.45, 1.5, 1.55]) for _ in range(8)], racks=2)
        for group in plan_fleet(fleet).groups:
            kinds = [int(fleet.kind[index]) for index in group.seats]
            least = math.inf
            for layers in compositions(fleet.num_layers, len(kinds)):
                last = len(kinds) - 1
                caps = [
                    int(
                        (
                            fleet.cap_only
                            if last == 0
                            else fleet.cap_first
                            if i == 0
                            else fleet.cap_last
                            if i == last
                            else fleet.cap_middle
                        )[k]
                    )
                    for i, k in enumerate(kinds)
                ]
                if any(count > cap for count, cap in zip(layers, caps, strict=True)):
                    continue
                times = [
                    count * fleet.layer_s[k] + (i == 0) * fleet.first_s[k] + (i == last) * fleet.last_s[k]
                    for i, (k, count) in enumerate(zip(kinds, layers, strict=True))
                ]
                least = min(least, float(max(times)))
            assert group.slowest_s == pytest.approx(least, rel=1e-9)
            checked += 1
    assert checked >= 30


def test_layouts_of_a_fleet_fit_by_the_bytes_that_plans_count() -> None:
    facts = fleet_facts(120)
    problem = fleet_problem(facts)
    fleet = fleet_of(problem)
    layouts = fleet_layouts(fleet, plan_fleet(fleet))
    assert len(layouts) >= 8
    assert all(problem.fits(layout) for layout in layouts)
    for layout in layouts:
        edges = [0, *itertools.accumulate(stage.num_layers for stage in layout.stages)]
        assert edges[-1] == LLAMA_70B.num_layers


def test_hosts_without_labels_form_domains_of_their_own() -> None:
    plain = cluster(*(host(f"h{index:03}", gpu(0, "L4", 24)) for index in range(70)))
    fleet = fleet_of(fleet_problem(plain))
    assert np.bincount(fleet.domain).tolist() == [32, 32, 6]


def test_losing_a_host_replans_its_domain_alone() -> None:
    fleet = fleet_of(fleet_problem(fleet_facts(320)))
    plan = plan_fleet(fleet)
    after = without_host(fleet, plan, "h00100")
    check_fleet_plan(fleet, after)
    others = [group for group in plan.groups if group.domain not in {ACROSS, int(fleet.domain[100])}]
    assert set(others) <= set(after.groups)
    assert len(others) > len(plan.groups) / 2
    assert after.passes_per_s >= 0.9 * plan.passes_per_s
    with pytest.raises(FleetError, match="no device of the fleet is on host `h9`"):
        without_host(fleet, plan, "h9")


def test_equal_fleets_give_equal_plans_and_known_signatures_change_nothing() -> None:
    fleet = fleet_of(fleet_problem(fleet_facts(320)))
    plan = plan_fleet(fleet)
    assert plan_fleet(fleet_of(fleet_problem(fleet_facts(320)))).groups == plan.groups
    assert plan_fleet(fleet, known=plan.known).groups == plan.groups


def test_ten_thousand_hosts_are_planned_near_the_bound_and_replanned_around_a_lost_one() -> None:
    """`make bench-planner` tells what it takes."""
    facts = fleet_facts(10_000)
    fleet = fleet_of(fleet_problem(facts))
    plan = plan_fleet(fleet)
    after = without_host(fleet, plan, "h05000")
    assert len(after.groups) >= len(plan.groups) - 2
    assert plan.passes_per_s >= 0.9 * fleet_bound(fleet)


def test_equal_devices_of_a_host_sit_together() -> None:
    facts = cluster(
        host("a", *(gpu(index, "L4", 24) for index in range(7))),
        host("b", gpu(0, "L4", 24), gpu(1, "A100", 80), gpu(2, "A100", 80)),
    )
    problem = fleet_problem(facts)
    assert seat_sizes(problem) == (1, 2, 4)
    names = [[place.name for place in seat] for seat in fleet_of(problem, seat_size=4).seats]
    assert list(map(len, names)) == [4, 2, 1, 1, 2]
    assert names[-1] == ["b/cuda:1", "b/cuda:2"]
    asked = request(LLAMA_70B, facts, tensor=2, objective=Objective(kind="throughput"))
    exact = fleet_of(make_problem(asked), seat_size=2)
    assert [len(seat) for seat in exact.seats] == [2, 2, 2, 2], "the odd ones are left out"
    assert exact.units[0] == (4, 4)
    assert seat_sizes(make_problem(asked)) == (2,)
    chain = request(LLAMA_70B, facts, objective=Objective(kind="throughput", strategy="pipeline"))
    assert seat_sizes(make_problem(chain)) == (1,)


def test_every_way_to_sit_is_sound_and_a_leftover_is_dealt_across_domains() -> None:
    problem = fleet_problem(grouped_facts(12, num_gpus=6))
    fleets = [fleet_of(problem, seat_size=size) for size in seat_sizes(problem)]
    for fleet in fleets:
        check_fleet_plan(fleet, plan_fleet(fleet))
    seatings = Seatings(fleets)
    assert sum(count for count, _ in seatings.ways.values()) == 3
    for way in range(len(fleets)):
        layouts = seatings.layouts(dict.fromkeys(seatings.ways, way))
        places = [place for layout in layouts for place in layout.places]
        assert len(places) == len(set(places))
        assert all(problem.fits(layout) for layout in layouts)


def test_as_many_groups_are_tried_as_whole_devices_make() -> None:
    """Sixty-four cards of 35 layers make 21 groups of three for 80 layers; by their memory alone it would be 28."""
    facts = cluster(*(host(f"h{index:03}", gpu(0, "A100", 80)) for index in range(64)))
    hosts = tuple(msgspec.structs.replace(each, labels={"rack": "r"}) for each in facts.hosts)
    fleet = fleet_of(fleet_problem(msgspec.structs.replace(facts, hosts=hosts)))
    assert int(fleet.cap_middle[0]) * 2 < fleet.num_layers < int(fleet.cap_middle[0]) * 3
    own = [group for group in plan_fleet(fleet).groups if group.domain != ACROSS]
    assert len(own) == 21
