"""Two slow runs over a link: of a link that became slow, or of hosts that had other work. Facts in, plans out."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from agent.facts.cluster import ClusterFacts
from agent.facts.model import ModelSpec
from agent.facts.run import MeasuredRun, RunSource
from agent.planner.calibration import link_factors
from agent.planner.evidence import calibrate, changes
from agent.planner.file import plan_hash, plan_to_toml
from agent.planner.plan import Objective, Plan, Serving
from agent.planner.predict import predict_plan
from agent.planner.rates import corrected_links
from agent.planner.regimes import BUSY_RUNS, CHANGED_RUNS
from tests.agent.planner.clusters import LLAMA_1B, cluster, cpu, host, link, model, plan_for

THREE = cluster(*(host(name, cpu(8)) for name in "abc"))
SMALL = model(num_layers=12, hidden=256, intermediate=704)
SERVING = Serving(context=512, batch=1)
ON_TWO = {"serving": SERVING, "min_hosts": 2, "max_hosts": 2}
NOISE = (1.1, 0.93, 1.0, 1.05, 0.95, 1.02)


def hosts(plan: Plan) -> tuple[str, ...]:
    return tuple(sorted({shard.host for stage in plan.replicas[0].stages for shard in stage.shards}))


def run(
    plan: Plan, spec: ModelSpec, *, factor: float, ttft_factor: float | None = None, source: RunSource = "requests"
) -> MeasuredRun:
    """One that took `factor` times what the plan predicts."""
    return MeasuredRun(
        deployment=plan.name,
        plan_hash=plan_hash(plan),
        plan_toml=plan_to_toml(plan),
        spec=spec,
        source=source,
        prompt_tokens=plan.predicted.prompt_tokens,
        streams=1,
        time_per_token_s=plan.predicted.time_per_token_s * factor,
        ttft_s=plan.predicted.ttft_s * (factor if ttft_factor is None else ttft_factor),
    )


def noisy(plan: Plan, spec: ModelSpec, count: int, *, factor: float = 1.0) -> list[MeasuredRun]:
    return [
        run(plan, spec, factor=factor * NOISE[index % 6], ttft_factor=factor * NOISE[(index + 2) % 6])
        for index in range(count)
    ]


def over(pair: tuple[str, ...], longer: float, slower: float) -> ClusterFacts:
    return msgspec.structs.replace(THREE, links=corrected_links(THREE, {(pair[0], pair[1]): (longer, slower)}))


def over_slow_link(plan: Plan, spec: ModelSpec, count: int, *, longer: float, slower: float) -> list[MeasuredRun]:
    did = predict_plan(plan, spec, over(hosts(plan), longer, slower))
    tpot, ttft = did.time_per_token_s / plan.predicted.time_per_token_s, did.ttft_s / plan.predicted.ttft_s
    return [run(plan, spec, factor=tpot, ttft_factor=ttft)] * count


def seen(runs: Sequence[MeasuredRun], facts: ClusterFacts = THREE) -> ClusterFacts:
    """Facts with these runs, a minute apart."""
    dated = [msgspec.structs.replace(each, measured_at_s=60.0 * at) for at, each in enumerate(runs, start=1)]
    return msgspec.structs.replace(facts, runs=tuple(dated))


def elsewhere(first: Plan, spec: ModelSpec) -> Plan:
    """The same over another link, so that links can be told apart."""
    (third,) = set("abc") - set(hosts(first))
    return plan_for(spec, THREE, hosts=(hosts(first)[0], third), **ON_TWO)


@pytest.mark.parametrize("factor", [2.0, 4.0])
@pytest.mark.parametrize("num_slow", [CHANGED_RUNS, BUSY_RUNS])
def test_runs_that_are_slower_in_all_their_parts_met_busy_hosts(factor: float, num_slow: int) -> None:
    first = plan_for(LLAMA_1B, THREE, **ON_TWO)
    runs = noisy(elsewhere(first, LLAMA_1B), LLAMA_1B, 2) + noisy(first, LLAMA_1B, 4)
    assert hosts(plan_for(LLAMA_1B, seen(runs), **ON_TWO)) == hosts(first)
    facts = seen(runs + noisy(first, LLAMA_1B, num_slow, factor=factor))
    assert changes(facts) == {}
    assert link_factors(calibrate(facts)) == {}
    assert hosts(plan_for(LLAMA_1B, facts, **ON_TWO)) == hosts(first)


def test_hosts_that_are_busy_no_more_are_no_changed_link_either() -> None:
    first = plan_for(LLAMA_1B, THREE, **ON_TWO)
    runs = noisy(first, LLAMA_1B, 3) + noisy(first, LLAMA_1B, 3, factor=4.0) + noisy(first, LLAMA_1B, 3)
    assert changes(seen(runs)) == {}
    assert changes(seen(runs[3:])) == {}, "nor where they were busy when it was measured first"


def test_hosts_that_stay_busy_are_left_with_their_link() -> None:
    first = plan_for(LLAMA_1B, THREE, **ON_TWO)
    facts = seen(noisy(first, LLAMA_1B, 4) + noisy(first, LLAMA_1B, BUSY_RUNS + 1, factor=4.0))
    assert changes(facts) == {plan_hash(first): 60.0 * 5}


@pytest.mark.parametrize(("longer", "slower"), [(400.0, 1.0), (1.0, 400.0), (100.0, 100.0)])
@pytest.mark.parametrize("spec", [LLAMA_1B, SMALL])
def test_a_slowed_link_is_left_after_two_runs_however_it_is_slow(
    spec: ModelSpec, longer: float, slower: float
) -> None:
    asked = ON_TWO | {"objective": Objective(kind="ttft" if slower > longer else "latency")}
    first = plan_for(spec, THREE, **asked)
    slow = over_slow_link(first, spec, CHANGED_RUNS, longer=longer, slower=slower)
    facts = seen(noisy(first, spec, 4) + slow)
    assert changes(facts) == {plan_hash(first): 60.0 * 5}
    assert hosts(plan_for(spec, facts, **asked)) != hosts(first)


def test_a_run_within_a_host_tells_that_it_was_busy_where_the_layouts_own_times_do_not() -> None:
    """Waits and bytes of this link, slower by one factor, would look just like its hosts having other work."""
    first = plan_for(SMALL, THREE, **ON_TWO)
    (alone, other) = (plan_for(SMALL, THREE, hosts=(name,), serving=SERVING) for name in hosts(first))
    quiet, slow = noisy(first, SMALL, 4), noisy(first, SMALL, CHANGED_RUNS, factor=4.0)
    assert changes(seen(quiet + slow)) == {plan_hash(first): 60.0 * 5}, "nobody else saw it"

    before = [run(alone, SMALL, factor=1.1), run(other, SMALL, factor=1.0), *quiet]
    busy = seen([*before, *slow, run(alone, SMALL, factor=3.9)])
    assert changes(busy) == {}
    assert hosts(plan_for(SMALL, busy, **ON_TWO)) == hosts(first)

    long = noisy(first, SMALL, 2 * BUSY_RUNS, factor=4.0)
    assert changes(seen([*before, *long, run(alone, SMALL, factor=3.9)])) == {}, "however long it lasts"


def test_hosts_that_are_as_quick_as_ever_by_themselves_leave_the_link_to_blame() -> None:
    first = plan_for(LLAMA_1B, THREE, **ON_TWO)
    own = [plan_for(LLAMA_1B, THREE, hosts=(name,), serving=SERVING) for name in hosts(first)]
    within = [run(each, LLAMA_1B, factor=1.0) for each in own]
    facts = seen([*within, *noisy(first, LLAMA_1B, 4), *noisy(first, LLAMA_1B, 2, factor=4.0), *within])
    assert changes(facts) == {plan_hash(first): 60.0 * 7}


@pytest.mark.parametrize("is_touched", [False, True])
def test_who_is_on_other_hosts_or_served_from_them_is_no_witness(is_touched: bool) -> None:
    first = plan_for(SMALL, THREE, **ON_TWO)
    (third,) = set("abc") - set(hosts(first))
    where = {"hosts": (hosts(first)[0],), "serving": Serving(context=512, batch=1, gateway=third)}
    alone = plan_for(SMALL, THREE, **(where if is_touched else {"hosts": (third,), "serving": SERVING}))
    runs = [run(alone, SMALL, factor=1.0), *noisy(first, SMALL, 4), *noisy(first, SMALL, 2, factor=4.0)]
    assert plan_hash(first) in changes(seen([*runs, run(alone, SMALL, factor=4.0)]))


def test_canaries_are_held_against_canaries() -> None:
    """Alone, inside the gateway, of another prompt: two applies in a row are no change."""
    first = plan_for(LLAMA_1B, THREE, **ON_TWO)
    canaries = [run(first, LLAMA_1B, factor=0.8, ttft_factor=0.3, source="check")] * CHANGED_RUNS
    assert changes(seen(noisy(first, LLAMA_1B, 4) + canaries)) == {}
    slow = over_slow_link(first, LLAMA_1B, CHANGED_RUNS, longer=400.0, slower=1.0)
    checks = [
        msgspec.structs.replace(
            each, source="check", ttft_s=0.3 * each.ttft_s, time_per_token_s=0.8 * each.time_per_token_s
        )
        for each in slow
    ]
    assert plan_hash(first) in changes(seen(canaries + noisy(first, LLAMA_1B, 2) + checks))


FULL_S = ((0.139, 0.0343), (0.151, 0.0358), (0.121, 0.0259))
MBIT_S = ((1.133, 0.0476), (0.642, 0.0851))
"""(first token, per token) of runs 1 to 5 in docs/benchmarks.md, "slow link"."""


@pytest.mark.parametrize("num_slow", [1, 2])
def test_the_benchmarks_link_is_left_after_two_measured_runs(num_slow: int) -> None:
    """Shared cores make all runs many times as slow as predicted, and scatter; then the link is at 1 Mbit/s."""
    links = [
        link(one, other, latency_s=1.2e-4, bytes_per_s=8e8) for one in "abc" for other in "abc" if one != other
    ]
    probed = msgspec.structs.replace(THREE, links=tuple(links))
    asked = ON_TWO | {"objective": Objective(kind="ttft"), "prompt_tokens": 128}
    lab = model(num_layers=4, hidden=128, intermediate=352)
    first = plan_for(lab, probed, **asked)
    runs = [
        msgspec.structs.replace(run(first, lab, factor=1.0), ttft_s=ttft_s, time_per_token_s=time_per_token_s)
        for ttft_s, time_per_token_s in (*FULL_S, *MBIT_S[:num_slow])
    ]
    facts = seen(runs, probed)
    has_left = num_slow == len(MBIT_S)
    assert (plan_hash(first) in changes(facts)) is has_left
    assert (hosts(plan_for(lab, facts, **asked)) != hosts(first)) is has_left
