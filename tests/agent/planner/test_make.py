from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.errors import FleetError
from agent.planner.check import check_plan
from agent.planner.file import plan_hash, plan_to_toml
from agent.planner.make import make_plan, refresh_plan
from agent.planner.plan import Objective, ObjectiveKind, Plan, Serving, StrategyKind
from agent.planner.predict import predict_plan
from tests.agent.planner.clusters import (
    LLAMA_1B,
    LLAMA_70B,
    LLAMA_TINY,
    MIXED_GPUS,
    MIXTRAL,
    THREE_CPUS,
    cluster,
    cpu,
    drafting,
    gpu,
    host,
    link,
    model,
    plan_for,
    request,
)

KINDS: tuple[ObjectiveKind, ...] = get_args(ObjectiveKind)
SMALL_DRAFT = model(name="draft", num_layers=2, vocab=1000)
STRATEGIES: tuple[StrategyKind, ...] = ("pipeline", "tensor", "hybrid", "adaptive")


def layers_of(plan: Plan) -> list[tuple[int, int]]:
    return [stage.layers for stage in plan.replicas[0].stages]


def counts(plan: Plan) -> dict[str, int]:
    return {
        shard.host: stage.layers[1] - stage.layers[0] for stage in plan.replicas[0].stages for shard in stage.shards
    }


def sizes(plan: Plan) -> list[int]:
    return [stage.tensor_parallel_size for stage in plan.replicas[0].stages]


@given(data=st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_plan_covers_the_model_once_and_fits(data: st.DataObject) -> None:
    """Or it is refused with E601 or E602. `check_plan` recounts everything from the plan alone."""
    draw = data.draw
    spec = model(
        num_layers=draw(st.integers(1, 9)),
        kv_heads=draw(st.sampled_from([1, 2, 4])),
        intermediate=draw(st.sampled_from([160, 1000, 4000])),
        vocab=draw(st.sampled_from([1000, 32001])),
        is_tied=draw(st.booleans()),
        hidden=draw(st.sampled_from([64, 1024])),
    )
    device = st.builds(
        cpu, st.floats(0.34, 0.6), read_gb_per_s=st.one_of(st.none(), st.floats(1, 100)), cores=st.integers(1, 64)
    )
    hosts = [host(f"h{index}", draw(device)) for index in range(draw(st.integers(1, 4)))]
    facts = cluster(*hosts)
    objective = Objective(kind=draw(st.sampled_from(KINDS)), strategy=draw(st.sampled_from(STRATEGIES)))
    serving = Serving(context=draw(st.sampled_from([16, 512, 4096])), batch=draw(st.integers(1, 9)))
    draft = draw(st.sampled_from([None, SMALL_DRAFT]))
    asked = {"serving": serving} if draft is None else drafting(draft, context=serving.context, batch=serving.batch)
    try:
        plan = plan_for(spec, facts, objective=objective, **asked)
    except FleetError as error:
        if error.code not in {"E601", "E602"}:
            raise
        return
    assert check_plan(plan, spec, facts, draft=draft) == []
    ends = [0, *(end for _, end in layers_of(plan))]
    assert [first for first, _ in layers_of(plan)] == ends[:-1]
    assert ends[-1] == spec.num_layers
    if objective.strategy != "adaptive" and len(hosts) > 1:
        assert sum(sizes(plan)) > 1


def test_a_hybrid_of_a_model_with_one_layer_is_a_group() -> None:
    facts = cluster(host("a", cpu(0.5)), host("b", cpu(0.5)))
    spec = model(num_layers=1, kv_heads=2, intermediate=160, vocab=1000, hidden=1024)
    plan = plan_for(spec, facts, objective=Objective(kind="ttft", strategy="hybrid"), serving=Serving(context=16))
    assert sizes(plan) == [2]


def test_a_draft_model_takes_layers_from_the_device_that_holds_it() -> None:
    """What it takes of the last device, the first one has to make up for."""
    facts = cluster(host("a", cpu(3)), host("b", cpu(2.5)))
    draft = msgspec.structs.replace(LLAMA_TINY, num_layers=24)
    plain, drafted = (
        plan_for(LLAMA_1B, facts, tensor_parallel_sizes=(1, 1), **asked) for asked in ({}, drafting(draft))
    )
    assert layers_of(drafted)[0][1] > layers_of(plain)[0][1]
    assert drafted.draft is not None
    last = drafted.replicas[0].stages[1].shards[0]
    assert last.bytes.total <= facts.hosts[1].devices[0].usable_bytes
    assert 0 < drafted.draft.predicted_cost < 1
    assert refresh_plan(drafted, LLAMA_1B, facts, draft=draft) == drafted
    with pytest.raises(FleetError, match="does not fit"):
        plan_for(LLAMA_1B, facts, stages=2, **drafting(LLAMA_1B))


def test_a_draft_model_that_cannot_serve_the_context_is_refused() -> None:
    with pytest.raises(FleetError, match="above the 8192 positions that draft model llama-tiny knows") as refused:
        plan_for(LLAMA_1B, THREE_CPUS, **drafting(context=10_000))
    assert refused.value.code == "E106"
    longest = plan_for(LLAMA_1B, THREE_CPUS, objective=Objective(kind="context"), **drafting(batch=1))
    assert longest.serving.context == 8192
    with pytest.raises(FleetError, match="speculation none contradicts the draft model") as refused:
        plan_for(LLAMA_1B, THREE_CPUS, **(drafting() | {"serving": Serving()}))
    assert refused.value.code == "E107"


@pytest.mark.parametrize("kind", KINDS)
def test_equal_requests_give_identical_files_in_any_process(kind: ObjectiveKind) -> None:
    asked = request(LLAMA_70B, MIXED_GPUS, objective=Objective(kind=kind))
    text = plan_to_toml(make_plan(asked))
    assert plan_to_toml(make_plan(asked)) == text
    if kind != "latency":
        return
    script = (
        "from tests.agent.planner.clusters import *\n"
        "from agent.planner.file import plan_to_toml\n"
        "print(plan_to_toml(plan_for(LLAMA_70B, MIXED_GPUS)), end='')"
    )
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment, timeout=60
        )
        assert done.stdout == text


def test_one_device_that_holds_the_model_wins_latency_and_the_plan_says_so() -> None:
    plan = plan_for(LLAMA_1B, THREE_CPUS)
    assert layers_of(plan) == [(0, 16)]
    assert sizes(plan) == [1]
    told = next(line for line in plan.why if "one device that holds the whole model" in line)
    assert "--min-hosts or --stages" in told


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"stages": 3}, [1, 1, 1]),
        ({"tensor": 2}, [2]),
        ({"tensor": 2, "stages": 1}, [2]),
        ({"tensor_parallel_sizes": (1, 2)}, [1, 2]),
        ({"tensor_parallel_sizes": (2, 1)}, [2, 1]),
        ({"tensor_parallel_sizes": (3,)}, [3]),
        ({"min_hosts": 2}, [1, 1]),
        ({"stages": 2, "objective": Objective(strategy="pipeline")}, [1, 1]),
    ],
)
def test_a_layout_that_is_asked_for_is_given(asked: dict[str, Any], expected: list[int]) -> None:
    plan = plan_for(LLAMA_1B, THREE_CPUS, **asked)
    assert sizes(plan) == expected
    assert check_plan(plan, LLAMA_1B, THREE_CPUS) == []


def test_a_split_that_was_asked_for_tells_what_it_costs() -> None:
    plan = plan_for(LLAMA_1B, THREE_CPUS, stages=3)
    assert any(line.startswith("asked for: a/cpu alone would reach") for line in plan.why)


@pytest.mark.parametrize("strategy", ["pipeline", "tensor", "hybrid"])
def test_a_strategy_by_name_uses_at_least_two_ranks(strategy: StrategyKind) -> None:
    plan = plan_for(LLAMA_1B, THREE_CPUS, objective=Objective(strategy=strategy))
    assert sum(sizes(plan)) >= 2
    alone = plan_for(LLAMA_1B, cluster(host("a", cpu(8))), objective=Objective(strategy=strategy))
    assert sizes(alone) == [1], "there is nothing to split over"


def test_three_stages_of_equal_devices_are_even() -> None:
    plan = plan_for(LLAMA_1B, THREE_CPUS, stages=3)
    assert max(plan.predicted.stage_s) / min(plan.predicted.stage_s) < 1.3


def test_unequal_devices_get_unequal_layers() -> None:
    facts = cluster(
        host("fast", cpu(8, read_gb_per_s=30)),
        host("mid", cpu(8, read_gb_per_s=20)),
        host("slow", cpu(8, read_gb_per_s=10)),
    )
    plan = plan_for(
        LLAMA_1B,
        facts,
        objective=Objective(kind="throughput", strategy="pipeline"),
        stages=3,
        serving=Serving(batch=12),
        prompt_tokens=1,
    )
    weights = {stage.shards[0].host: stage.shards[0].bytes.weights for stage in plan.replicas[0].stages}
    assert weights["fast"] > max(weights["mid"], weights["slow"]), "it also has the head"
    assert min(counts(plan)["fast"], counts(plan)["mid"]) >= 2 * counts(plan)["slow"]
    assert max(plan.predicted.stage_s) / min(plan.predicted.stage_s) < 1.3
    assert any("unequal devices are used unequally" in line for line in plan.why)


def test_a_group_forms_where_links_are_fast_and_not_across_ethernet() -> None:
    plan = plan_for(LLAMA_70B, MIXED_GPUS)
    for stage in plan.replicas[0].stages:
        assert len({shard.host for shard in stage.shards}) == 1
    assert max(sizes(plan)) == 2


@pytest.mark.parametrize(("bytes_per_s", "expected"), [(117e6, 1), (12.5e9, 2)])
def test_the_link_decides_whether_a_group_spans_hosts(bytes_per_s: float, expected: int) -> None:
    facts = cluster(
        host("a", gpu(0, "RTX 3060", 96)),
        host("b", gpu(0, "RTX 3060", 96)),
        links=(link("a", "b", latency_s=10e-6, bytes_per_s=bytes_per_s),),
    )
    spec = msgspec.structs.replace(LLAMA_70B, num_layers=32)
    plan = plan_for(spec, facts, min_hosts=2, serving=Serving(context=8192, batch=1))
    assert max(sizes(plan)) == expected


def test_devices_left_out_are_named_with_the_reason() -> None:
    facts = cluster(host("a", cpu(8)), host("b", cpu(8)), host("tiny", cpu(0.3)))
    why = plan_for(LLAMA_1B, facts).why
    assert any("too small for one layer" in line and "tiny/cpu" in line for line in why)
    assert any("would not improve latency" in line and "b/cpu" in line for line in why)


def test_the_bottleneck_is_the_slowest_stage() -> None:
    facts = cluster(host("a", cpu(8, read_gb_per_s=30)), host("b", cpu(8, read_gb_per_s=3)))
    plan = plan_for(LLAMA_1B, facts, stages=2)
    slowest = max(range(2), key=plan.predicted.stage_s.__getitem__)
    assert plan.predicted.bottleneck.startswith(f"replica 0 stage {slowest} (")


def test_the_context_objective_finds_the_longest_one_that_fits() -> None:
    facts = cluster(host("a", cpu(4)), host("b", cpu(4)))
    plan = plan_for(LLAMA_1B, facts, objective=Objective(kind="context"))
    assert plan.serving.context > 2048
    longer = Serving(context=plan.serving.context + 1)
    with pytest.raises(FleetError) as refused:
        plan_for(LLAMA_1B, facts, serving=longer)
    assert refused.value.code == "E601"


def test_replicas_stand_on_devices_of_their_own_and_add_throughput() -> None:
    one = plan_for(LLAMA_1B, THREE_CPUS)
    three = plan_for(LLAMA_1B, THREE_CPUS, replicas=3)
    assert len(three.replicas) == 3
    assert check_plan(three, LLAMA_1B, THREE_CPUS) == []
    assert three.predicted.tokens_per_s == pytest.approx(3 * one.predicted.tokens_per_s, rel=0.01)


def test_replicas_that_starve_each_other_are_dealt_their_devices() -> None:
    """Greedily, the first would take both large devices and leave two that hold nothing."""
    facts = cluster(host("a", cpu(3)), host("b", cpu(3)), host("c", cpu(1.7)), host("d", cpu(1.7)))
    plan = plan_for(LLAMA_1B, facts, replicas=2)
    assert check_plan(plan, LLAMA_1B, facts) == []


def test_a_model_too_large_is_refused_with_the_numbers_of_the_best_attempt() -> None:
    facts = cluster(*(host(f"g{i}", gpu(0, "RTX 4090", 24)) for i in range(3)))
    with pytest.raises(FleetError) as refused:
        plan_for(LLAMA_70B, facts)
    error = refused.value
    assert error.code == "E601"
    rows = re.findall(
        r"(g\d)/cuda:0 layers (\d+)-(\d+): needs ([\d.]+) GB of ([\d.]+) GB usable, ([\d.]+) GB short",
        error.message,
    )
    assert (rows[0][1], rows[-1][2]) == ("0", "79")
    assert len(rows) == 3
    for _, _, _, needed, usable, short in rows:
        assert float(usable) == 21.6
        assert float(short) == pytest.approx(float(needed) - float(usable), abs=0.11)
    shortest = max(rows, key=lambda row: float(row[5]))
    assert f"{shortest[0]}/cuda:0 is {shortest[5]} GB short" in error.message
    assert error.host == shortest[0]
    assert "neither a shorter context nor a smaller batch" in error.hint
    total_short = sum(float(row[5]) for row in rows)
    assert float(re.search(r"add hosts with ([\d.]+) GB", error.hint)[1]) == pytest.approx(total_short, abs=0.3)  # type: ignore[index]


def test_the_way_out_is_a_setting_that_does_fit() -> None:
    facts = cluster(host("a", cpu(4)))
    serving = Serving(context=65536, batch=8)
    with pytest.raises(FleetError) as refused:
        plan_for(LLAMA_1B, facts, serving=serving)
    hint = refused.value.hint
    context, batch = re.search(r"--context (\d+) fits", hint), re.search(r"--batch (\d+) fits", hint)
    assert context is not None
    fitting = msgspec.structs.replace(serving, context=int(context[1]))
    assert plan_for(LLAMA_1B, facts, serving=fitting)
    with pytest.raises(FleetError):
        plan_for(LLAMA_1B, facts, serving=msgspec.structs.replace(serving, context=int(context[1]) + 1))
    if batch is not None:
        assert plan_for(LLAMA_1B, facts, serving=msgspec.structs.replace(serving, batch=int(batch[1])))


@pytest.mark.parametrize(
    ("asked", "code", "part"),
    [
        ({"hosts": ("aa",)}, "E106", "no host `aa`"),
        ({"devices": ("a/cuda:0",)}, "E106", "no device `a/cuda:0`"),
        ({"controllers": ("z",)}, "E106", "no controller `z`"),
        ({"stages": 17}, "E106", "17 stages cannot share the 16 layers"),
        ({"tensor": 9}, "E106", "9 cannot share the 8 KV heads"),
        ({"stages": 4}, "E602", "4 devices are needed"),
        ({"tensor_parallel_sizes": (2, 2)}, "E602", "4 devices are needed"),
        ({"stages": 3, "tensor_parallel_sizes": (1, 2)}, "E107", "2 tensor-parallel sizes are given for 3"),
        ({"tensor": 2, "objective": Objective(strategy="pipeline")}, "E107", "one device per stage"),
        ({"min_hosts": 4}, "E602", "at least 4 hosts"),
        ({"min_hosts": 3, "max_hosts": 2}, "E107", "at most 2 hosts"),
        ({"serving": Serving(context=200_000)}, "E106", "131072 positions"),
        ({"serving": Serving(batch=0)}, "E106", "batch 0"),
        ({"replicas": 4}, "E602", "4 devices are needed"),
        ({"objective": Objective(strategy="manual")}, "E106", "written by hand"),
    ],
)
def test_a_request_that_cannot_be_is_refused_with_its_reason(asked: dict[str, Any], code: str, part: str) -> None:
    with pytest.raises(FleetError) as refused:
        plan_for(LLAMA_1B, THREE_CPUS, **asked)
    assert refused.value.code == code
    assert part in refused.value.message


def test_hosts_and_devices_that_are_selected_are_the_only_ones_used() -> None:
    assert set(counts(plan_for(LLAMA_1B, THREE_CPUS, hosts=("b", "c"), stages=2))) == {"b", "c"}
    plan = plan_for(LLAMA_70B, MIXED_GPUS, devices=tuple(f"big{i}/cuda:{j}" for i in range(4) for j in range(2)))
    assert all(name.startswith("big") for name in counts(plan))


def test_a_gpu_hosts_cpu_is_used_when_its_gpus_do_not_hold_the_model() -> None:
    facts = cluster(host("a", gpu(0, "RTX 3060", 3), cpu(32)))
    plan = plan_for(LLAMA_1B, facts)
    devices = {shard.device for stage in plan.replicas[0].stages for shard in stage.shards}
    assert "cpu" in devices
    roomy = plan_for(LLAMA_1B, cluster(host("a", gpu(0, "RTX 3060", 12), cpu(32))))
    assert {shard.device for stage in roomy.replicas[0].stages for shard in stage.shards} == {"cuda:0"}


def test_controllers_are_an_odd_number_of_hosts_with_ranks_first() -> None:
    assert plan_for(LLAMA_1B, THREE_CPUS, hosts=("b", "c")).controllers == ("b",)
    three = plan_for(LLAMA_1B, THREE_CPUS, devices=("c/cpu",))
    assert three.controllers == ("c", "a", "b")
    assert plan_for(LLAMA_1B, THREE_CPUS, controllers=("b",)).controllers == ("b",)


def test_refreshing_an_untouched_plan_changes_nothing() -> None:
    plan = plan_for(LLAMA_70B, MIXED_GPUS)
    assert plan_hash(refresh_plan(plan, LLAMA_70B, MIXED_GPUS)) == plan_hash(plan)
    assert predict_plan(plan, LLAMA_70B, MIXED_GPUS) == plan.predicted


def test_refreshing_recounts_what_was_changed_by_hand() -> None:
    plan = plan_for(LLAMA_1B, THREE_CPUS, stages=2)
    first, second = plan.replicas[0].stages
    moved = (
        msgspec.structs.replace(first, layers=(0, first.layers[1] - 1)),
        msgspec.structs.replace(second, layers=(first.layers[1] - 1, 16)),
    )
    edited = msgspec.structs.replace(plan, replicas=(msgspec.structs.replace(plan.replicas[0], stages=moved),))
    assert check_plan(edited, LLAMA_1B, THREE_CPUS) != []
    refreshed = refresh_plan(edited, LLAMA_1B, THREE_CPUS)
    assert check_plan(refreshed, LLAMA_1B, THREE_CPUS) == []
    assert refreshed.predicted.stage_s != plan.predicted.stage_s


def test_more_memory_never_makes_a_plan_slower() -> None:
    times = []
    for gigabytes in (2.2, 3, 8):
        facts = cluster(*(host(name, cpu(gigabytes)) for name in "abc"))
        times.append(plan_for(LLAMA_1B, facts).predicted.time_per_token_s)
    assert all(later <= earlier for earlier, later in itertools.pairwise(times))


def test_a_plan_of_experts_is_made_and_says_what_a_token_reads() -> None:
    facts = cluster(host("a", gpu(0, "RTX 4090", 48), gpu(1, "RTX 4090", 48)), host("b", gpu(0, "H100", 80)))
    plan = plan_for(MIXTRAL, facts, serving=Serving(context=2048, batch=8, prefill_chunk=256), tensor=2)
    shards = [shard for stage in plan.replicas[0].stages for shard in stage.shards]
    assert sum(shard.bytes.weights for shard in shards) >= 2 * MIXTRAL.num_parameters
    assert {shard.columns[1] for stage in plan.replicas[0].stages for shard in stage.shards[-1:]} == {14336}
    assert any(
        "one token reads 12.9 of 46.7 billion weights, a batch of 8 about 7.2 experts" in why for why in plan.why
    )


def test_windows_are_told_where_the_context_is_longer() -> None:
    spec = msgspec.structs.replace(LLAMA_1B, sliding_window=512, full_layers=(7, 15))
    plan = plan_for(spec, THREE_CPUS, serving=Serving(context=2048, batch=1))
    assert any(why.startswith("14 of 16 layers look back 512 positions only") for why in plan.why)
    short = plan_for(spec, THREE_CPUS, serving=Serving(context=256, batch=1))
    assert not any("look back" in why for why in short.why)
