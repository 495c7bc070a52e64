"""What a plan is expected to do: the estimates of its replicas as one, with bounds. Pure."""

from __future__ import annotations

from agent.facts.cluster import ClusterFacts
from agent.facts.model import ModelSpec
from agent.planner.calibration import Calibration, predict_interval, predict_rate_interval
from agent.planner.energy import mean_energy, predict_energy
from agent.planner.estimates import Estimates
from agent.planner.evidence import calibrate, gateway_way_s, model_key, time_per_token_parts, ttft_parts
from agent.planner.interval import Interval
from agent.planner.layout import Layout, layouts_of_plan
from agent.planner.memory import peak_bytes
from agent.planner.plan import Plan, Predicted, Replica, Serving
from agent.planner.rates import LinkTable

SIGNIFICANT_DIGITS = 6


def predict_plan(
    plan: Plan, spec: ModelSpec, facts: ClusterFacts, *, calibration: Calibration | None = None
) -> Predicted:
    """What a plan is expected to do on these facts: `recorded` figures go stale when devices are measured anew.

    `calibration` is what `calibrate` says of the facts, for who asks about many plans. Raises FleetError E106 when
    a device of the plan is not in the cluster.
    """
    return predict_layouts(
        spec,
        layouts_of_plan(plan, facts),
        plan.serving,
        LinkTable(facts, is_network_trusted=plan.serving.trusted_network),
        calibrate(facts) if calibration is None else calibration,
        gateway=plan.gateway_host,
        prompt_tokens=plan.predicted.prompt_tokens,
        answer_tokens=plan.predicted.answer_tokens,
        replicas=plan.replicas,
    )


def predict_layouts(
    spec: ModelSpec,
    layouts: list[Layout],
    serving: Serving,
    links: LinkTable,
    calibration: Calibration,
    *,
    gateway: str,
    prompt_tokens: int,
    answer_tokens: int,
    replicas: tuple[Replica, ...],
    known: Estimates | None = None,
) -> Predicted:
    """Estimates of all replicas as one: latencies of the slowest, throughput of all together.

    `replicas` are these layouts with their bytes. `known` has estimates of them already, made with the same
    arguments.

    Each step also crosses from the gateway to the first stage and back from the last, as a message without weight.
    """
    if known is None:
        known = Estimates(
            spec,
            serving,
            prompt_tokens=prompt_tokens,
            answer_tokens=answer_tokens,
            links=links,
            calibration=calibration,
        )
    estimates = [known.of(layout) for layout in layouts]
    ways = [gateway_way_s(layout, links, gateway=gateway) for layout in layouts]
    slowest = max(range(len(layouts)), key=lambda index: estimates[index].time_per_token_s)
    estimate = estimates[slowest]
    stage = layouts[slowest].stages[estimate.bottleneck]
    model = model_key(spec, serving)
    intervals: dict[tuple[int, float], tuple[Interval, Interval, Interval, Interval]] = {}
    for each, way in zip(estimates, ways, strict=True):
        # Layouts of one shape have the very same estimate.
        if (id(each), way) not in intervals:
            intervals[id(each), way] = (
                predict_interval(ttft_parts(each, way_s=way), calibration, model=model),
                predict_interval(time_per_token_parts(each, way_s=way), calibration, model=model),
                predict_rate_interval(each.round_tokens, each.round_parts, calibration, model=model),
                predict_energy(each, calibration, model=model),
            )
    found = [intervals[id(each), way] for each, way in zip(estimates, ways, strict=True)]
    firsts, nexts, rates, energies = zip(*found, strict=True)
    first, following = (max(each, key=lambda interval: interval.expected) for each in (firsts, nexts))
    energy = mean_energy(energies, [rate.expected for rate in rates])
    peak = peak_bytes(shard for replica in replicas for held in replica.stages for shard in held.shards)
    return Predicted(
        prompt_tokens=prompt_tokens,
        answer_tokens=answer_tokens,
        ttft_s=rounded(first.expected),
        time_per_token_s=rounded(following.expected),
        tokens_per_s=rounded(sum(rate.expected for rate in rates)),
        ttft_bounds_s=(rounded(first.low), rounded(first.high)),
        time_per_token_bounds_s=(rounded(following.low), rounded(following.high)),
        tokens_per_s_bounds=(
            rounded(sum(rate.low for rate in rates)),
            rounded(sum(rate.high for rate in rates)),
        ),
        num_measured_runs=calibration.num_runs,
        bottleneck=f"replica {slowest} stage {estimate.bottleneck} ({stage.name}): {estimate.limit}",
        stage_s=tuple(rounded(seconds) for seconds in estimates[0].stage_s),
        joules_per_token=(rounded(energy.low), rounded(energy.expected), rounded(energy.high)),
        peak_bytes=(int(peak.low), int(peak.expected), int(peak.high)),
    )


def rounded(value: float) -> float:
    """Six digits: more than any prediction is worth, and the same on every machine."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
