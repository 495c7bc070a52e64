"""Tensor parallelism: who takes how many KV heads of a stage, and one stage for a whole model. Pure.

A group is a composite device: a layer takes as long as its slowest rank, plus two all-reduces. Unequal devices get
unequal shares (3:1 where one is three times as fast), since equal ones would all wait for the slowest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agent.planner.cost import decode_step, group_link, layer_flops, layer_read_bytes, roofline_s
from agent.planner.layout import Layout, Place, StageLayout, cut_shares
from agent.planner.problem import Problem
from agent.planner.rates import rates_of

FAST_LINK_BYTES_PER_S = 3e9
"""From about 25 Gb/s on, reducing every layer across hosts can be worth it; below, only who asks for it gets it."""


def share_units(
    num_units: int, weights: Sequence[float], most: Sequence[int] | None = None
) -> tuple[int, ...] | None:
    """Integer shares of `num_units`, at least 1 and at most `most[i]` each, that minimise the largest share/weight.

    None when the limits leave some over. Greedy, and optimal: each unit goes where it makes the least maximum.
    """
    limits = list(most) if most is not None else [num_units] * len(weights)
    if len(weights) > num_units or sum(limits) < num_units or min(limits) < 1:
        return None
    shares = [1] * len(weights)
    for _ in range(num_units - len(weights)):
        open_ranks = [i for i, share in enumerate(shares) if share < limits[i]]
        taker = min(open_ranks, key=lambda i: ((shares[i] + 1) / weights[i], i))
        shares[taker] += 1
    return tuple(shares)


def decode_speed(problem: Problem, place: Place) -> float:
    """Layers per second of a whole device at a batch of one, overheads left out: the weight of its share."""
    spec, serving = problem.spec, problem.serving
    whole = cut_shares(spec, (spec.num_kv_heads,))[0]
    step = decode_step(1, problem.prompt_tokens)
    read_bytes = layer_read_bytes(spec, whole, step, serving.dtype, serving.quantisation)
    flops = layer_flops(spec, whole, step)
    rates = rates_of(place.device, serving.dtype, serving.quantisation)
    return 1.0 / max(roofline_s(read_bytes, flops, rates, is_prefill=False))


def max_units(problem: Problem, places: Sequence[Place], num_layers: int) -> list[int]:
    """The most KV heads of `num_layers` layers that fit each device of a first and last stage; 0 when none does."""
    return [_max_units(problem, place, num_layers, leads=index == 0) for index, place in enumerate(places)]


def _max_units(problem: Problem, place: Place, num_layers: int, *, leads: bool) -> int:
    spec = problem.spec
    low, high = 0, spec.num_kv_heads
    while low < high:
        units = (low + high + 1) // 2
        if _bytes_of_units(problem, place, units, num_layers, leads=leads) <= problem.usable_bytes(place):
            low = units
        else:
            high = units - 1
    return low


def share_variants(problem: Problem, places: Sequence[Place]) -> tuple[tuple[int, ...], ...]:
    """Ways to share a stage among these devices: by speed, by memory, and by speed as far as a whole model fits."""
    units = problem.spec.num_kv_heads
    if len(places) == 1:
        return ((units,),)
    if len(places) > units:
        return ()
    speeds = [decode_speed(problem, place) for place in places]
    found = [share_units(units, speeds)]
    if len({place.device.usable_bytes for place in places}) > 1:
        found.append(share_units(units, [max(1, place.device.usable_bytes) for place in places]))
        most = max_units(problem, places, problem.spec.num_layers)
        found.append(share_units(units, speeds, most))
    return tuple(dict.fromkeys(variant for variant in found if variant is not None))


def may_span_hosts(problem: Problem, group: Sequence[Place]) -> bool:
    """True when a group on several hosts is worth estimating: its links are fast, or groups are asked for."""
    if problem.is_forced:
        return True
    return group_link(group, problem.links).bytes_per_s >= FAST_LINK_BYTES_PER_S


class TensorStrategy:
    """One stage: every rank holds a part of every layer. Wants fast links between its ranks."""

    name = "tensor"

    def propose(self, problem: Problem) -> list[Layout]:
        request, spec = problem.request, problem.spec
        sizes = request.tensor_parallel_sizes or ((request.tensor,) if request.tensor else ())
        if request.stages not in {None, 1} or len(sizes) > 1:
            return []
        layouts = []
        for group in dict.fromkeys(_groups(problem)):
            num_hosts = len({place.host for place in group})
            if sizes and len(group) != sizes[0]:
                continue
            if num_hosts > 1 and not sizes and not may_span_hosts(problem, group):
                continue
            if num_hosts < request.min_hosts or num_hosts > (request.max_hosts or num_hosts):
                continue
            most = max_units(problem, group, spec.num_layers)
            units = share_units(spec.num_kv_heads, [decode_speed(problem, place) for place in group], most)
            if units is not None:
                stage = StageLayout(layers=(0, spec.num_layers), places=group, units=units)
                layouts.append(Layout(stages=(stage,)))
        return [layout for layout in layouts if problem.fits(layout)]


def _groups(problem: Problem) -> Iterator[tuple[Place, ...]]:
    """Groups worth trying, by growing size: the fastest and the largest devices of each host, then of all hosts."""
    if len(problem.places) == 1:
        yield problem.places
    by_host: dict[str, list[Place]] = {}
    for place in problem.places:
        by_host.setdefault(place.host, []).append(place)
    pools = [pool for pool in by_host.values() if len(pool) > 1]
    if len(by_host) > 1:
        pools.append(list(problem.places))
    speed = {place: decode_speed(problem, place) for place in problem.places}
    for pool in pools:
        order = {place: index for index, place in enumerate(pool)}
        fastest = sorted(pool, key=lambda place: (-speed[place], order[place]))
        largest = sorted(pool, key=lambda place: (-place.device.usable_bytes, order[place]))
        for size in range(2, min(len(pool), problem.spec.num_kv_heads) + 1):
            for ranking in (fastest, largest):
                yield tuple(sorted(ranking[:size], key=order.__getitem__))


def _bytes_of_units(problem: Problem, place: Place, units: int, num_layers: int, *, leads: bool) -> int:
    """Bytes of a rank with this many KV heads of every layer, at the group's begin or end."""
    rest = problem.spec.num_kv_heads - units
    # Rounding gives one and the same count of KV heads a row more or less of the rest, by its place in the group.
    shares = (cut_shares(problem.spec, (units, rest))[0], cut_shares(problem.spec, (rest, units))[1])
    kind = place.device.kind
    memories = (problem.sizes.memory(share, kind, first=True, last=True, leads=leads) for share in shares)
    return max(memory.fixed_bytes + num_layers * memory.layer_bytes for memory in memories)
