"""A plan explained at length: what bounds it, what was left alone, what would help, what it rests on. Pure.

`planner.why` gives the few sentences that a plan file keeps; here figures are computed anew by changing the facts
or the request, one thing at a time, and planning or estimating again. The clock is the caller's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping

import msgspec

from agent.facts.cluster import DeviceFacts
from agent.facts.model import Dtype, Quantisation
from agent.planner.adaptive import rule_of_thumb, shape_of
from agent.planner.bound import throughput_bound
from agent.planner.calibration import PRIOR, corrections_of
from agent.planner.cost import RIDING_ALONG, Estimate, carrier_between, group_link, hop_pairs, link_between
from agent.planner.layout import Layout, Place
from agent.planner.plan import Serving
from agent.planner.problem import Problem, objective_value
from agent.planner.propose import candidates
from agent.planner.rates import (
    CARRIERS,
    EFFICIENCY,
    REQUEST_S,
    WARM_REQUEST_S,
    nominal_of,
    probed_overheads,
    probed_rates,
    rates_of,
    slowed_link,
    turn_s,
)
from agent.planner.rehearsal import rehearsal_of, rests_of
from agent.planner.replicas import choose_replicas, is_large
from agent.planner.why import value_words
from agent.planner.words import age_words, bytes_words, list_words, moment_words, rate_words, seconds_words

Chosen = list[tuple[Layout, Estimate]]
MAX_TRIED_DEVICES = 12
"""Kinds of unused devices that are each planned with; others are only named."""
MAX_LEVERS = 48
"""Links and devices, each, whose change is estimated."""
MAX_REPLANNED = 16
"""Devices that are planned anew with twice their memory, and in another dtype."""
SHOWN_LEVERS = 3
LEAST_GAIN = 0.001
MAX_CONSTANTS = 12


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """What one question's answer is, a sentence a line."""

    title: str
    lines: tuple[str, ...]


class Lever(msgspec.Struct, frozen=True, kw_only=True):
    """One change of the facts, and the objective's value with it relative to what it is (below 1 is better)."""

    change: str
    factor: float
    words: str


def explain_plan(
    problem: Problem, layouts: list[Layout], *, now_s: float | None = None, absent: Mapping[str, str] | None = None
) -> tuple[Section, ...]:
    """Every section for replicas with these layouts.

    `now_s` (seconds since the epoch) makes ages of moments; `absent` says of hosts that the facts lack, why.
    """
    chosen = [(layout, problem.estimate(layout)) for layout in layouts]
    sections = (
        ("bottleneck", _bottleneck(problem, chosen)),
        ("devices left out", [*_absent(absent or {}), *_left_out(problem, chosen)]),
        ("one more stage or host", _wider(problem, chosen)),
        ("planned anew", _anew(problem, chosen)),
        ("what would help most", _levers(problem, chosen)),
        ("counting bound", _bound(problem, chosen)),
        ("rule of thumb", _rule(problem, chosen)),
        ("constants", _constants(problem, layouts, now_s)),
    )
    return tuple(Section(title=title, lines=tuple(lines)) for title, lines in sections if lines)


# --- what bounds it -----------------------------------------------------------------------------------


def _bottleneck(problem: Problem, chosen: Chosen) -> list[str]:
    number = max(range(len(chosen)), key=lambda index: objective_value(problem, chosen[index][1]))
    layout, estimate = chosen[number]
    stage = layout.stages[estimate.bottleneck]
    slowest = estimate.stage_s[estimate.bottleneck]
    where = f"replica {number} " if len(chosen) > 1 else ""
    lines = [
        f"{where}stage {estimate.bottleneck} on {stage.name}, {stage.num_layers} of {problem.spec.num_layers} "
        f"layers: {seconds_words(slowest)} of {seconds_words(estimate.time_per_token_s)} per token "
        f"({slowest / estimate.time_per_token_s:.0%}), bound by {estimate.limit}"
    ]
    total = sum(estimate.time_per_token_parts.values())
    parts = sorted(estimate.time_per_token_parts.items(), key=lambda part: -part[1])
    shares = [f"{name} {seconds / total:.0%}" for name, seconds in parts if seconds / total >= 0.01]
    lines.append(f"a token's time goes to {list_words(shares, most=6)}")
    if problem.request.objective.kind == "throughput":
        cycle = estimate.micro_batches
        lines.append(
            f"a batch of {problem.serving.batch} runs as {cycle} micro-batches in flight, "
            f"{math.ceil(estimate.sequences / cycle)} sequences each"
        )
    return lines


# --- what was left alone ------------------------------------------------------------------------------


def _absent(hosts: Mapping[str, str]) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for host in sorted(hosts):
        by_reason.setdefault(hosts[host], []).append(host)
    return [f"{list_words(names)}: {reason}" for reason, names in by_reason.items()]


def _left_out(problem: Problem, chosen: Chosen) -> list[str]:
    """Each device of the cluster without a rank, by reason."""
    request = problem.request
    used = {place.name for layout, _ in chosen for place in layout.places}
    planned = {place.name: place for place in problem.places}
    reasons: dict[str, list[str]] = {}
    idle: list[Place] = []
    with_gpu = {host.name for host in request.facts.hosts if any(each.kind == "cuda" for each in host.devices)}
    for host in request.facts.hosts:
        for device in host.devices:
            name = f"{host.name}/{device.id}"
            if name in used:
                continue
            place = planned.get(name)
            if {host.name, name} & set(request.excluded):
                reason = "excluded"
            elif place is None and request.hosts and host.name not in request.hosts:
                reason = "its host was not selected"
            elif place is None and device.kind == "cpu" and host.name in with_gpu:
                reason = "the CPU of a host with a GPU, used only where asked for by name"
            elif place is None:
                reason = "not selected"
            elif not problem.sizes.holds_a_layer(place.device.kind, problem.usable_bytes(place)):
                reserved = request.reserved_bytes.get(name, 0)
                kept = f" after {bytes_words(reserved)} reserved" if reserved else ""
                reason = f"too little memory even for one layer ({bytes_words(place.device.usable_bytes)}{kept})"
            else:
                idle.append(place)
                continue
            reasons.setdefault(reason, []).append(name)
    lines = [f"{list_words(names)}: {reason}" for reason, names in reasons.items()]
    return lines + _idle_lines(problem, chosen, idle)


def _idle_lines(problem: Problem, chosen: Chosen, idle: list[Place]) -> list[str]:
    """By how much the first replica would be slower with each of these, those of a kind together."""
    request = problem.request
    first, estimate = chosen[0]
    kinds: dict[object, list[Place]] = {}
    for place in idle:
        kind = msgspec.structs.replace(place.device, id="")
        kinds.setdefault(kind if problem.links.are_equal else (place.host, kind), []).append(place)
    others = {place for layout, _ in chosen[1:] for place in layout.places}
    lines = []
    for count, places in enumerate(kinds.values()):
        names = list_words([place.name for place in places])
        if count >= MAX_TRIED_DEVICES:
            rest = sum(len(each) for each in itertools.islice(kinds.values(), count, None))
            lines.append(f"{rest} more devices of {len(kinds) - count} kinds: not tried one by one")
            break
        pinned = msgspec.structs.replace(request, pinned=(*request.pinned, places[0].name), replicas=1)
        allowed = tuple(place for place in problem.places if place not in others)
        if len(allowed) > MAX_REPLANNED:
            # The replica as it is and the device: what adding it to them would do.
            allowed = tuple(place for place in allowed if place in first.places or place == places[0])
        best = _best(problem.varied(request=pinned, places=allowed))
        one = "it" if len(places) == 1 else "one of them"
        if best is None:
            lines.append(f"{names}: no layout with {one} fits or keeps what is asked for")
            continue
        loss = objective_value(problem, best[1]) / objective_value(problem, estimate) - 1
        verdict = "no better"
        if abs(loss) > LEAST_GAIN:
            verdict = f"{abs(loss):.1%} {'worse' if loss > 0 else 'better'}"
        lines.append(f"{names}: with {one} it would be {verdict}, {value_words(problem, best[1])}")
    return lines


def _wider(problem: Problem, chosen: Chosen) -> list[str]:
    """The first replica with one stage more, and on one host more."""
    layout, estimate = chosen[0]
    others = {place for other, _ in chosen[1:] for place in other.places}
    left = tuple(place for place in problem.places if place not in others)
    request = msgspec.structs.replace(problem.request, replicas=1, spread="", max_hosts=None)
    if len(left) > MAX_REPLANNED:
        spare = [place for place in left if place not in layout.places][: MAX_REPLANNED - len(layout.places)]
        wanted = {*layout.places, *spare}
        left = tuple(place for place in left if place in wanted)
    num_stages = len(layout.stages) + 1
    asked = [
        (
            f"{num_stages} stages",
            msgspec.structs.replace(request, stages=num_stages, tensor=None, tensor_parallel_sizes=()),
        ),
        (
            f"{len(layout.hosts) + 1} hosts",
            msgspec.structs.replace(
                request, min_hosts=len(layout.hosts) + 1, stages=None, tensor=None, tensor_parallel_sizes=()
            ),
        ),
    ]
    lines = []
    for words, varied in asked:
        if varied.stages is not None and not len(left) >= varied.stages <= problem.spec.num_layers:
            continue
        if varied.min_hosts > len({place.host for place in left}):
            continue
        best = _best(problem.varied(request=varied, places=left))
        if best is None:
            lines.append(f"{words}: no such layout fits or keeps what is asked for")
            continue
        delta = best[1].time_per_token_s - estimate.time_per_token_s
        hops = best[1].hops_s - estimate.hops_s
        lines.append(
            f"{words}: {best[1].time_per_token_s * 1e3:.2f} ms per token instead of "
            f"{estimate.time_per_token_s * 1e3:.2f} ms ({delta * 1e3:+.2f} ms, of which links {hops * 1e3:+.2f} "
            f"ms), {rate_words(best[1].tokens_per_s)} instead of {rate_words(estimate.tokens_per_s)}"
        )
    return lines


def _anew(problem: Problem, chosen: Chosen) -> list[str]:
    """Whether the same request has a better plan than this one, as for a file that was edited or has aged."""
    free = None if is_large(problem) else choose_replicas(problem)
    if free is None:
        return []
    gain = 1 - _value(problem, free) / _value(problem, chosen)
    if gain <= LEAST_GAIN:
        return []
    sizes = ", ".join(shape_of(layout) for layout, _ in free[:4])
    return [
        f"a plan made now would reach {_words(problem, free)}, {gain:.1%} better ({sizes}): odctl plan makes it"
    ]


def _best(problem: Problem) -> tuple[Layout, Estimate] | None:
    chosen = choose_replicas(problem)
    return chosen[0] if chosen else None


# --- what would help ----------------------------------------------------------------------------------


def _levers(problem: Problem, chosen: Chosen) -> list[str]:
    """The changes that gain most, each recomputed by itself."""
    levers = [*_link_levers(problem, chosen), *_device_levers(problem, chosen)]
    if not is_large(problem) and len(problem.places) <= MAX_REPLANNED:
        levers += [*_memory_levers(problem), *_dtype_levers(problem, chosen)]
    best = sorted(levers, key=lambda lever: (lever.factor, lever.change))[:SHOWN_LEVERS]
    lines = [
        f"{lever.change}: {1 - lever.factor:.1%} better, {lever.words}"
        if problem.request.objective.kind != "throughput"
        else f"{lever.change}: {1 / lever.factor - 1:.1%} more, {lever.words}"
        for lever in best
        if lever.factor < 1 - LEAST_GAIN
    ]
    return lines or [
        "nothing of what was tried by itself (links, bandwidth, compute, memory, each twice; another dtype) helps"
    ]


def _value(problem: Problem, chosen: Iterable[tuple[Layout, Estimate]]) -> float:
    """Of all replicas, small is good: of throughput the sum counts, of all else the slowest."""
    values = [objective_value(problem, estimate) for _, estimate in chosen]
    return 1 / sum(1 / value for value in values) if problem.request.objective.kind == "throughput" else max(values)


def _words(problem: Problem, chosen: Chosen) -> str:
    if problem.request.objective.kind == "throughput":
        return f"{rate_words(1 / _value(problem, chosen))} in all"
    return value_words(problem, max(chosen, key=lambda pair: objective_value(problem, pair[1]))[1])


def _link_levers(problem: Problem, chosen: Chosen) -> list[Lever]:
    """Twice the rate and half the latency of each link that is used, both directions."""
    before = _value(problem, chosen)
    facts = problem.request.facts
    levers = []
    for one, other in sorted(_used_links(chosen))[:MAX_LEVERS]:
        kinds = {place.device.kind for layout, _ in chosen for place in layout.places if place.host in {one, other}}
        link = problem.plain_links.between(one, other, "cuda" if kinds == {"cuda"} else "cpu")
        for words, rate, latency in (("twice the rate of", 2.0, 1.0), ("half the latency of", 1.0, 0.5)):
            faster = slowed_link(link, latency, 1 / rate)
            # Later facts stand for earlier ones of the same carrier.
            back = msgspec.structs.replace(faster, source=other, target=one)
            there = msgspec.structs.replace(faster, source=one, target=other)
            changed = msgspec.structs.replace(facts, links=(*facts.links, there, back))
            varied = problem.varied(request=msgspec.structs.replace(problem.request, facts=changed))
            after = [(layout, varied.estimate(layout)) for layout, _ in chosen]
            where = f"the link inside {one}" if one == other else f"the link {one} - {other}"
            levers.append(_lever(varied, f"{words} {where}", after, before))
    return levers


def _lever(problem: Problem, change: str, after: Chosen, before: float) -> Lever:
    return Lever(change=change, factor=_value(problem, after) / before, words=_words(problem, after))


def _used_links(chosen: Chosen) -> set[tuple[str, str]]:
    """Pairs of hosts whose link carries hidden states or sums, sorted within a pair; a host twice inside it."""
    return {(min(a.host, b.host), max(a.host, b.host)) for layout, _ in chosen for a, b in _linked_places(layout)}


def _linked_places(layout: Layout) -> list[tuple[Place, Place]]:
    pairs = [pair for a, b in itertools.pairwise(layout.stages) for pair in hop_pairs(a, b)]
    return pairs + [pair for stage in layout.stages for pair in itertools.combinations(stage.places, 2)]


def _device_levers(problem: Problem, chosen: Chosen) -> list[Lever]:
    """Twice the bandwidth and twice the arithmetic of each device that is used, the layout as it is."""
    serving = problem.serving
    places = list(dict.fromkeys(place for layout, _ in chosen for place in layout.places))
    # A rate given by hand counts as measured, and what runs taught of unmeasured ones is not its: compare without.
    plain = problem.varied()
    if problem.calibration.corrections:
        plain = Problem(
            problem.request, problem.places, serving, memory_scale=problem.memory_scale, calibration=PRIOR
        )
    before = _value(plain, [(layout, plain.estimate(layout)) for layout, _ in chosen])
    now = _value(problem, chosen)
    levers = []
    for place in places[:MAX_LEVERS]:
        for words, reads, flops in (("memory bandwidth", 2.0, 1.0), ("arithmetic", 1.0, 2.0)):
            faster = _scaled_device(place.device, serving.dtype, serving.quantisation, reads=reads, flops=flops)
            swapped = [
                _swapped(layout, place, msgspec.structs.replace(place, device=faster)) for layout, _ in chosen
            ]
            factor = _value(plain, [(layout, plain.estimate(layout)) for layout in swapped]) / before
            levers.append(
                Lever(
                    change=f"twice the {words} of {place.name}",
                    factor=factor,
                    words=_figure_words(problem, now * factor),
                )
            )
    return levers


def _figure_words(problem: Problem, value: float) -> str:
    match problem.request.objective.kind:
        case "throughput":
            return f"{rate_words(1 / value)} in all"
        case "energy":
            return f"{value:.3g} J per token"
        case "ttft":
            return f"{seconds_words(value)} to the first token"
        case _:
            return f"{seconds_words(value)} per token"


def _scaled_device(
    device: DeviceFacts, dtype: Dtype, quantisation: Quantisation, *, reads: float, flops: float
) -> DeviceFacts:
    """A device that reads and computes so many times as fast, by its probe where it has one."""
    nominal = nominal_of(device)
    if device.probe is None:
        return msgspec.structs.replace(
            device,
            read_bytes_per_s=(device.read_bytes_per_s or nominal.read_bytes_per_s) * reads,
            flops_per_s=_flops(device, dtype) * flops,
        )
    own = sorted(
        (gemm for gemm in device.probe.gemms if (gemm.dtype, gemm.quantisation) == (dtype, quantisation)),
        key=lambda gemm: gemm.rows,
    )
    if not own:
        return device
    # Products that take little longer than with the fewest rows are bound by reading, as `cost` has it.
    reading_s = RIDING_ALONG * own[0].seconds
    faster = [
        msgspec.structs.replace(gemm, seconds=gemm.seconds / (reads if gemm.seconds <= reading_s else flops))
        for gemm in own
    ]
    saved_s = (own[0].seconds - faster[0].seconds) / own[0].size ** 2
    # What launching a thin layer takes beside its products stays.
    layers = [
        msgspec.structs.replace(layer, seconds=layer.seconds - layer.weight_elements * saved_s)
        if (layer.dtype, layer.quantisation) == (dtype, quantisation)
        else layer
        for layer in device.probe.layers
    ]
    rest = [gemm for gemm in device.probe.gemms if (gemm.dtype, gemm.quantisation) != (dtype, quantisation)]
    probe = msgspec.structs.replace(device.probe, gemms=(*rest, *faster), layers=tuple(layers))
    return msgspec.structs.replace(device, probe=probe)


def _flops(device: DeviceFacts, dtype: Dtype) -> float:
    """The rate that, given as a fact, leaves the device as fast as it is taken to be."""
    return rates_of(device, dtype).decode_flops_per_s / EFFICIENCY[device.kind].decode_flops


def _swapped(layout: Layout, old: Place, new: Place) -> Layout:
    stages = tuple(
        msgspec.structs.replace(stage, places=tuple(new if place == old else place for place in stage.places))
        for stage in layout.stages
    )
    return msgspec.structs.replace(layout, stages=stages)


def _memory_levers(problem: Problem) -> list[Lever]:
    """Twice the memory of a device, planned anew: what changes is who holds what."""
    free = choose_replicas(problem)
    if free is None:
        return []
    before = _value(problem, free)
    levers = []
    for place in problem.places:
        device = msgspec.structs.replace(
            place.device, usable_bytes=2 * place.device.usable_bytes, memory_bytes=2 * place.device.memory_bytes
        )
        larger = msgspec.structs.replace(place, device=device)
        after = choose_replicas(
            problem.varied(places=tuple(larger if each == place else each for each in problem.places))
        )
        if after is not None:
            levers.append(_lever(problem, f"twice the memory of {place.name}, planned anew", after, before))
    return levers


def _dtype_levers(problem: Problem, chosen: Chosen) -> list[Lever]:
    """Another dtype that loses nothing of the model, planned anew: a processor may have no kernels for the model's
    own. Told where every device was measured in it; rehearsals are left out, for they are of one dtype.
    """
    serving = problem.serving
    if serving.quantisation != "none":
        return []
    probes = [place.device.probe for place in problem.places]
    lossless: set[Dtype] = {"float32", problem.spec.dtype}
    measured = [
        dtype
        for dtype in sorted(lossless - {serving.dtype})
        if all(probe is not None and probed_rates(probe, dtype, "none") is not None for probe in probes)
    ]
    if not measured:
        return []
    plain = problem.varied(places=tuple(_without_rehearsals(place) for place in problem.places))
    before, now = choose_replicas(plain), _value(problem, chosen)
    if before is None:
        return []
    levers = []
    for dtype in measured:
        after = choose_replicas(plain.varied(serving=msgspec.structs.replace(serving, dtype=dtype)))
        if after is not None:
            factor = _value(plain, after) / _value(plain, before)
            words = _figure_words(problem, now * factor)
            levers.append(Lever(change=f"--dtype {dtype}, planned anew", factor=factor, words=words))
    return levers


def _without_rehearsals(place: Place) -> Place:
    assert place.device.probe is not None
    probe = msgspec.structs.replace(place.device.probe, models=())
    return msgspec.structs.replace(place, device=msgspec.structs.replace(place.device, probe=probe))


# --- bounds and rules ---------------------------------------------------------------------------------


def _bound(problem: Problem, chosen: Chosen) -> list[str]:
    bound = throughput_bound(problem)
    reached = sum(estimate.tokens_per_s for _, estimate in chosen)
    if bound <= 0:
        return []
    return [
        f"no layout of these {len(problem.places)} devices serves more than {rate_words(bound)} at batch "
        f"{problem.serving.batch} a replica, links and balance left out; this plan reaches {rate_words(reached)}, "
        f"{reached / bound:.0%} of it"
    ]


def _rule(problem: Problem, chosen: Chosen) -> list[str]:
    """What the rule of thumb says, and what the best layout of its kind would do."""
    if len(problem.places) == 1 or is_large(problem):
        return []
    layout, estimate = chosen[0]
    slowest = group_link(problem.places, problem.links).bytes_per_s
    rule = rule_of_thumb(problem.spec.num_layers, problem.prompt_tokens, link_bytes_per_s=slowest)
    says = (
        f"{problem.spec.num_layers} layers, a prompt of {problem.prompt_tokens} tokens and a slowest link of "
        f"{slowest * 8 / 1e9:.3g} Gbit/s: it says {rule}"
    )
    if rule == shape_of(layout):
        return [f"{says}, as the estimate does"]
    objective = msgspec.structs.replace(problem.request.objective, strategy=rule)
    request = msgspec.structs.replace(
        problem.request, objective=objective, replicas=1, stages=None, tensor=None, tensor_parallel_sizes=()
    )
    varied = problem.varied(request=request)
    found = [each for each in candidates(varied) if shape_of(each) == rule]
    if not found:
        return [f"{says}, of which no layout fits here"]
    best = min((varied.estimate(each) for each in found), key=lambda each: objective_value(problem, each))
    loss = objective_value(problem, best) / objective_value(problem, estimate) - 1
    return [
        f"{says}; the best {rule} is estimated at {value_words(problem, best)}, {loss:.1%} worse than the "
        f"{shape_of(layout)} that was taken ({value_words(problem, estimate)})"
        if loss > 0
        else f"{says}; the best {rule} is estimated at {value_words(problem, best)}, no worse: what was asked for "
        f"decided, not the estimate"
    ]


# --- what it rests on ---------------------------------------------------------------------------------


def _constants(problem: Problem, layouts: list[Layout], now_s: float | None) -> list[str]:
    """Every constant of the estimate: measured, and when, or from the table."""
    serving = problem.serving

    def when(at_s: float | None) -> str:
        if at_s is None:
            return "measured"
        return f"measured {age_words(now_s - at_s) if now_s is not None else moment_words(at_s)}"

    by_words: dict[str, list[str]] = {}
    for place in dict.fromkeys(place for layout in layouts for place in layout.places):
        rates = rates_of(place.device, serving.dtype, serving.quantisation)
        probe = place.device.probe
        source = (
            when(probe.measured_at_s if probe is not None else None) if rates.is_measured else _table_words(place)
        )
        words = (
            f"reads {rates.read_bytes_per_s / 1e9:.4g} GB/s, {rates.decode_flops_per_s / 1e12:.3g} TFLOP/s "
            f"decoding and {rates.prefill_flops_per_s / 1e12:.3g} in prefill: {source}"
        )
        by_words.setdefault(words, []).append(place.name)
    lines = [f"{list_words(names)} {words}" for words, names in by_words.items()]
    lines += _link_constants(problem, layouts, when)
    lines += _launch_constants(layouts, serving, when)
    lines += _rehearsals(problem, layouts, when)
    lines.append(
        f"gateway and drawing {seconds_words(turn_s(1))} a step, {seconds_words(turn_s(2) - turn_s(1))} for each "
        f"further token in it, more on slow cores; a request's way {seconds_words(REQUEST_S)}, or "
        f"{seconds_words(WARM_REQUEST_S)} to rehearsed devices: "
        "table defaults"
    )
    carriers = sorted(
        {carrier_between(pair, problem.links) for layout in layouts for pair in _linked_places(layout)}
    )
    lines += [
        f"carrier {carrier}: {seconds_words(CARRIERS[carrier].message_s)} a message, "
        f"{seconds_words(CARRIERS[carrier].all_reduce_s)} an all-reduce: table defaults, where a link's own "
        "measurement does not contain them"
        for carrier in carriers
    ]
    lines.append(_corrections(problem, layouts))
    return lines


def _rehearsals(problem: Problem, layouts: list[Layout], when: Callable[[float | None], str]) -> list[str]:
    """Devices that have passed through this model's layers, which goes before all their other constants."""
    spec, serving = problem.spec, problem.serving
    by_words: dict[str, list[str]] = {}
    for place in dict.fromkeys(place for layout in layouts for place in layout.places):
        known = rehearsal_of(place.device.probe, spec, serving.dtype, serving.quantisation, parts=1)
        if known is None:
            continue
        rests = rests_of(known)
        rest = f", {seconds_words(rests[-1][1])} more after a rest" if rests else ""
        words = (
            f"rehearsed {spec.name}: {seconds_words(known.steps[0].seconds)} a layer for one token{rest}, "
            f"{seconds_words(known.heads[0].seconds)} for the head: {when(known.measured_at_s)}"
        )
        by_words.setdefault(words, []).append(place.name)
    return [f"{list_words(names)} {words}" for words, names in by_words.items()]


def _launch_constants(layouts: list[Layout], serving: Serving, when: Callable[[float | None], str]) -> list[str]:
    """What launching a layer takes, by whether thin layers were probed on the device."""
    by_words: dict[str, list[str]] = {}
    for place in dict.fromkeys(place for layout in layouts for place in layout.places):
        seconds = rates_of(place.device, serving.dtype, serving.quantisation).layer_overhead_s
        probe = place.device.probe
        is_probed = probe is not None and probed_overheads(probe, serving.dtype, serving.quantisation) is not None
        source = when(probe.measured_at_s) if probe is not None and is_probed else "table default"
        by_words.setdefault(f"launches a layer in {seconds_words(seconds)}: {source}", []).append(place.name)
    return [f"{list_words(names)} {words}" for words, names in by_words.items()]


def _table_words(place: Place) -> str:
    nominal, efficiency = nominal_of(place.device), EFFICIENCY[place.device.kind]
    nominal_words = f"{efficiency.memory:.0%} of {nominal.read_bytes_per_s / 1e9:.4g} GB/s"
    return f"table default for `{place.device.name}` ({nominal_words})"


def _link_constants(problem: Problem, layouts: list[Layout], when: Callable[[float | None], str]) -> list[str]:
    by_words: dict[str, list[str]] = {}
    for layout in layouts:
        for a, b in _linked_places(layout):
            link = link_between(a, b, problem.plain_links)
            source = when(link.measured_at_s) if link.is_measured else "table default"
            words = f"{seconds_words(link.latency_s)} and {link.bytes_per_s * 8 / 1e9:.3g} Gbit/s: {source}"
            name = f"inside {a.host}" if a.host == b.host else f"{a.host}>{b.host}"
            names = by_words.setdefault(words, [])
            if name not in names:
                names.append(name)
    listed = [f"link {list_words(names)} {words}" for words, names in by_words.items()]
    more = [f"and links of {len(listed) - MAX_CONSTANTS} other kinds"] if len(listed) > MAX_CONSTANTS else []
    return listed[:MAX_CONSTANTS] + more


def _corrections(problem: Problem, layouts: list[Layout]) -> str:
    calibration = problem.calibration
    parts = sorted(
        {
            name
            for layout in layouts
            for part in problem.estimate(layout).time_per_token_parts
            for name in corrections_of(part)
        }
    )
    told = [
        f"{name} x{math.exp(calibration.corrections[name]):.2f}"
        for name in parts
        if abs(calibration.corrections.get(name, 0.0)) > LEAST_GAIN
    ]
    if not calibration.num_runs:
        return "no run was measured here yet: all of them are taken as they are"
    figures = "1 figure" if calibration.num_runs == 1 else f"{calibration.num_runs} figures"
    return f"corrected by {figures} measured here: {list_words(told, most=8) or 'nothing to correct'}"
