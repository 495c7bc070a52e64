"""Measured runs of a cluster to the constants of its cost model: what a run should have taken, against what it did.

Pure. Predictions are made anew from the facts as they are, so that a device that was probed since is not corrected
for what was wrong before.
"""

from __future__ import annotations

import msgspec

from agent.errors import FleetError
from agent.facts.cluster import ClusterFacts
from agent.facts.model import ModelSpec
from agent.facts.run import MeasuredRun
from agent.planner.calibration import PRIOR, Calibration, MeasuredTime, Parts, fit_calibration, sum_parts
from agent.planner.cost import Estimate, estimate_layout
from agent.planner.file import plan_from_toml
from agent.planner.layout import Layout, layouts_of_plan
from agent.planner.plan import Plan, Serving
from agent.planner.rates import LinkTable

MAX_RUNS = 64
"""The newest that count: a cluster's machines are maintained, and what they did long ago says little."""
GATEWAY_PART = "gateway messages"
"""A step's way from the gateway to the first stage and back from the last."""


def calibrate(facts: ClusterFacts) -> Calibration:
    """The constants after the cluster's own runs; those of `planner.rates` where there are none.

    A run on devices that are not there any more is left out.
    """
    if not facts.runs:
        return PRIOR
    return fit_calibration([time for run in facts.runs[-MAX_RUNS:] for time in _measured_times(run, facts)])


def model_key(spec: ModelSpec, serving: Serving) -> str:
    """Runs with the same key have what is peculiar to a model's kernels in common: digest and precision."""
    return f"{spec.digest[:12] or spec.name} {serving.precision}"


def gateway_way_s(layout: Layout, links: LinkTable, *, gateway: str) -> float:
    """Seconds from the gateway to a replica's first stage and back from its last, without any message."""
    first, last = layout.stages[0].places[0], layout.stages[-1].places[0]
    there = links.between(gateway, first.host, "cpu").latency_s
    return there + links.between(last.host, gateway, "cpu").latency_s


def ttft_parts(estimate: Estimate, *, way_s: float) -> Parts:
    """Of a first token, the gateway's way included: chunks follow each other without waiting for it."""
    return sum_parts(estimate.ttft_parts, {GATEWAY_PART: way_s})


def time_per_token_parts(estimate: Estimate, *, way_s: float) -> Parts:
    return sum_parts(estimate.time_per_token_parts, {GATEWAY_PART: way_s})


def _measured_times(run: MeasuredRun, facts: ClusterFacts) -> list[MeasuredTime]:
    """Against the replica that should be slowest: a gateway's figures are those of all together."""
    plan = plan_from_toml(run.plan_toml, file=f"plan {run.plan_hash[:12]}")
    try:
        layouts = layouts_of_plan(plan, facts)
    except FleetError:
        return []
    streams = max(1, -(-run.streams // len(layouts)))
    serving = msgspec.structs.replace(plan.serving, batch=streams)
    links = LinkTable(facts, is_network_trusted=serving.trusted_network)
    estimated = [
        (
            estimate_layout(
                run.spec,
                layout,
                serving,
                prompt_tokens=run.prompt_tokens,
                answer_tokens=run.answer_tokens,
                links=links,
            ),
            layout,
        )
        for layout in layouts
    ]
    estimate, layout = max(estimated, key=lambda pair: pair[0].time_per_token_s)
    return _against(run, plan, estimate, way_s=gateway_way_s(layout, links, gateway=plan.gateway_host))


def _against(run: MeasuredRun, plan: Plan, estimate: Estimate, *, way_s: float) -> list[MeasuredTime]:
    model = model_key(run.spec, plan.serving)
    times = []
    if run.streams == 1 and run.time_per_token_s > 0:
        parts = time_per_token_parts(estimate, way_s=way_s)
        times.append(MeasuredTime(parts=parts, measured_s=run.time_per_token_s, model=model))
    elif run.tokens_per_s > 0 and run.answer_tokens:
        # One replica's part of what all gave together; a round of it is that many tokens.
        rate = run.tokens_per_s / len(plan.replicas)
        measured_s = estimate.round_tokens / rate
        times.append(MeasuredTime(parts=estimate.round_parts, measured_s=measured_s, model=model))
    elif run.time_per_token_s > 0:
        # An earlier release said no more: as if answers had been long, and prompts rare between them.
        parts = estimate.round_parts
        times.append(MeasuredTime(parts=parts, measured_s=run.time_per_token_s, model=model))
    if run.ttft_s > 0 and run.streams == 1:
        # Beside other streams a first token waits for its turn, which no constant of the cost model explains.
        parts = ttft_parts(estimate, way_s=way_s)
        times.append(MeasuredTime(parts=parts, measured_s=run.ttft_s, model=model))
    return times
