from __future__ import annotations

import itertools
import random

import pytest

from agent.planner.layout import cut_shares
from agent.planner.plan import Objective
from agent.planner.tensor import share_units
from tests.agent.planner.clusters import LLAMA_1B, cluster, cpu, host, model, plan_for


def test_three_times_as_fast_is_three_times_the_heads() -> None:
    assert share_units(4, [3.0, 1.0]) == (3, 1)
    assert share_units(8, [15e9, 5e9]) == (6, 2)
    facts = cluster(host("fast", cpu(8, read_gb_per_s=30)), host("slow", cpu(8, read_gb_per_s=10)))
    plan = plan_for(LLAMA_1B, facts, objective=Objective(strategy="tensor"))
    (stage,) = plan.replicas[0].stages
    assert {shard.host: shard.heads for shard in stage.shards} == {"fast": (0, 24), "slow": (24, 32)}
    assert [shard.columns for shard in stage.shards] == [(0, 6144), (6144, 8192)]
    assert [shard.vocab for shard in stage.shards] == [(0, 96192), (96192, 128256)]
    assert any("6:2" in line for line in plan.why)


def test_shares_are_optimal_under_their_limits() -> None:
    rng = random.Random(3)
    for _ in range(200):
        ranks, units = rng.randint(1, 4), rng.randint(1, 9)
        weights = [rng.uniform(0.5, 4) for _ in range(ranks)]
        most = [rng.randint(0, units) for _ in range(ranks)]
        feasible = [
            shares for shares in itertools.product(*(range(1, limit + 1) for limit in most)) if sum(shares) == units
        ]
        found = share_units(units, weights, most)
        if not feasible:
            assert found is None
            continue
        assert found in feasible
        assert found is not None
        best = min(max(s / w for s, w in zip(shares, weights, strict=True)) for shares in feasible)
        assert max(s / w for s, w in zip(found, weights, strict=True)) == pytest.approx(best)


def test_shares_meet_without_gap_even_where_nothing_divides() -> None:
    spec = model(kv_heads=3, heads=9, intermediate=1000, vocab=1001)
    shares = cut_shares(spec, (1, 1, 1))
    for field, total in (("heads", 9), ("kv_heads", 3), ("columns", 1000), ("vocab", 1001)):
        ranges = [getattr(share, field) for share in shares]
        assert ranges[0][0] == 0
        assert ranges[-1][1] == total
        assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))


def test_a_small_device_takes_what_it_can_hold_and_not_what_its_speed_asks_for() -> None:
    facts = cluster(host("fast", cpu(1.4, read_gb_per_s=60)), host("slow", cpu(8, read_gb_per_s=10)))
    plan = plan_for(LLAMA_1B, facts, objective=Objective(strategy="tensor"))
    heads = {shard.host: shard.kv_heads[1] - shard.kv_heads[0] for shard in plan.replicas[0].stages[0].shards}
    assert heads["fast"] < 6
    assert all(shard.bytes.total <= 1.4e9 for shard in plan.replicas[0].stages[0].shards if shard.host == "fast")
