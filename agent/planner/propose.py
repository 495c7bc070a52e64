"""What strategies propose for a problem: ours as they are, plugins' checked first. Pure.

A plugin's strategy only has to divide the model. What does not fit, or does not keep what the request limits, is
left out here; what is no layout of this model and these devices at all is the plugin's error, and is told.
"""

from __future__ import annotations

import itertools

import msgspec

from agent.errors import FleetError
from agent.planner.adaptive import STRATEGIES, AdaptiveStrategy
from agent.planner.hybrid import HybridStrategy
from agent.planner.layout import Layout, Place
from agent.planner.plan import ObjectiveKind
from agent.planner.problem import PlanRequest, Problem, Strategy, near, pinned_hosts

WRONG_PLUGIN = "E119"
"""A plugin's strategy that cannot be loaded, or that proposes what is no layout."""


def propose_layouts(problem: Problem) -> list[Layout]:
    """Feasible layouts of the request's strategy, deduplicated.

    Raises FleetError E106 for a strategy that is not there, E119 for a plugin that proposes what is no layout.
    """
    layouts = [layout for strategy in strategies_of(problem.request) for layout in _proposed(problem, strategy)]
    kind, request = problem.request.objective.strategy, problem.request
    if kind == "tensor" and problem.is_forced:
        layouts = [layout for layout in layouts if min(layout.tensor_parallel_sizes) > 1]
    num_stages = len(request.tensor_parallel_sizes) or request.stages
    if num_stages is not None:
        layouts = [layout for layout in layouts if len(layout.stages) == num_stages]
    return list(dict.fromkeys(layouts))


def strategies_of(request: PlanRequest) -> tuple[Strategy, ...]:
    """The strategy asked for by name; all of them, plugins' too, for `adaptive`. Raises FleetError E106."""
    kind = request.objective.strategy
    if kind == "manual":
        raise FleetError("E106", "a manual plan is written by hand, not planned", hint="choose another --strategy")
    if kind == "tensor" and max(request.stages or 1, len(request.tensor_parallel_sizes)) > 1:
        return (HybridStrategy(),)
    if kind == "adaptive":
        return (AdaptiveStrategy(), *request.plugins)
    if kind in STRATEGIES:
        return (STRATEGIES[kind](),)
    plugins = {strategy.name: strategy for strategy in request.plugins}
    if kind not in plugins:
        raise FleetError("E106", f"no strategy `{kind}`", hint=near(kind, {*STRATEGIES, *plugins}))
    return (plugins[kind],)


def _proposed(problem: Problem, strategy: Strategy) -> list[Layout]:
    """Ours keep every limit inside their own search; those of a plugin are checked."""
    layouts = strategy.propose(problem)
    if not any(strategy is plugin for plugin in problem.request.plugins):
        return layouts
    for layout in layouts:
        wrong = what_is_wrong(problem, layout)
        if wrong is not None:
            raise FleetError(
                WRONG_PLUGIN,
                f"strategy `{strategy.name}` proposed what is no layout of {problem.spec.name}: {wrong}",
                hint="tell its author; --strategy pipeline, tensor or hybrid plans without it",
            )
    return [layout for layout in layouts if _keeps_limits(problem.request, layout) and problem.fits(layout)]


def what_is_wrong(problem: Problem, layout: object) -> str | None:
    """Why something is no layout of this model on these devices, in words; None when it is one."""
    spec, allowed = problem.spec, set(problem.places)
    if not isinstance(layout, Layout):
        return f"it is a {type(layout).__name__}, not an agent.planner.layout.Layout"
    if not layout.stages:
        return "it has no stage"
    edges = [0, *(stage.layers[1] for stage in layout.stages)]
    for index, (stage, begin) in enumerate(zip(layout.stages, edges, strict=False)):
        if stage.layers[0] != begin or stage.layers[1] <= begin:
            return f"stage {index} holds layers {list(stage.layers)}, and the one before it ends at {begin}"
        if sum(stage.units) != spec.num_kv_heads or min(stage.units) < 1:
            return f"stage {index} shares its {spec.num_kv_heads} KV heads {list(stage.units)}"
    if edges[-1] != spec.num_layers:
        return f"its stages end at layer {edges[-1]} of {spec.num_layers}"
    used: set[Place] = set()
    for place in layout.places:
        if place not in allowed:
            return f"{place.name} is not among the devices that may be used"
        if place in used:
            return f"{place.name} stands in it twice"
        used.add(place)
    return None


def _keeps_limits(request: PlanRequest, layout: Layout) -> bool:
    sizes = layout.tensor_parallel_sizes
    return (
        request.min_hosts <= len(layout.hosts) <= (request.max_hosts or len(layout.hosts))
        and (not request.tensor_parallel_sizes or sizes == request.tensor_parallel_sizes)
        and (request.tensor is None or set(sizes) == {request.tensor})
    )


def candidates(problem: Problem) -> list[Layout]:
    """Layouts for the objective, for each SLO those of the objective that it is about, and with what is pinned.

    For energy those for latency and throughput too: idle devices draw for as long as all others compute, which the
    programme that splits layers cannot add up stage by stage.

    Pinned hosts are all used where they alone are planned with; others join them, largest first, until it fits.
    """
    request = problem.request
    layouts = propose_layouts(problem)
    is_energy = request.objective.kind == "energy"
    others: list[tuple[bool, ObjectiveKind]] = [
        (request.max_ttft_s is not None, "ttft"),
        (request.max_time_per_token_s is not None or is_energy, "latency"),
        (is_energy, "throughput"),
    ]
    for is_wanted, kind in others:
        if is_wanted:
            objective = msgspec.structs.replace(request.objective, kind=kind)
            layouts += propose_layouts(
                problem.varied(request=msgspec.structs.replace(request, objective=objective))
            )
    if request.pinned:
        layouts += _with_pinned(problem)
    return list(dict.fromkeys(layouts))


def _with_pinned(problem: Problem) -> list[Layout]:
    """Layouts on pinned hosts and devices, joined by other hosts, largest first, until one fits.

    Of a host with pinned devices those alone are offered, and as many stages as there are pinned ones: a strategy
    that is free to leave devices out would leave out some of them.
    """
    request = problem.request
    named = {name for name in request.pinned if "/" in name}
    with_named = {name.partition("/")[0] for name in named}
    offered = [place for place in problem.places if place.host not in with_named or place.name in named]
    memory: dict[str, int] = {}
    for place in offered:
        memory[place.host] = memory.get(place.host, 0) + place.device.usable_bytes
    pinned = pinned_hosts(request)
    others = sorted(set(memory) - pinned, key=lambda host: (-memory[host], host))
    layouts: list[Layout] = []
    for count in range(len(others) + 1):
        hosts = {*pinned, *others[:count]}
        wanted = [msgspec.structs.replace(request, min_hosts=max(request.min_hosts, len(hosts)))]
        places = tuple(place for place in offered if place.host in hosts)
        is_free = request.stages is None and not request.tensor_parallel_sizes
        if len(named) > len(with_named) and is_free and len(places) <= problem.spec.num_layers:
            wanted.append(msgspec.structs.replace(wanted[0], stages=len(places)))
        found = list(
            itertools.chain.from_iterable(
                propose_layouts(problem.varied(request=each, places=places)) for each in wanted
            )
        )
        layouts += found
        if found or len(hosts) >= (request.max_hosts or len(memory)):
            break
    return layouts
