"""The programme against brute force: every subset of options, every split of layers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest

from agent.planner.split import Minimise, OptionTable, SplitLimits, split_layers

INSTANCES = 120


def random_table(rng: np.random.Generator, *, num_devices: int, groups: bool, num_layers: int) -> OptionTable:
    """Devices on hosts of one or two, with groups of two neighbours where asked for."""
    host = np.sort(rng.integers(0, num_devices, num_devices))
    host = np.searchsorted(np.unique(host), host)
    spans = [(start, start) for start in range(num_devices)]
    if groups:
        spans += [(start, start + 1) for start in range(num_devices - 1)]
    spans.sort()
    count = len(spans)
    start, end = np.array(spans).T
    cap_middle = rng.integers(0, num_layers + 1, count)
    cap_first = np.maximum(0, cap_middle - rng.integers(0, 2, count))
    cap_last = np.maximum(0, cap_middle - rng.integers(0, 2, count))
    return OptionTable(
        start=start,
        end=end,
        layer_s=rng.uniform(0.5, 4, count),
        first_s=rng.uniform(0, 2, count),
        last_s=rng.uniform(0, 2, count),
        cap_first=cap_first,
        cap_middle=cap_middle,
        cap_last=cap_last,
        cap_only=np.minimum(cap_first, cap_last),
        size=end - start + 1,
        first_host=host[start],
        last_host=host[end],
        hop_s=rng.uniform(0, 3, (count, count)),
    )


def compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    for cuts in itertools.combinations(range(1, total), parts - 1):
        edges = (0, *cuts, total)
        yield tuple(b - a for a, b in itertools.pairwise(edges))


def value_of(
    table: OptionTable, chosen: tuple[int, ...], layers: tuple[int, ...], minimise: Minimise
) -> tuple[float, float]:
    """Objective and slowest stage or hop of one split; infinite where memory forbids it."""
    times, hops = [], [float(table.hop_s[a, b]) for a, b in itertools.pairwise(chosen)]
    last = len(chosen) - 1
    for index, (option, count) in enumerate(zip(chosen, layers, strict=True)):
        caps = {(True, True): table.cap_only, (True, False): table.cap_first, (False, True): table.cap_last}
        cap = caps.get((index == 0, index == last), table.cap_middle)[option]
        if count > cap:
            return math.inf, math.inf
        first, final = index == 0, index == last
        times.append(
            float(count * table.layer_s[option] + first * table.first_s[option] + final * table.last_s[option])
        )
    slowest = max(times + hops)
    match minimise:
        case "sum":
            return sum(times) + sum(hops), slowest
        case "max":
            return slowest, slowest
        case "squares":
            return sum(time**2 for time in times), slowest


def brute_force(
    table: OptionTable,
    num_layers: int,
    minimise: Minimise,
    *,
    limits: SplitLimits | None = None,
    slowest_s: float = math.inf,
) -> float:
    asked = limits or SplitLimits()
    best = math.inf
    for count in range(1, min(len(table), num_layers) + 1):
        if count < asked.min_stages or count > (asked.max_stages or count):
            continue
        for chosen in itertools.combinations(range(len(table)), count):
            if any(table.end[a] >= table.start[b] for a, b in itertools.pairwise(chosen)):
                continue
            hosts = {h for o in chosen for h in range(table.first_host[o], table.last_host[o] + 1)}
            if len(hosts) < asked.min_hosts or len(hosts) > (asked.max_hosts or len(hosts)):
                continue
            if asked.stage_sizes and tuple(int(table.size[o]) for o in chosen) != asked.stage_sizes:
                continue
            for layers in compositions(num_layers, count):
                value, slowest = value_of(table, chosen, layers, minimise)
                if slowest <= slowest_s * (1 + 1e-9):
                    best = min(best, value)
    return best


def random_limits(rng: np.random.Generator) -> SplitLimits:
    match int(rng.integers(0, 6)):
        case 0:
            return SplitLimits(min_stages=2)
        case 1:
            stages = int(rng.integers(1, 4))
            return SplitLimits(min_stages=stages, max_stages=stages)
        case 2:
            return SplitLimits(min_hosts=2, max_hosts=3)
        case 3:
            return SplitLimits(min_hosts=2, min_stages=2)
        case 4:
            return SplitLimits(max_hosts=1)
        case _:
            return SplitLimits(stage_sizes=tuple(int(size) for size in rng.integers(1, 3, rng.integers(1, 4))))


@pytest.mark.parametrize("minimise", ["sum", "max", "squares"])
@pytest.mark.parametrize("groups", [False, True])
def test_the_programme_finds_what_brute_force_finds(minimise: Minimise, groups: bool) -> None:
    rng = np.random.default_rng(7)
    feasible = 0
    for _ in range(INSTANCES):
        num_layers = int(rng.integers(1, 8))
        table = random_table(rng, num_devices=int(rng.integers(1, 5)), groups=groups, num_layers=num_layers)
        expected = brute_force(table, num_layers, minimise)
        split = split_layers(table, num_layers, minimise=minimise)
        if split is None:
            assert expected == math.inf
            continue
        feasible += 1
        assert split.value == pytest.approx(expected, rel=1e-12)
        assert sum(split.layers) == num_layers
        assert value_of(table, split.options, split.layers, minimise)[0] == pytest.approx(expected, rel=1e-12)
    assert feasible > INSTANCES // 3


def test_limits_on_stages_hosts_and_sizes_are_kept_exactly() -> None:
    rng = np.random.default_rng(11)
    feasible = 0
    for _ in range(INSTANCES):
        num_layers = int(rng.integers(2, 7))
        table = random_table(rng, num_devices=4, groups=True, num_layers=num_layers)
        limits = random_limits(rng)
        expected = brute_force(table, num_layers, "sum", limits=limits)
        split = split_layers(table, num_layers, minimise="sum", limits=limits)
        assert (split is None) == (expected == math.inf), limits
        if split is not None:
            feasible += 1
            assert split.value == pytest.approx(expected, rel=1e-12), limits
    assert feasible > INSTANCES // 5


def test_a_bound_on_the_slowest_stage_is_kept_and_costs_as_little_as_possible() -> None:
    rng = np.random.default_rng(13)
    for _ in range(INSTANCES):
        num_layers = int(rng.integers(2, 7))
        table = random_table(rng, num_devices=4, groups=False, num_layers=num_layers)
        balanced = split_layers(table, num_layers, minimise="max")
        if balanced is None:
            continue
        for slack in (1.0, 1.3):
            bound = balanced.value * slack
            split = split_layers(table, num_layers, minimise="sum", slowest_s=bound)
            assert split is not None
            expected = brute_force(table, num_layers, "sum", slowest_s=bound)
            assert split.value == pytest.approx(expected, rel=1e-12)


def test_one_more_device_never_makes_the_optimum_worse() -> None:
    rng = np.random.default_rng(17)
    for _ in range(40):
        table = random_table(rng, num_devices=4, groups=False, num_layers=6)
        fewer = OptionTable(
            **{name: (value[:-1, :-1] if name == "hop_s" else value[:-1]) for name, value in vars(table).items()}
        )
        for minimise in ("sum", "max"):
            with_it = split_layers(table, 6, minimise=minimise)
            without = split_layers(fewer, 6, minimise=minimise)
            if without is not None:
                assert with_it is not None
                assert with_it.value <= without.value * (1 + 1e-12)
