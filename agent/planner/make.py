"""A request in, a plan out: propose layouts, choose by the objective, count every byte, and say why. Pure.

Deterministic: no clock, no environment, no randomness beyond the request; equal requests give equal plans.
"""

from __future__ import annotations

import msgspec

from agent.errors import FleetError
from agent.facts.cluster import ClusterFacts
from agent.facts.model import ModelSpec
from agent.planner.adaptive import STRATEGIES
from agent.planner.advise import advise, choose_layout
from agent.planner.calibration import Calibration
from agent.planner.cost import Estimate, estimate_layout
from agent.planner.hybrid import HybridStrategy
from agent.planner.layout import Layout, Place, StageLayout, cut_shares, layouts_of_plan
from agent.planner.memory import stage_bytes
from agent.planner.plan import DraftRef, Learning, ObjectiveKind, Plan, Replica, Shard, Stage
from agent.planner.predict import predict_layouts, rounded
from agent.planner.problem import (
    PlanRequest,
    Problem,
    Strategy,
    allowed_places,
    make_problem,
)
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
    advice = advise(problem, propose_layouts(problem)) if request.lessons else None
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
    return msgspec.structs.replace(_build_plan(problem, layouts, why=plan.why), learning=plan.learning)


def propose_layouts(problem: Problem) -> list[Layout]:
    """Feasible layouts of the request's strategy, deduplicated."""
    layouts = [layout for strategy in _strategies(problem) for layout in strategy.propose(problem)]
    kind, request = problem.request.objective.strategy, problem.request
    if kind == "tensor" and problem.is_forced:
        layouts = [layout for layout in layouts if min(layout.tensor_parallel_sizes) > 1]
    num_stages = len(request.tensor_parallel_sizes) or request.stages
    if num_stages is not None:
        layouts = [layout for layout in layouts if len(layout.stages) == num_stages]
    return list(dict.fromkeys(layouts))


def choose_replicas(problem: Problem) -> list[tuple[Layout, Estimate]] | None:
    """A layout per replica on devices of its own; None when they do not fit.

    Replicas take the best that is left one after another; when that starves a later one, devices are dealt out by
    memory first.
    """
    count = problem.request.replicas
    if problem.request.spread:
        return _choose_each([problem.varied(places=places) for places in _deal_domains(problem, count)])
    left, chosen = problem, []
    for _ in range(count):
        best = choose_layout(left, _candidates(left))
        if best is None:
            break
        chosen.append(best)
        used = set(best[0].places)
        left = left.varied(places=tuple(place for place in left.places if place not in used))
    if len(chosen) == count:
        return chosen
    if count == 1:
        return None
    return _choose_each([problem.varied(places=places) for places in _deal_places(problem, count)])


def _choose_each(dealt: list[Problem]) -> list[tuple[Layout, Estimate]] | None:
    found = [choose_layout(share, _candidates(share)) for share in dealt if share.places]
    best = [each for each in found if each is not None]
    return best if len(best) == len(dealt) else None


def _candidates(problem: Problem) -> list[Layout]:
    """Layouts for the objective; for each SLO also those of the objective that it is about, and with pinned hosts.

    Pinned hosts are all used where they alone are planned with; others join them, largest first, until it fits.
    """
    request = problem.request
    layouts = propose_layouts(problem)
    slos: list[tuple[float | None, ObjectiveKind]] = [
        (request.max_ttft_s, "ttft"),
        (request.max_time_per_token_s, "latency"),
    ]
    for bound, kind in slos:
        if bound is not None:
            objective = msgspec.structs.replace(request.objective, kind=kind)
            layouts += propose_layouts(
                problem.varied(request=msgspec.structs.replace(request, objective=objective))
            )
    if request.pinned:
        memory: dict[str, int] = {}
        for place in problem.places:
            memory[place.host] = memory.get(place.host, 0) + place.device.usable_bytes
        others = sorted(set(memory) - set(request.pinned), key=lambda host: (-memory[host], host))
        for count in range(len(others) + 1):
            hosts = {*request.pinned, *others[:count]}
            all_of_them = msgspec.structs.replace(request, min_hosts=len(hosts))
            places = tuple(place for place in problem.places if place.host in hosts)
            found = propose_layouts(problem.varied(request=all_of_them, places=places))
            layouts += found
            if found or len(hosts) >= (request.max_hosts or len(memory)):
                break
    return list(dict.fromkeys(layouts))


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
        free = replace(request, max_ttft_s=None, max_time_per_token_s=None, pinned=(), spread="", max_hosts=None)
        if choose_replicas(problem.varied(request=free)) is not None:
            binding.append("together " + ", ".join(words for words, _ in ways))
    if not binding:
        return None
    return FleetError(
        "E602",
        f"no layout of {problem.spec.name} on {len(problem.places)} devices keeps " + "; nor ".join(binding),
        hint="relax what is named, or add faster hosts",
    )


def _strategies(problem: Problem) -> tuple[Strategy, ...]:
    request = problem.request
    kind = request.objective.strategy
    if kind == "manual":
        raise FleetError("E106", "a manual plan is written by hand, not planned", hint="choose another --strategy")
    if kind == "tensor" and max(request.stages or 1, len(request.tensor_parallel_sizes)) > 1:
        return (HybridStrategy(),)
    return (STRATEGIES[kind](),)


def _deal_places(problem: Problem, count: int) -> list[tuple[Place, ...]]:
    """Hosts' devices dealt into `count` hands, largest first to the hand with the least memory."""
    hands: list[list[Place]] = [[] for _ in range(count)]
    for place in sorted(problem.places, key=lambda place: (-place.device.usable_bytes, place.name)):
        min(hands, key=lambda hand: sum(other.device.usable_bytes for other in hand)).append(place)
    return [tuple(place for place in problem.places if place in hand) for hand in hands]


def _deal_domains(problem: Problem, count: int) -> list[tuple[Place, ...]]:
    """Whole fault domains dealt into `count` hands, largest first to the hand with the least memory."""
    label = problem.request.spread
    domain = {host.name: host.labels.get(label, "") for host in problem.request.facts.hosts}
    by_domain: dict[str, list[Place]] = {}
    for place in problem.places:
        if domain[place.host]:
            by_domain.setdefault(domain[place.host], []).append(place)
    memory = {name: sum(place.device.usable_bytes for place in places) for name, places in by_domain.items()}
    hands: list[list[str]] = [[] for _ in range(count)]
    for name in sorted(by_domain, key=lambda name: (-memory[name], name)):
        min(hands, key=lambda hand: sum(memory[other] for other in hand)).append(name)
    return [tuple(place for place in problem.places if domain[place.host] in hand) for hand in hands]


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
    plan = Plan(
        name=request.name,
        model=request.model,
        objective=request.objective,
        replicas=tuple(_replica(problem, layout) for layout in layouts),
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
        ),
        healing=request.healing,
        draft=_draft(problem, layouts),
        cluster=request.facts.cluster,
        why=why,
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


def _replica(problem: Problem, layout: Layout) -> Replica:
    spec, serving = problem.spec, problem.serving
    stages = []
    for stage in layout.stages:
        held_bytes = stage_bytes(spec, stage, serving, problem.draft)
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
