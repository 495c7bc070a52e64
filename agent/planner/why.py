"""The planner's reasons, one sentence each: what it chose, what bounds it, and what it left alone. Pure."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from agent.facts.cluster import LinkFacts
from agent.facts.model import DTYPE_BYTES
from agent.planner.adaptive import SLOW_LINK_BYTES_PER_S, AdaptiveStrategy, rule_of_thumb, shape_of
from agent.planner.advise import Advice
from agent.planner.bound import throughput_bound
from agent.planner.cost import Estimate, covered_experts, group_link, hop_pairs, link_between
from agent.planner.layout import Layout, Place, cut_shares
from agent.planner.memory import draft_bytes
from agent.planner.order import domain_of
from agent.planner.problem import Problem, choose_estimated, objective_value
from agent.planner.rates import rates_of
from agent.planner.replicas import EXACT_DEVICES, domain_values, is_large
from agent.planner.words import bytes_words, list_words, moment_words, rate_words, seconds_words

PLAIN_TYPES = ("", "F32", "BF16", "F16")
Propose = Callable[[Problem], list[Layout]]
MAX_RULED_DEVICES = 128
"""Up to this many, the slowest of all pairs' links is looked for, which the rule of thumb asks for."""
MAX_COMPARED_DEVICES = 16
"""Up to this many devices, the alternative is planned as well, to tell what it would change."""


def explain(
    problem: Problem, chosen: list[tuple[Layout, Estimate]], propose: Propose, *, advice: Advice | None = None
) -> tuple[str, ...]:
    """All reasons for these replicas, most important first."""
    layout, estimate = chosen[0]
    lines = [_choice(problem, chosen), _bottleneck(layout, estimate)]
    lines += _packing(problem, [layout for layout, _ in chosen])
    lines += _split_or_not(problem, layout, estimate, propose)
    lines += _unequal_shares(layout)
    lines += _left_out(problem, [layout for layout, _ in chosen])
    lines += _more_replicas(problem, [layout for layout, _ in chosen])
    lines += _bound(problem, chosen)
    lines += _rule(problem, layout)
    lines += _drafting(problem, [layout for layout, _ in chosen])
    lines += _plugged(problem, layout)
    lines += _learnt(problem, advice)
    lines += _quantised(problem)
    lines += _kind_of_model(problem)
    lines += _unmeasured(problem, [layout for layout, _ in chosen])
    return tuple(lines)


def value_words(problem: Problem, estimate: Estimate) -> str:
    """The objective's figure: `41.2 ms per token`, `397 tok/s` …"""
    match problem.request.objective.kind:
        case "latency":
            return f"{seconds_words(estimate.time_per_token_s)} per token"
        case "context":
            return f"a context of {problem.serving.context}, {seconds_words(estimate.time_per_token_s)} per token"
        case "ttft":
            return (
                f"{seconds_words(estimate.ttft_s)} to the first of {estimate.prompt_tokens} prompt tokens' answer"
            )
        case "throughput":
            return f"{rate_words(estimate.tokens_per_s)} at batch {problem.serving.batch}"
        case "energy":
            return f"{estimate.joules_per_token:.3g} J per token at batch {problem.serving.batch}"


def _choice(problem: Problem, chosen: list[tuple[Layout, Estimate]]) -> str:
    layout, estimate = chosen[0]
    objective = problem.request.objective
    shape = shape_of(layout)
    if shape == "single device":
        what = f"{layout.places[0].name} holds the whole model"
    else:
        sizes = layout.tensor_parallel_sizes
        grouped = f", tensor-parallel sizes {list(sizes)}" if max(sizes) > 1 else ""
        stages = "1 stage" if len(layout.stages) == 1 else f"{len(layout.stages)} stages"
        what = f"{shape} of {stages} over {len(layout.places)} devices on {len(layout.hosts)} hosts{grouped}"
    copies = f"{len(chosen)} replicas; the first: " if len(chosen) > 1 else ""
    return f"{copies}{what}, chosen for {objective.kind} by {objective.strategy}: {value_words(problem, estimate)}"


def _bottleneck(layout: Layout, estimate: Estimate) -> str:
    stage = layout.stages[estimate.bottleneck]
    slowest = estimate.stage_s[estimate.bottleneck]
    share = f"{slowest / estimate.time_per_token_s:.0%} of a token's time"
    links = f"; links between stages take {seconds_words(estimate.hops_s)}" if len(layout.stages) > 1 else ""
    return (
        f"bottleneck: stage {estimate.bottleneck} ({stage.name}, {stage.num_layers} layers) takes "
        f"{seconds_words(slowest)}, {share}, bound by {estimate.limit}{links}"
    )


def _drafting(problem: Problem, layouts: list[Layout]) -> list[str]:
    """Where the draft model stands, and that nothing here counts on its guesses."""
    draft, serving = problem.draft, problem.serving
    if draft is None:
        return []
    leaders = [layout.stages[-1].places[0] for layout in layouts]
    added = max(draft_bytes(draft, serving, place.device.kind).total for place in leaders)
    return [
        f"draft model {draft.name} guesses up to {serving.max_drafts} tokens on "
        f"{list_words([place.name for place in leaders])}, which draws them: {bytes_words(added)} there; "
        "predicted times are those without guesses, for how many come true is known when it serves"
    ]


def _quantised(problem: Problem) -> list[str]:
    """What becomes of a file whose weights are quantised already."""
    spec, serving = problem.request.spec, problem.serving
    if spec.stored_as in PLAIN_TYPES:
        return []
    stored = sum(entry.length for entry in spec.tensors)
    if serving.quantisation != "none":
        return [f"its file is {spec.stored_as}: dequantised as it is loaded, and kept as {serving.quantisation}"]
    served = spec.num_parameters * DTYPE_BYTES[serving.dtype]
    smaller = "int4" if spec.stored_as.startswith(("Q4", "Q5")) else "int8"
    return [
        f"its file is {spec.stored_as} ({bytes_words(stored)}): dequantised as it is loaded, and served in "
        f"{serving.dtype} ({bytes_words(served)}); --quantisation {smaller} would keep it about as small"
    ]


def _kind_of_model(problem: Problem) -> list[str]:
    """What differs from a dense model whose layers attend to everything."""
    spec, serving = problem.request.spec, problem.serving
    lines = []
    if spec.num_experts:
        covered = covered_experts(spec, serving.batch)
        batch = f", a batch of {serving.batch} about {covered:.1f} experts a layer" if serving.batch > 1 else ""
        lines.append(
            f"{spec.num_experts} experts a layer, {spec.experts_per_token} for each token: one token reads "
            f"{spec.num_active_parameters / 1e9:.3g} of {spec.num_parameters / 1e9:.3g} billion weights{batch}"
        )
    if spec.sliding_window is not None and spec.sliding_window < serving.context:
        windowed = spec.num_layers - len(spec.full_layers)
        lines.append(
            f"{windowed} of {spec.num_layers} layers look back {spec.sliding_window} positions only; "
            "their KV cache has room for the whole context all the same"
        )
    return lines


def _split_or_not(problem: Problem, layout: Layout, estimate: Estimate, propose: Propose) -> list[str]:
    """Why not fewer devices, where splitting was forced; why not more, where it was not."""
    if len(problem.places) > MAX_COMPARED_DEVICES:
        return []
    if len(layout.places) > 1 and (problem.is_forced or _is_pinned(problem)):
        alone = _best_variant(problem, propose, strategy="adaptive", unpinned=True)
        if alone is not None and len(alone[0].places) < len(layout.places):
            return [
                f"asked for: {alone[0].stages[0].name} alone would reach {value_words(problem, alone[1])}"
                if len(alone[0].places) == 1
                else f"asked for: {len(alone[0].places)} devices would reach {value_words(problem, alone[1])}"
            ]
        return []
    if problem.request.objective.kind not in {"latency", "ttft", "throughput"}:
        return []
    hosts = {place.host for place in problem.places}
    if len(layout.hosts) >= len(hosts):
        return []
    wider = _best_variant(problem, propose, min_hosts=len(layout.hosts) + 1)
    if wider is None:
        return []
    reason = (
        "the devices of a pipeline serve a token one after another, and each hop between hosts adds its latency"
    )
    if len(layout.places) == 1:
        reason = "one device that holds the whole model answers a single stream fastest: " + reason
    loss = objective_value(problem, wider[1]) / objective_value(problem, estimate) - 1
    return [
        f"{len(wider[0].hosts)} hosts would be {loss:.1%} worse, {value_words(problem, wider[1])}: {reason} "
        "(--min-hosts or --stages splits it all the same)"
    ]


def _is_pinned(problem: Problem) -> bool:
    request = problem.request
    return bool(request.stages or request.tensor or request.tensor_parallel_sizes or request.min_hosts > 1)


def _best_variant(
    problem: Problem, propose: Propose, *, min_hosts: int = 1, strategy: str | None = None, unpinned: bool = False
) -> tuple[Layout, Estimate] | None:
    """The best layout of a slightly different request."""
    request = msgspec.structs.replace(problem.request, min_hosts=min_hosts, max_hosts=None)
    if unpinned:
        request = msgspec.structs.replace(request, stages=None, tensor=None, tensor_parallel_sizes=())
    if strategy is not None:
        objective = msgspec.structs.replace(request.objective, strategy=strategy)
        request = msgspec.structs.replace(request, objective=objective)
    varied = problem.varied(request=request)
    return choose_estimated(varied, propose(varied))


def _unequal_shares(layout: Layout) -> list[str]:
    lines = []
    for index, stage in enumerate(layout.stages):
        if len(set(stage.units)) > 1:
            shares = ":".join(str(units) for units in stage.units)
            lines.append(f"stage {index} shares its KV heads {shares} over {stage.name}, by speed and memory")
    counts = [stage.num_layers for stage in layout.stages]
    devices = {msgspec.structs.replace(place.device, id="") for place in layout.places}
    if len(counts) > 1 and len(devices) > 1 and max(counts) - min(counts) > 1:
        fullest = layout.stages[counts.index(max(counts))]
        emptiest = layout.stages[counts.index(min(counts))]
        lines.append(
            f"{fullest.name} takes {fullest.num_layers} layers and {emptiest.name} {emptiest.num_layers}: "
            "unequal devices are used unequally"
        )
    return lines


def _left_out(problem: Problem, layouts: list[Layout]) -> list[str]:
    used = {place for layout in layouts for place in layout.places}
    left = [place for place in problem.places if place not in used]
    small = [place for place in left if not _holds_a_layer(problem, place)]
    lines = []
    if small:
        usable = max(place.device.usable_bytes for place in small)
        lines.append(
            f"left out, too small for one layer (at most {bytes_words(usable)} usable): "
            + list_words([place.name for place in small])
        )
    slow = [place.name for place in left if place not in small]
    if slow:
        goal = problem.request.objective.kind
        lines.append(f"left out, as they would not improve {goal}: {list_words(slow)}")
    return lines


def _holds_a_layer(problem: Problem, place: Place) -> bool:
    return problem.sizes.holds_a_layer(place.device.kind, problem.usable_bytes(place))


def _packing(problem: Problem, layouts: list[Layout]) -> list[str]:
    """How many devices were dealt into replicas, in which domains they stand, and what is left over."""
    request, facts = problem.request, problem.request.facts
    lines = []
    if is_large(problem):
        where = "their labels" if any(any(domain_of(host.labels)) for host in facts.hosts) else "32 hosts each"
        by = " and ".join(f"`{label}`" for label in (request.spread, request.domain) if label) or where
        count = "as many replicas as fit" if request.replicas == "max" else f"{request.replicas} replicas"
        lines.append(
            f"{len(problem.places)} devices are too many to search exactly for {count} (at most {EXACT_DEVICES}): "
            f"replicas were packed by domain ({by}), their layers filled to equal times, and sought among the "
            "fastest hosts where few are asked for"
        )
    for label, words in ((request.domain, "stand within"), (request.spread, "are spread over")):
        if label:
            values = domain_values(problem, label)
            used = {values[host] for layout in layouts for host in layout.hosts}
            lines.append(f"replicas {words} values of `{label}`: {list_words(sorted(used), most=6)}")
            without = sorted({place.host for place in problem.places} - set(values))
            if without:
                lines.append(f"left out, without the label `{label}`: {list_words(without)}")
    if request.replicas == "max":
        lines += _left_over(problem, layouts)
    return lines


def _left_over(problem: Problem, layouts: list[Layout]) -> list[str]:
    """What no replica stands on, and how far it is from one more."""
    used = {place for layout in layouts for place in layout.places}
    left = [place for place in problem.places if place not in used]
    if not left:
        return ["left over: nothing, every device has a part"]
    whole = cut_shares(problem.spec, (problem.spec.num_kv_heads,))[0]
    held = sum(
        problem.sizes.memory(whole, place.device.kind, first=False, last=False).max_layers(
            problem.usable_bytes(place)
        )
        for place in left
    )
    devices = "1 device" if len(left) == 1 else f"{len(left)} devices"
    verdict = (
        "too little for another replica"
        if held < problem.spec.num_layers
        else "but no layout of them fits, keeps what is asked for, or serves more"
    )
    return [
        f"left over: {devices} ({list_words([place.name for place in left])}), which hold {held} layers of the "
        f"{problem.spec.num_layers} that a replica takes, {verdict}"
    ]


def _more_replicas(problem: Problem, layouts: list[Layout]) -> list[str]:
    """Throughput grows with replicas more than with stages; said when there is room for one."""
    if problem.request.objective.kind != "throughput" or problem.request.objective.strategy != "adaptive":
        return []
    used = {place for layout in layouts for place in layout.places}
    left = tuple(place for place in problem.places if place not in used)
    if not left or len(left) > MAX_COMPARED_DEVICES or not _fits_on(problem, left):
        return []
    return [f"the devices left out can hold another replica: --replicas {len(layouts) + 1} adds its throughput"]


def _bound(problem: Problem, chosen: list[tuple[Layout, Estimate]]) -> list[str]:
    """How far the plan is from what these devices could do at most, links and balance left out."""
    if problem.request.objective.kind != "throughput":
        return []
    bound = throughput_bound(problem)
    reached = sum(estimate.tokens_per_s for _, estimate in chosen)
    return [
        f"counting bound: no layout of these {len(problem.places)} devices serves more than {rate_words(bound)} at "
        f"batch {problem.serving.batch} a replica; this plan reaches {reached / bound:.0%} of it"
    ]


def _fits_on(problem: Problem, places: tuple[Place, ...]) -> bool:
    return bool(AdaptiveStrategy().propose(problem.varied(places=places, is_probe=True)))


def _rule(problem: Problem, layout: Layout) -> list[str]:
    num_places = len(problem.places)
    if problem.request.objective.strategy != "adaptive" or num_places == 1 or num_places > MAX_RULED_DEVICES:
        return []
    slowest = group_link(problem.places, problem.links).bytes_per_s
    rule = rule_of_thumb(problem.spec.num_layers, problem.prompt_tokens, link_bytes_per_s=slowest)
    shape = shape_of(layout)
    if rule == shape:
        return []
    link = "" if slowest > SLOW_LINK_BYTES_PER_S else ", pipeline over links of 10 Gbit/s and less"
    return [
        "the rule of thumb (tensor parallelism above 2,048 prompt tokens, pipeline above 20 layers, hybrid above "
        f"both{link}) says {rule}; the estimate with these devices and links says {shape}"
    ]


def _plugged(problem: Problem, layout: Layout) -> list[str]:
    """Which plugin's it is, where ours did not propose the same."""
    plugins = problem.request.plugins
    if not plugins or layout in AdaptiveStrategy().propose(problem):
        return []
    names = [f"`{plugin.name}`" for plugin in plugins if layout in plugin.propose(problem)]
    return [f"this layout was proposed by the plugin strategy {list_words(names)}"] if names else []


def _learnt(problem: Problem, advice: Advice | None) -> list[str]:
    """What measured runs changed, and from how many."""
    if advice is None:
        return []
    estimates = [estimate for _, estimate in advice.layouts]
    values = [objective_value(problem, estimate) for estimate in estimates]
    tried = [
        f"{arm} {expected / value:.2f} times ({advice.runs[arm]} runs)"
        for arm, expected, value in zip(advice.arms, advice.choice.expected, values, strict=True)
        if arm in advice.runs
    ]
    index = advice.choice.index
    lines = [f"learnt from {advice.num_runs} measured runs, expected against the estimate: {list_words(tried)}"]
    if not tried:
        lines = [f"{advice.num_runs} measured runs are known, none of a layout that is possible here"]
    by_estimate = min(range(len(values)), key=lambda each: values[each])
    if advice.choice.is_exploring:
        lines.append(
            f"explores: {advice.arms[index]} may prove better than what is expected to be best, which was given a "
            f"likelihood of {1 - advice.choice.propensity:.0%} (seed {problem.request.seed})"
        )
    elif by_estimate != index:
        lines.append(
            f"the estimate alone says {advice.arms[by_estimate]}; what was measured says {advice.arms[index]}"
        )
    if advice.alarms:
        lines.append(f"{advice.alarms} times measurements left what had been learnt: what was before counts little")
    return lines


def _unmeasured(problem: Problem, layouts: list[Layout]) -> list[str]:
    """Whether devices and links are measured, and when: what is older, or taken from a table, is worth a probe."""
    serving = problem.serving
    places = {place.name: place for layout in layouts for place in layout.places}
    tabled = sorted(
        name
        for name, place in places.items()
        if not rates_of(place.device, serving.dtype, serving.quantisation).is_measured
    )
    lines = [f"rates of {list_words(tabled)} are not measured but taken from a table"] if tabled else []
    probes = [place.device.probe.measured_at_s for place in places.values() if place.device.probe is not None]
    if probes and not tabled:
        lines.append(f"devices measured {moment_words(min(probes))}")
    links = [link for layout in layouts for link in _links_of(problem, layout)]
    times = [link.measured_at_s for link in links if link.measured_at_s is not None]
    guessed = sorted({f"{link.source}>{link.target}" for link in links if not link.is_measured})
    if times and not guessed:
        lines.append(f"links measured {moment_words(min(times))}")
    if guessed:
        lines.append(f"links {list_words(guessed)} are not measured but taken from a table")
    if (tabled or guessed) and lines:
        lines[-1] += ": odctl probe measures them"
    return lines


def _links_of(problem: Problem, layout: Layout) -> list[LinkFacts]:
    """Those between hosts that a layout's stages and groups use."""
    pairs = [pair for a, b in zip(layout.stages, layout.stages[1:], strict=False) for pair in hop_pairs(a, b)]
    pairs += [(a, b) for stage in layout.stages for a in stage.places for b in stage.places if a is not b]
    return [link_between(a, b, problem.links) for a, b in pairs if a.host != b.host]
