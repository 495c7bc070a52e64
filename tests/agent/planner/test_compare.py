from __future__ import annotations

import msgspec
import pytest

from agent.errors import FleetError
from agent.planner.compare import Comparison, compare_plans, shape_words
from agent.planner.plan import Plan, Serving
from agent.planner.rates import LinkTable
from tests.agent.planner.clusters import LLAMA_1B, THREE_CPUS, drafting, plan_for


@pytest.fixture(scope="module")
def one() -> Plan:
    return plan_for(LLAMA_1B, THREE_CPUS)


@pytest.fixture(scope="module")
def three() -> Plan:
    return plan_for(LLAMA_1B, THREE_CPUS, stages=3)


def winners(comparison: Comparison) -> dict[str, int | None]:
    return {verdict.objective: verdict.winner for verdict in comparison.verdicts}


def test_a_plan_is_the_same_as_itself_whatever_its_reasons(one: Plan) -> None:
    other = msgspec.structs.replace(one, why=("said differently",))
    comparison = compare_plans([one, other], ["a", "b"])
    assert comparison.is_same
    assert comparison.changes[0].bytes_to_move == 0
    assert comparison.changes[0].layers_moved == ()
    assert set(winners(comparison).values()) == {None}


def test_the_verdict_of_each_objective_follows_the_predictions(one: Plan) -> None:
    faster = msgspec.structs.replace(
        one,
        predicted=msgspec.structs.replace(
            one.predicted,
            time_per_token_s=one.predicted.time_per_token_s / 2,
            tokens_per_s=one.predicted.tokens_per_s * 0.8,
            ttft_s=one.predicted.ttft_s * 1.001,
            ttft_bounds_s=(),
            time_per_token_bounds_s=(),
            tokens_per_s_bounds=(),
        ),
    )
    longer = msgspec.structs.replace(one, serving=Serving(context=4096))
    comparison = compare_plans([one, faster, longer], ["a", "b", "c"])
    assert not comparison.is_same
    assert winners(comparison) == {"latency": 1, "ttft": None, "throughput": None, "context": 2, "energy": None}
    reasons = {verdict.objective: verdict.reason for verdict in comparison.verdicts}
    assert reasons["latency"] == "b has 50% less time per token"
    assert reasons["context"] == "c has 100% more context"
    throughput = compare_plans([one, faster], ["a", "b"]).verdicts[2]
    assert (throughput.winner, throughput.reason) == (0, "a has 25% more throughput")


def test_energy_is_compared_where_every_plan_tells_it(one: Plan, three: Plan) -> None:
    names = {metric.name: metric for metric in compare_plans([one, three], ["a", "b"]).metrics}
    assert names["energy per token"].best == 0, "three devices draw more"
    assert all(bounds.low < bounds.high for bounds in names["energy per token"].bounds)
    assert all(bounds.low < bounds.high for bounds in names["memory peak"].bounds)
    old = msgspec.structs.replace(three, predicted=msgspec.structs.replace(three.predicted, joules_per_token=()))
    comparison = compare_plans([one, old], ["a", "b"])
    assert "energy per token" not in {metric.name for metric in comparison.metrics}
    assert "energy" not in winners(comparison)


def test_metrics_carry_values_deltas_and_the_best(one: Plan, three: Plan) -> None:
    metrics = {metric.name: metric for metric in compare_plans([one, three], ["a", "b"]).metrics}
    hosts = metrics["hosts"]
    assert list(hosts.values) == [1, 3]
    assert list(hosts.deltas) == [0, 2]
    assert hosts.best == 0
    assert metrics["memory peak"].best == 1
    assert metrics["imbalance"].deltas[1] == pytest.approx(metrics["imbalance"].values[1])


def test_what_moves_is_what_other_hosts_hold(one: Plan, three: Plan) -> None:
    comparison = compare_plans([one, three], ["a", "b"])
    (change,) = comparison.changes
    stages = three.replicas[0].stages
    kept = range(*next(stage.layers for stage in stages if stage.shards[0].host == "a"))
    assert set(change.layers_moved) == set(range(16)) - set(kept)
    assert change.hosts_added == ("b", "c")
    assert change.hosts_removed == ()
    moved = sum(stage.shards[0].bytes.weights for stage in stages if stage.shards[0].host != "a")
    assert change.bytes_to_move == pytest.approx(moved, rel=1e-6)
    assert sum(change.bytes_by_host.values()) == change.bytes_to_move
    assert set(change.bytes_by_host) == {"b", "c"}
    rate = LinkTable(THREE_CPUS).between("a", "b", "cpu").bytes_per_s
    assert change.fetch_s == pytest.approx(moved / rate, rel=0.01), "the source sends all of it"
    assert not change.is_link_measured
    by_host = {move.host: move for move in comparison.hosts}
    assert by_host["b"].layers[0] == ()
    assert by_host["b"].bytes[0] == 0
    assert by_host["b"].changes


def test_plans_that_are_hard_to_compare_are_told(one: Plan) -> None:
    other = plan_for(LLAMA_1B, THREE_CPUS, serving=Serving(batch=2), prompt_tokens=64)
    warnings = compare_plans([one, other], ["a", "b"]).warnings
    assert any("prompts of 64 tokens" in warning for warning in warnings)
    assert any("decodes 2 sequences" in warning for warning in warnings)
    learnt = msgspec.structs.replace(one, predicted=msgspec.structs.replace(one.predicted, num_measured_runs=3))
    (told,) = compare_plans([one, learnt], ["a", "b"]).warnings
    assert told == "b is predicted from 3 measured figures, a from 0: plan both anew to compare them"
    (told,) = compare_plans([one, plan_for(LLAMA_1B, THREE_CPUS, **drafting())], ["a", "b"]).warnings
    assert told == "b guesses with draft model llama-tiny, a nothing: not predicted"


@pytest.mark.parametrize("count", [1, 5])
def test_two_to_four_plans_are_compared(one: Plan, count: int) -> None:
    with pytest.raises(FleetError, match=f"{count} plans given"):
        compare_plans([one] * count, ["x"] * count)


def test_shapes_in_words(one: Plan, three: Plan) -> None:
    assert shape_words(one) == "1 stage, 1 device on 1 host"
    assert shape_words(three) == "3 stages, 3 devices on 3 hosts"
    mixed = plan_for(LLAMA_1B, THREE_CPUS, tensor_parallel_sizes=(1, 2))
    assert shape_words(mixed) == "2 stages (TP 1, 2), 3 devices on 3 hosts"
