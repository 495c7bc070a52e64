"""Explanations against what planning and estimating anew gives."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from agent.facts.cluster import ClusterFacts, HostFacts
from agent.facts.model import ModelSpec
from agent.facts.probe import LayerProbe
from agent.planner.explain import Section, _scaled_device
from agent.planner.layout_text import section_lines
from agent.planner.make import explain_made, make_plan, request_of
from agent.planner.plan import Objective, ObjectiveKind, Serving
from agent.planner.rates import rates_of
from tests.agent.facts.probes import device_probe
from tests.agent.planner.clusters import (
    GB,
    LLAMA_1B,
    LLAMA_70B,
    MIXED_GPUS,
    THREE_CPUS,
    cluster,
    cpu,
    gpu,
    host,
    link,
    plan_for,
    request,
)

INT8 = Serving(quantisation="int8")


def explained(spec: ModelSpec, facts: ClusterFacts, **asked: Any) -> dict[str, tuple[str, ...]]:
    wanted = request(spec, facts, **asked)
    return by_title(explain_made(make_plan(wanted), wanted, now_s=1_000_000.0))


def by_title(sections: tuple[Section, ...]) -> dict[str, tuple[str, ...]]:
    return {section.title: section.lines for section in sections}


def slow(name: str) -> HostFacts:
    return host(name, cpu(8, read_gb_per_s=10))


def test_the_bottleneck_is_the_slowest_stage_with_its_share() -> None:
    facts = cluster(host("fast", cpu(2.4, read_gb_per_s=60)), slow("slow"))
    (first, parts, *_) = explained(LLAMA_1B, facts, stages=2)["bottleneck"]
    plan = plan_for(LLAMA_1B, facts, stages=2)
    slowest = max(range(2), key=lambda index: plan.predicted.stage_s[index])
    assert first.startswith(f"stage {slowest} on {plan.replicas[0].stages[slowest].shards[0].host}/cpu, ")
    assert f"({max(plan.predicted.stage_s) / plan.predicted.time_per_token_s:.0%})" in first
    assert "bound by memory bandwidth" in first
    assert parts.startswith("a token's time goes to ")


def test_every_unused_device_has_its_reason() -> None:
    facts = cluster(*THREE_CPUS.hosts, host("tiny", cpu(0.2)), host("out", cpu(8)), host("kept", cpu(8)))
    lines = explained(LLAMA_1B, facts, stages=2, excluded=("out",), reserved_bytes={"kept/cpu": 7_900_000_000})[
        "devices left out"
    ]
    text = "\n".join(lines)
    assert "out/cpu: excluded" in lines
    assert "tiny/cpu: too little memory even for one layer (200 MB)" in lines
    assert "kept/cpu: too little memory even for one layer (100 MB after 7.9 GB reserved)" in lines
    named = [name for name in ("a/cpu", "b/cpu", "c/cpu") if name in text]
    assert len(named) == 1, "two of three are used, the other is told"


def test_by_how_much_an_unused_device_would_slow_it_is_what_a_pin_makes_of_it() -> None:
    facts = cluster(host("one", cpu(8, read_gb_per_s=40)), slow("two"))
    free, pinned = plan_for(LLAMA_1B, facts), plan_for(LLAMA_1B, facts, pinned=("two",), min_hosts=1)
    assert len(free.replicas[0].stages) == 1
    (line,) = explained(LLAMA_1B, facts)["devices left out"]
    # Predictions of plans count the way to the gateway too, which is the same for both but for a hop.
    loss = pinned.predicted.time_per_token_s / free.predicted.time_per_token_s - 1
    told = float(line.split("would be ")[1].split("%")[0]) / 100
    assert line.startswith("two/cpu: with it it would be ")
    assert told == pytest.approx(loss, rel=0.05)


def test_one_more_stage_is_told_in_milliseconds() -> None:
    lines = explained(LLAMA_70B, MIXED_GPUS, serving=INT8)["one more stage or host"]
    wider = plan_for(LLAMA_70B, MIXED_GPUS, serving=INT8, stages=3)
    (line,) = [line for line in lines if line.startswith("3 stages: ")]
    told = float(line.split("3 stages: ")[1].split(" ms")[0]) / 1e3
    assert told == pytest.approx(wider.predicted.time_per_token_s, rel=0.01)


@pytest.mark.parametrize("kind", ["latency", "throughput"])
def test_a_slow_link_is_what_helps_most_and_by_as_much_as_it_does(kind: ObjectiveKind) -> None:
    """Twice the rate in the facts gives the gain that was told."""

    def facts(rate: float) -> ClusterFacts:
        return cluster(
            host("one", gpu(0, "RTX 4090", 24)),
            host("two", gpu(0, "RTX 4090", 24)),
            links=(link("one", "two", latency_s=10e-6, bytes_per_s=rate),),
        )

    model = msgspec.structs.replace(LLAMA_1B, num_layers=80)
    asked: dict[str, Any] = {"objective": Objective(kind=kind), "stages": 2}
    lines = explained(model, facts(2e5), **asked)["what would help most"]
    assert lines[0].startswith("twice the rate of the link one - two: ")
    before, after = (plan_for(model, facts(rate), **asked).predicted for rate in (2e5, 4e5))
    gain = float(lines[0].split(": ")[1].split("%")[0]) / 100
    if kind == "latency":
        assert gain == pytest.approx(1 - after.time_per_token_s / before.time_per_token_s, abs=0.02)
    else:
        assert gain == pytest.approx(after.tokens_per_s / before.tokens_per_s - 1, abs=0.02)


def test_memory_helps_where_a_large_device_would_hold_it_all() -> None:
    facts = cluster(host("one", gpu(0, "RTX 4090", 4.4)), host("two", gpu(0, "RTX 3060", 4.4)))
    model = msgspec.structs.replace(LLAMA_1B, num_layers=24)
    assert len(plan_for(model, facts).replicas[0].stages) == 2
    lines = explained(model, facts)["what would help most"]
    assert any(line.startswith("twice the memory of one/cuda:0, planned anew: ") for line in lines)


def test_a_dtype_that_the_processors_have_kernels_for_is_what_helps_most() -> None:
    """The model's own is computed a tenth as fast here as float32, and the other way round it would lose bits."""
    probe = device_probe(read_bytes_per_s=10e9)
    slow_probe = msgspec.structs.replace(
        probe,
        gemms=tuple(
            msgspec.structs.replace(gemm, seconds=10 * gemm.seconds) if gemm.dtype == "bfloat16" else gemm
            for gemm in probe.gemms
        ),
    )
    facts = cluster(host("old", msgspec.structs.replace(cpu(16), probe=slow_probe)))
    assert LLAMA_1B.dtype == "bfloat16"
    (first, *_) = explained(LLAMA_1B, facts)["what would help most"]
    before, after = (
        plan_for(LLAMA_1B, facts, serving=Serving(dtype=dtype)).predicted.time_per_token_s
        for dtype in ("bfloat16", "float32")
    )
    assert first.startswith("--dtype float32, planned anew: ")
    assert float(first.split(": ")[1].split("%")[0]) / 100 == pytest.approx(1 - after / before, abs=0.01)
    in_float32 = explained(LLAMA_1B, facts, serving=Serving(dtype="float32"))["what would help most"]
    assert not any("--dtype" in line for line in in_float32), "it is slower"
    new = cluster(host("new", msgspec.structs.replace(cpu(16), probe=probe)))
    wide = msgspec.structs.replace(LLAMA_1B, dtype="float32")
    levers = explained(wide, new, serving=Serving(dtype="float32"))["what would help most"]
    assert not any("--dtype" in line for line in levers), "the model would be rounded"


def test_the_rule_of_thumb_is_told_with_what_it_would_cost() -> None:
    (line,) = explained(LLAMA_70B, MIXED_GPUS, serving=INT8)["rule of thumb"]
    pipeline = plan_for(LLAMA_70B, MIXED_GPUS, serving=INT8, objective=Objective(strategy="pipeline"))
    assert "it says pipeline; the best pipeline is estimated at " in line
    assert f"{pipeline.predicted.time_per_token_s * 1e3:.0f}" in line
    assert "worse than the hybrid that was taken" in line


def test_constants_are_measured_with_an_age_or_defaults() -> None:
    links = (
        msgspec.structs.replace(
            link("a", "b", latency_s=80e-6, bytes_per_s=1e9), carrier="tls", measured_at_s=1_000_000.0 - 7200
        ),
    )
    facts = cluster(host("a", cpu(2.4, read_gb_per_s=20)), host("b", cpu(2.4)), links=links)
    text = "\n".join(explained(LLAMA_1B, facts, stages=2)["constants"])
    assert "a/cpu reads 16.4 GB/s, " in text
    assert "in prefill: measured" in text
    assert "b/cpu reads 24.6 GB/s" in text
    assert "table default for `cpu` (82% of 30 GB/s)" in text
    assert "link a>b 80 us and 8 Gbit/s: measured 2 h ago" in text or "link b>a 80 us" in text
    assert "no run was measured here yet" in text


def test_a_probed_device_that_reads_or_computes_faster_does_so_at_the_rows_that_are_bound_by_it() -> None:
    probe = device_probe(read_bytes_per_s=8e9, skinny_flops_per_s=60e9, large_flops_per_s=90e9)
    thin = LayerProbe(
        dtype="bfloat16",
        quantisation="none",
        sequences=1,
        context=128,
        seconds=1_000_000 * 2 / 8e9 + 300e-6,
        weight_elements=1_000_000,
        cache_bytes=65536,
    )
    layers = (thin, msgspec.structs.replace(thin, sequences=8))
    device = msgspec.structs.replace(cpu(8), probe=msgspec.structs.replace(probe, layers=layers))
    before = rates_of(device, "bfloat16")
    reading = rates_of(_scaled_device(device, "bfloat16", "none", reads=2.0, flops=1.0), "bfloat16")
    computing = rates_of(_scaled_device(device, "bfloat16", "none", reads=1.0, flops=2.0), "bfloat16")
    for rows, bound_by in ((1, reading), (8, reading), (64, computing), (512, computing)):
        assert bound_by.product_s(rows) == pytest.approx(before.product_s(rows) / 2)
        other = computing if bound_by is reading else reading
        assert other.product_s(rows) == pytest.approx(before.product_s(rows))
    assert reading.layer_overhead_s == pytest.approx(before.layer_overhead_s) == pytest.approx(300e-6)


def test_launches_are_a_default_where_no_thin_layers_were_probed() -> None:
    text = "\n".join(explained(LLAMA_1B, THREE_CPUS)["constants"])
    assert "launches a layer in 350 us: table default" in text


@pytest.mark.parametrize("kind", ["latency", "ttft", "throughput", "context", "energy"])
def test_a_plan_file_is_explained_for_every_objective_as_its_request_was(kind: ObjectiveKind) -> None:
    asked = request(LLAMA_1B, THREE_CPUS, objective=Objective(kind=kind), replicas=1 + (kind != "context"))
    plan = make_plan(asked)
    read = request_of(plan, LLAMA_1B, THREE_CPUS)
    sections = explain_made(plan, read, now_s=0.0)
    assert sections == explain_made(plan, asked, now_s=0.0)
    lines = section_lines(sections, width=80)
    assert max(map(len, lines)) <= 80
    assert lines[0] == ("asked for" if kind == "context" else "bottleneck")


def test_a_plan_of_a_plugin_or_by_hand_is_explained_too() -> None:
    plan = plan_for(LLAMA_1B, THREE_CPUS, stages=2)
    for strategy in ("manual", "somebody-elses"):
        changed = msgspec.structs.replace(plan, objective=Objective(strategy=strategy))
        sections = explain_made(changed, request_of(changed, LLAMA_1B, THREE_CPUS))
        assert "bottleneck" in by_title(sections)


def test_hosts_that_the_facts_lack_are_told_with_their_reason() -> None:
    asked = request(LLAMA_1B, THREE_CPUS, stages=3)
    sections = by_title(explain_made(make_plan(asked), asked, absent={"y": "excluded", "x": "excluded"}))
    assert sections["devices left out"] == ("x and y: excluded",)


def test_a_worse_plan_than_could_be_made_now_is_told() -> None:
    """As for a file of an earlier release, which does not tell that three stages were asked for."""
    plan = msgspec.structs.replace(plan_for(LLAMA_1B, THREE_CPUS, stages=3), asked=None)
    sections = by_title(explain_made(plan, request_of(plan, LLAMA_1B, THREE_CPUS)))
    (line,) = sections["planned anew"]
    assert line.startswith("a plan made now would reach ")
    assert line.endswith(" better (single device): odctl plan makes it")
    asked = request(LLAMA_1B, THREE_CPUS, stages=3)
    assert "planned anew" not in by_title(explain_made(plan, asked)), "three stages were asked for"


def test_reserved_memory_stays_reserved() -> None:
    asked = request(LLAMA_1B, THREE_CPUS, stages=3, reserved_bytes={"a/cpu": 6 * GB})
    sections = by_title(explain_made(make_plan(asked), asked))
    assert sections["bottleneck"][0].startswith("stage ")
