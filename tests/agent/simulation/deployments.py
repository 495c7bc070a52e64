"""Small deployments for simulations: real plans of invented clusters."""

from __future__ import annotations

import random

import msgspec

from agent.facts.cluster import ClusterFacts
from agent.facts.model import ModelSpec
from agent.planner.layout import layouts_of_plan
from agent.planner.plan import Plan
from agent.planner.rates import LinkTable
from agent.simulation.result import Simulation
from agent.simulation.simulator import simulate
from agent.simulation.step_times import Calibration, StepCosts, drafting_of
from agent.simulation.trace import TraceRequest
from tests.agent.planner.clusters import LLAMA_1B, THREE_CPUS, plan_for


def plan_with(*, stages: int = 1, replicas: int = 1, **serving: object) -> Plan:
    """LLAMA_1B on THREE_CPUS, with changes to how it is served."""
    plan = plan_for(LLAMA_1B, THREE_CPUS, stages=stages, replicas=replicas)
    return msgspec.structs.replace(plan, serving=msgspec.structs.replace(plan.serving, **serving))


def costs_of(
    plan: Plan,
    calibration: Calibration | None = None,
    *,
    spec: ModelSpec = LLAMA_1B,
    facts: ClusterFacts = THREE_CPUS,
) -> list[StepCosts]:
    links = LinkTable(facts)
    return [
        StepCosts(spec, layout, plan.serving, links=links, calibration=calibration)
        for layout in layouts_of_plan(plan, facts)
    ]


def run(
    plan: Plan,
    trace: list[TraceRequest],
    calibration: Calibration | None = None,
    *,
    seed: int = 0,
    repetition: float = 0.0,
    acceptance: float = 0.7,
) -> Simulation:
    costs = costs_of(plan, calibration)
    return simulate(
        trace,
        plan.serving,
        costs,
        seed=seed,
        repetition=repetition,
        calibration=calibration,
        drafting=drafting_of(plan, acceptance=acceptance),
    )


def poisson(
    count: int, *, rate_per_s: float, prompt: int = 16, output: int = 1, seed: int = 1
) -> list[TraceRequest]:
    randomness = random.Random(seed)
    at_s, trace = 0.0, []
    for _ in range(count):
        at_s += randomness.expovariate(rate_per_s)
        trace.append(TraceRequest(arrival_s=at_s, prompt_tokens=prompt, output_tokens=output))
    return trace
