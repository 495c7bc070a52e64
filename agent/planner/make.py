"""A request in, a plan out: propose layouts, choose by the objective, count every byte, and say why. Pure.

Deterministic: no clock, no environment, no randomness beyond the request; equal requests give equal plans.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

import msgspec

from agent.errors import FleetError
from agent.facts.cluster import ClusterFacts
from agent.facts.model import ModelSpec
from agent.planner.adaptive import STRATEGIES
from agent.planner.advise import advise
from agent.planner.asked import ask_again, asked_of, asked_words, broken_words, lost_words
from agent.planner.calibration import Calibration
from agent.planner.cost import estimate_layout
from agent.planner.explain import Section, explain_plan
from agent.planner.layout import Layout, Place, StageLayout, cut_shares, layouts_of_plan
from agent.planner.memory import stage_bytes
from agent.planner.plan import DraftRef, Learning, Plan, Replica, Shard, ShardBytes, Stage
from agent.planner.predict import predict_layouts, rounded
from agent.planner.problem import (
    PlanRequest,
    Problem,
    allowed_places,
    make_problem,
)
from agent.planner.propose import propose_layouts
from agent.planner.replicas import choose_replicas, is_large
from agent.planner.shards import shard_weight_bytes, whole_extent
from agent.planner.shortage import does_not_fit
from agent.planner.staleness import facts_digest
from agent.planner.why import explain
from agent.planner.words import list_words, seconds_words

MAX_CONTROLLERS = 3


def make_plan(request: PlanRequest) -> Plan:
    """The best plan for a request.

    Raises FleetError E601 when the model does not fit (which device, how many bytes short, what would help), E602
    when constraints leave nothing to choose from, E106 and E107 for requests that contradict the facts.
    """
    problem = make_problem(request)
    if request.objective.kind == "context":
        problem = _with_longest_context(problem)
    chosen = choose_replicas(problem)
    if chosen is None and not request.devices:
        with_cpus = problem.varied(places=allowed_places(request))
        if len(with_cpus.places) > len(problem.places):
            problem, chosen = with_cpus, choose_replicas(with_cpus)
    if chosen is None:
        raise _what_binds(problem) or does_not_fit(problem, propose_layouts)
    layouts = [layout for layout, _ in chosen]
    is_advised = bool(request.lessons) and not is_large(problem)
    advice = advise(problem, propose_layouts(problem)) if is_advised else None
    plan = _build_plan(problem, layouts, why=explain(problem, chosen, propose_layouts, advice=advice))
    if request.is_recorded and (advice is None or advice.choice.propensity == 1):
        return plan
    learning = Learning(
        records=request.is_recorded, propensity=rounded(advice.choice.propensity) if advice is not None else 1.0
    )
    return msgspec.structs.replace(plan, learning=learning)


def refresh_plan(plan: Plan, spec: ModelSpec, facts: ClusterFacts, *, draft: ModelSpec | None = None) -> Plan:
    """The same layout with bytes, predictions and digest computed anew, after a change by hand.

    Raises FleetError E106 when a device of the plan is not in the cluster.
    """
    return lay_out_plan(plan, layouts_of_plan(plan, facts), spec, facts, draft=draft)


def lay_out_plan(
    plan: Plan,
    layouts: list[Layout],
    spec: ModelSpec,
    facts: ClusterFacts,
    *,
    draft: ModelSpec | None = None,
    calibration: Calibration | None = None,
) -> Plan:
    """The plan with these layouts for its own; bytes, predictions and digest are computed as for any plan.

    Nothing is held against memory here: `check_plan` does that. `calibration` is that of the facts, where the
    caller has it. Raises FleetError E106 and E107 for serving settings that contradict the model.
    """
    request = PlanRequest(
        name=plan.name,
        model=plan.model,
        spec=spec,
        facts=facts,
        objective=plan.objective,
        serving=plan.serving,
        healing=plan.healing,
        controllers=plan.controllers,
        prompt_tokens=plan.predicted.prompt_tokens,
        answer_tokens=plan.predicted.answer_tokens or None,
        draft=plan.draft,
        draft_spec=draft,
        devices=tuple(place.name for layout in layouts for place in layout.places),
    )
    problem = make_problem(request, calibration=calibration)
    made = _build_plan(problem, layouts, why=plan.why)
    return msgspec.structs.replace(made, learning=plan.learning, asked=plan.asked)


def explain_made(
    plan: Plan,
    request: PlanRequest,
    *,
    now_s: float | None = None,
    absent: Mapping[str, str] | None = None,
) -> tuple[Section, ...]:
    """A plan at length, against the request that it answers; `absent` says why hosts are not in its facts.

    Raises FleetError E106 when a device of the plan is gone.
    """
    problem = make_problem(msgspec.structs.replace(request, serving=plan.serving))
    layouts = layouts_of_plan(plan, request.facts)
    allowed = {place.name: place for place in problem.places}
    missing = tuple(
        place
        for place in dict.fromkeys(place for layout in layouts for place in layout.places)
        if place.name not in allowed
    )
    if missing:
        problem = problem.varied(places=(*problem.places, *missing))
    reserved = [_with_places(layout, allowed) for layout in layouts]
    lines = _asked_lines(plan, request)
    asked = (Section(title="asked for", lines=tuple(lines)),) if lines else ()
    return (*asked, *explain_plan(problem, reserved, now_s=now_s, absent=absent))


def _asked_lines(plan: Plan, request: PlanRequest) -> list[str]:
    """The constraints, then which of them this cluster, or this plan, does not keep."""
    words = asked_words(plan.asked)
    lines = [", ".join(words)] if words else []
    lines += [f"not asked of the cluster as it is: {each}" for each in lost_words(plan.asked, request.facts)]
    return lines + [f"not kept by this plan: {each}" for each in broken_words(plan)]


def request_of(plan: Plan, spec: ModelSpec, facts: ClusterFacts, *, draft: ModelSpec | None = None) -> PlanRequest:
    """The request that a plan file answered, as far as it tells and the cluster still can be asked for it.

    Plans of earlier releases tell no constraints.
    """
    strategy = plan.objective.strategy if plan.objective.strategy in STRATEGIES else "adaptive"
    request = PlanRequest(
        name=plan.name,
        model=plan.model,
        spec=spec,
        facts=facts,
        objective=msgspec.structs.replace(plan.objective, strategy=strategy),
        serving=plan.serving,
        healing=plan.healing,
        replicas=len(plan.replicas),
        controllers=plan.controllers,
        prompt_tokens=plan.predicted.prompt_tokens,
        answer_tokens=plan.predicted.answer_tokens or None,
        draft=plan.draft,
        draft_spec=draft,
    )
    return ask_again(request, plan.asked)


def _with_places(layout: Layout, places: dict[str, Place]) -> Layout:
    """The same with devices as the request leaves them, what is reserved taken off."""
    stages = tuple(
        msgspec.structs.replace(stage, places=tuple(places.get(place.name, place) for place in stage.places))
        for stage in layout.stages
    )
    return Layout(stages=stages)


def _what_binds(problem: Problem) -> FleetError | None:
    """E602 that names the constraints without which there is a plan; None when memory is what lacks."""
    request = problem.request
    ways: list[tuple[str, PlanRequest]] = []
    replace = msgspec.structs.replace
    if request.max_ttft_s is not None:
        ways.append((f"{seconds_words(request.max_ttft_s)} to the first token", replace(request, max_ttft_s=None)))
    if request.max_time_per_token_s is not None:
        slo = f"{seconds_words(request.max_time_per_token_s)} per token"
        ways.append((slo, replace(request, max_time_per_token_s=None)))
    if request.pinned:
        ways.append((f"{list_words(request.pinned)} pinned", replace(request, pinned=())))
    if request.spread:
        ways.append((f"replicas spread over `{request.spread}`", replace(request, spread="")))
    if request.domain:
        ways.append((f"replicas within values of `{request.domain}`", replace(request, domain="")))
    if request.max_hosts is not None:
        ways.append((f"at most {request.max_hosts} hosts", replace(request, max_hosts=None)))
    binding = []
    for words, relaxed in ways:
        chosen = choose_replicas(problem.varied(request=relaxed))
        if chosen is not None:
            estimate = chosen[0][1]
            binding.append(
                f"{words} (without it: {seconds_words(estimate.ttft_s)} to the first token, "
                f"{seconds_words(estimate.time_per_token_s)} per token, {len(chosen[0][0].hosts)} hosts)"
            )
    if not binding and len(ways) > 1:
        free = replace(
            request, max_ttft_s=None, max_time_per_token_s=None, pinned=(), spread="", domain="", max_hosts=None
        )
        if choose_replicas(problem.varied(request=free)) is not None:
            binding.append("together " + ", ".join(words for words, _ in ways))
    if not binding:
        return None
    return FleetError(
        "E602",
        f"no layout of {problem.spec.name} on {len(problem.places)} devices keeps " + "; nor ".join(binding),
        hint="relax what is named, or add faster hosts",
    )


def _with_longest_context(problem: Problem) -> Problem:
    """The problem at the longest context that fits, at least the one asked for; as it is when none does."""
    serving = problem.serving

    def fits(context: int) -> bool:
        probe = problem.varied(serving=msgspec.structs.replace(serving, context=context), is_probe=True)
        return bool(propose_layouts(probe))

    low, high = serving.context, problem.spec.max_context
    if problem.draft is not None:
        high = min(high, problem.draft.max_context)
    if not fits(low):
        return problem
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return problem.varied(serving=msgspec.structs.replace(serving, context=low))


def _build_plan(problem: Problem, layouts: list[Layout], *, why: tuple[str, ...]) -> Plan:
    request, spec = problem.request, problem.spec
    ranks = tuple(sorted({host for layout in layouts for host in layout.hosts}))
    controllers = request.controllers or _controllers(problem, ranks)
    replicas = _replicas(problem, layouts)
    plan = Plan(
        name=request.name,
        model=request.model,
        objective=request.objective,
        replicas=replicas,
        serving=problem.serving,
        controllers=controllers,
        predicted=predict_layouts(
            spec,
            layouts,
            problem.serving,
            problem.plain_links,
            problem.calibration,
            gateway=problem.serving.gateway or controllers[0],
            prompt_tokens=problem.prompt_tokens,
            answer_tokens=problem.answer_tokens,
            replicas=replicas,
            known=problem.estimates,
        ),
        healing=request.healing,
        draft=_draft(problem, layouts),
        cluster=request.facts.cluster,
        why=why,
        asked=asked_of(request),
    )
    return msgspec.structs.replace(plan, facts_digest=facts_digest(request.facts, plan.hosts))


def _controllers(problem: Problem, ranks: tuple[str, ...]) -> tuple[str, ...]:
    """Hosts that decide: those with ranks first, three where there are three.

    Two controllers are never better than one: a majority of two is both of them.
    """
    allowed = problem.request.hosts or tuple(host.name for host in problem.request.facts.hosts)
    candidates = [*ranks, *sorted(set(allowed) - set(ranks))]
    return tuple(candidates[:MAX_CONTROLLERS] if len(candidates) >= MAX_CONTROLLERS else candidates[:1])


def _draft(problem: Problem, layouts: list[Layout]) -> DraftRef | None:
    """The draft model with what it costs, where it costs most."""
    ref, draft = problem.request.draft, problem.draft
    if ref is None or draft is None:
        return None
    costs = []
    for layout in layouts:
        leader = layout.stages[-1].places[0]
        whole = StageLayout(layers=(0, draft.num_layers), places=(leader,), units=(draft.num_kv_heads,))
        alone = estimate_layout(
            draft,
            Layout(stages=(whole,)),
            problem.serving,
            prompt_tokens=problem.prompt_tokens,
            links=problem.links,
        )
        costs.append(alone.time_per_token_s / problem.estimate(layout).time_per_token_s)
    serving = problem.serving
    return DraftRef(
        name=ref.name,
        path=ref.path,
        digest=ref.digest,
        source_host=ref.source_host,
        weight_bytes=shard_weight_bytes(draft, whole_extent(draft), serving.dtype, serving.quantisation),
        predicted_cost=rounded(max(costs)),
    )


def _replicas(problem: Problem, layouts: list[Layout]) -> tuple[Replica, ...]:
    """Every byte counted, of stages that hold the same kinds of layers on the same kinds of devices once."""
    spec = problem.spec
    known: dict[Hashable, tuple[ShardBytes, ...]] = {}

    def bytes_of(stage: StageLayout) -> tuple[ShardBytes, ...]:
        first, end = stage.layers
        num_sparse = sum(map(spec.is_sparse, range(first, end)))
        kinds = tuple(place.device.kind for place in stage.places)
        key = (end - first, num_sparse, first == 0, end == spec.num_layers, stage.units, kinds)
        if key not in known:
            known[key] = stage_bytes(spec, stage, problem.serving, problem.draft)
        return known[key]

    return tuple(_replica(spec, layout, bytes_of) for layout in layouts)


def _replica(spec: ModelSpec, layout: Layout, bytes_of: Callable[[StageLayout], tuple[ShardBytes, ...]]) -> Replica:
    stages = []
    for stage in layout.stages:
        held_bytes = bytes_of(stage)
        ranks = zip(stage.places, cut_shares(spec, stage.units), held_bytes, strict=True)
        shards = tuple(
            Shard(
                host=place.host,
                device=place.device.id,
                heads=share.heads,
                kv_heads=share.kv_heads,
                columns=share.columns,
                vocab=share.vocab,
                bytes=held,
            )
            for place, share, held in ranks
        )
        stages.append(Stage(layers=stage.layers, shards=shards))
    return Replica(stages=tuple(stages))
