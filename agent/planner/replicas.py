"""Which devices each replica stands on: an exact search while it is quick, packing by domain above. Pure.

Up to `EXACT_DEVICES` devices, every replica is the best layout of the devices that are left. A larger fleet is
packed by domain as `planner.fleet` does, in pipelines and in groups within hosts; where a few replicas are asked
for, they are also searched for among the fastest hosts. What is better by the estimate is taken.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import msgspec

from agent.errors import FleetError
from agent.planner.advise import choose_layout
from agent.planner.cost import Estimate
from agent.planner.fleet import (
    DOMAIN_HOSTS,
    Seatings,
    Signature,
    fleet_layouts,
    fleet_of,
    plan_fleet,
    seat_sizes,
)
from agent.planner.layout import Layout, Place
from agent.planner.problem import Problem, is_allowed, objective_value, pinned_hosts
from agent.planner.propose import candidates
from agent.planner.shards import shard_weight_bytes, whole_extent
from agent.planner.tensor import decode_speed

EXACT_DEVICES = 128
"""Most devices that one exact search is given: 0.2 s there, four times as much for twice as many."""
EXACT_WORK = 16 * EXACT_DEVICES**2
"""Most of devices squared times replicas that exact searches are given, one after another."""
SPARE_DOMAINS = 4
"""Domains that are searched beside as many as replicas are asked for."""
MAX_PARTITIONED_HOSTS = 8
MAX_PARTITIONS = 32
"""Up to here, kinds and numbers of hosts are divided in every way: a host more is then never a loss."""

Chosen = list[tuple[Layout, Estimate]]
ReplicaCount = int | Literal["max"]


def choose_replicas(problem: Problem) -> Chosen | None:
    """A layout per replica on devices of its own; None when they do not fit.

    As many as were asked for. `max` is as many as serve the most tokens per second for throughput, and for other
    objectives as many as fit. Raises FleetError E602 where so many devices can only be packed, and packing does not
    make what is asked for.
    """
    count = problem.request.replicas
    found = [each for each in _ways(problem) if each and (count == "max" or len(each) == count)]
    limit = _why_not_packed(problem) or _packed_within_hosts(problem)
    if not found and is_large(problem) and limit and not _is_searched(problem):
        raise FleetError(
            "E602",
            f"{len(problem.places)} devices are more than the {EXACT_DEVICES} that are searched for replicas with "
            f"{limit}",
            hint="leave it out, ask for fewer replicas, or narrow --hosts",
        )
    return min(found, key=lambda chosen: _worth(problem, chosen), default=None)


def is_large(problem: Problem) -> bool:
    """Whether there are too many devices, or replicas, to search all of them exactly."""
    count = problem.request.replicas
    replicas = _most_replicas(problem) if count == "max" else count
    size = len(problem.places)
    return size > EXACT_DEVICES or size**2 * replicas > EXACT_WORK


def domain_values(problem: Problem, label: str) -> dict[str, str]:
    """Value of a label by host, those without one left out."""
    return {host.name: host.labels[label] for host in problem.request.facts.hosts if host.labels.get(label)}


def _ways(problem: Problem) -> Iterator[Chosen | None]:
    """Sets of replicas to choose among; some may be too few."""
    request = problem.request
    count = request.replicas
    if is_large(problem):
        yield from _from_fleet(problem)
        if _is_searched(problem):
            yield _one_by_one(problem, _shortlisted(problem), count)
        return
    if request.spread and not request.domain and count != "max":
        yield _choose_each([problem.varied(places=places) for places in _deal_domains(problem, count)])
        return
    first = _one_by_one(problem, _pools(problem), count)
    yield first
    if count == 1:
        return
    yield from _from_fleet(problem)
    if count != "max":
        if len(first) < count and not request.domain:
            yield _choose_each([problem.varied(places=places) for places in _deal_places(problem, count)])
    elif request.objective.kind == "throughput" and not (request.spread or request.domain):
        yield _partitioned(problem)


def _worth(problem: Problem, chosen: Chosen) -> tuple[float, ...]:
    """Least is best: tokens per second of all together, else the number of replicas and the slowest of them."""
    if problem.request.objective.kind == "throughput":
        return (-sum(estimate.tokens_per_s for _, estimate in chosen),)
    values = sorted((objective_value(problem, estimate) for _, estimate in chosen), reverse=True)
    return (-len(chosen), *values)


def _is_searched(problem: Problem) -> bool:
    """Whether so few replicas are asked for that they may be searched for among the fastest hosts."""
    count = problem.request.replicas
    return count != "max" and EXACT_DEVICES**2 * count <= EXACT_WORK


def _most_replicas(problem: Problem) -> int:
    """No more than memory could hold, weights alone counted."""
    spec, serving = problem.spec, problem.serving
    model_bytes = shard_weight_bytes(spec, whole_extent(spec), serving.dtype, serving.quantisation)
    return max(1, sum(problem.usable_bytes(place) for place in problem.places) // model_bytes)


# --- one after another --------------------------------------------------------------------------------


def _pools(problem: Problem) -> list[tuple[Place, ...]]:
    """Devices that may serve one replica together: those of a domain where one is named, else all."""
    label = problem.request.domain or (problem.request.spread if problem.request.replicas == "max" else "")
    return _by_value(problem, label) if label else [problem.places]


def _by_value(problem: Problem, label: str) -> list[tuple[Place, ...]]:
    values = domain_values(problem, label)
    pools: dict[str, list[Place]] = {}
    for place in problem.places:
        if place.host in values:
            pools.setdefault(values[place.host], []).append(place)
    return [tuple(pool) for pool in pools.values()]


def _one_by_one(problem: Problem, pools: Sequence[tuple[Place, ...]], count: ReplicaCount) -> Chosen:
    """The best replica of any pool, then the best of what is left, until there are enough or nothing fits."""
    values = domain_values(problem, problem.request.spread) if problem.request.spread else {}
    left = list(pools)
    best: dict[int, tuple[Layout, Estimate] | None] = {}
    chosen: Chosen = []
    while count == "max" or len(chosen) < count:
        best |= {index: _best(problem, pool) for index, pool in enumerate(left) if index not in best}
        ranked = [(objective_value(problem, found[1]), index) for index, found in best.items() if found is not None]
        if not ranked:
            break
        taken = best[min(ranked)[1]]
        assert taken is not None, "only pools with a layout are ranked"
        chosen.append(taken)
        used, closed = set(taken[0].places), {values.get(host) for host in taken[0].hosts} - {None}
        for index, pool in enumerate(left):
            kept = tuple(
                place for place in pool if place not in used and not (values and values.get(place.host) in closed)
            )
            if len(kept) < len(pool):
                left[index] = kept
                del best[index]
    return chosen


def _best(problem: Problem, places: tuple[Place, ...]) -> tuple[Layout, Estimate] | None:
    if not places:
        return None
    varied = problem if places == problem.places else problem.varied(places=places)
    return choose_layout(varied, candidates(varied))


def _choose_each(dealt: list[Problem]) -> Chosen | None:
    found = [_best(share, share.places) for share in dealt if share.places]
    best = [each for each in found if each is not None]
    return best if len(best) == len(dealt) else None


def _deal_places(problem: Problem, count: int) -> list[tuple[Place, ...]]:
    """Hosts' devices dealt into `count` hands, largest first to the hand with the least memory."""
    hands: list[list[Place]] = [[] for _ in range(count)]
    for place in sorted(problem.places, key=lambda place: (-place.device.usable_bytes, place.name)):
        min(hands, key=lambda hand: sum(other.device.usable_bytes for other in hand)).append(place)
    return [tuple(place for place in problem.places if place in hand) for hand in hands]


def _deal_domains(problem: Problem, count: int) -> list[tuple[Place, ...]]:
    """Whole fault domains dealt into `count` hands, largest first to the hand with the least memory."""
    domain = domain_values(problem, problem.request.spread)
    by_domain: dict[str, list[Place]] = {}
    for place in problem.places:
        if place.host in domain:
            by_domain.setdefault(domain[place.host], []).append(place)
    memory = {name: sum(place.device.usable_bytes for place in places) for name, places in by_domain.items()}
    hands: list[list[str]] = [[] for _ in range(count)]
    for name in sorted(by_domain, key=lambda name: (-memory[name], name)):
        min(hands, key=lambda hand: sum(memory[other] for other in hand)).append(name)
    return [tuple(place for place in problem.places if domain.get(place.host) in hand) for hand in hands]


# --- every division of a few hosts --------------------------------------------------------------------


def _partitioned(problem: Problem) -> Chosen | None:
    """The most throughput over every division of the hosts into parts that serve one replica each.

    It is for hosts of one device and equal links, which are told apart by what they are and not by which. There a
    host more never serves less. None elsewhere, and where there are too many ways.
    """
    by_host: dict[str, list[Place]] = {}
    for place in problem.places:
        by_host.setdefault(place.host, []).append(place)
    kinds: dict[tuple[object, ...], list[str]] = {}
    for host, own in by_host.items():
        kinds.setdefault(tuple(place.device for place in own), []).append(host)
    names = list(kinds.values())
    ways = math.prod(len(hosts) + 1 for hosts in names)
    is_simple = len(by_host) == len(problem.places) and problem.links.are_equal
    if not is_simple or len(by_host) > MAX_PARTITIONED_HOSTS or ways > MAX_PARTITIONS:
        return None
    whole = tuple(len(hosts) for hosts in names)
    alone: dict[tuple[int, ...], float] = {}
    for part in itertools.product(*(range(count + 1) for count in whole)):
        # Any hosts of these kinds do, so the first ones of each are searched.
        hosts = {host for count, alike in zip(part, names, strict=True) for host in alike[:count]}
        places = tuple(place for place in problem.places if place.host in hosts)
        found = _one_by_one(problem, [places], 1)
        alone[part] = sum(estimate.tokens_per_s for _, estimate in found)
    best: dict[tuple[int, ...], tuple[float, list[tuple[int, ...]]]] = {}
    for total in sorted(alone, key=sum):
        best[total] = alone[total], [total]
        for part, served in alone.items():
            if 0 < sum(part) < sum(total) and all(a <= b for a, b in zip(part, total, strict=True)):
                rest = tuple(b - a for a, b in zip(part, total, strict=True))
                rate = served + best[rest][0]
                if rate > best[total][0] * (1 + 1e-9):
                    best[total] = rate, [part, *best[rest][1]]
    queues = [list(hosts) for hosts in names]
    chosen: Chosen = []
    for part in best[whole][1]:
        taken = {queue.pop(0) for count, queue in zip(part, queues, strict=True) for _ in range(count)}
        chosen += _one_by_one(problem, [tuple(place for place in problem.places if place.host in taken)], 1)
    return chosen


# --- large fleets -------------------------------------------------------------------------------------


def _why_not_packed(problem: Problem) -> str:
    """What of a request packing does not make, in words; empty where it may make what is wanted."""
    request = problem.request
    reasons = [
        "--stages" if request.stages is not None else "",
        "--tensor of each stage" if request.tensor_parallel_sizes else "",
        "--pin" if request.pinned else "",
    ]
    if request.objective.strategy in {plugin.name for plugin in request.plugins}:
        reasons.append(f"--strategy {request.objective.strategy}")
    return next((reason for reason in reasons if reason), "")


def _packed_within_hosts(problem: Problem) -> str:
    """What of a request is packed within hosts only, where a search would try it across them."""
    request = problem.request
    if request.objective.strategy in {"tensor", "hybrid"}:
        return f"--strategy {request.objective.strategy}"
    return "--tensor" if request.tensor is not None else ""


def _from_fleet(problem: Problem) -> Iterator[Chosen]:
    """Copies by domain, as many as are asked for; those that break a limit left out.

    Where hosts have several devices, each domain takes them one by one or in groups as `_ways_taken` says.
    """
    if _why_not_packed(problem):
        return
    fleets = [fleet_of(problem, seat_size=size) for size in seat_sizes(problem)]
    if len(fleets) == 1:
        yield _wanted(problem, _admitted(problem, fleet_layouts(fleets[0], plan_fleet(fleets[0]))))
        return
    seatings = Seatings(fleets)
    for taken in _ways_taken(problem, seatings):
        yield _wanted(problem, _admitted(problem, seatings.layouts(taken)))


def _ways_taken(problem: Problem, seatings: Seatings) -> Iterator[dict[tuple[Signature, ...], int]]:
    """By kind of domain, which of its ways to sit: what is worth most.

    Where a number of copies is asked for, also what has that many as good as can be: the least limit such that all
    domains together have enough copies within it, and in each the way that has the most.
    """
    count = problem.request.replicas
    admitted = {key: [_admitted(problem, way) for way in ways] for key, (_, ways) in seatings.ways.items()}
    worth = {key: [_worth(problem, way) for way in ways] for key, ways in admitted.items()}
    yield {key: own.index(min(own)) for key, own in worth.items()}
    if count == "max":
        return
    values = {
        key: [sorted(objective_value(problem, estimate) for _, estimate in way) for way in ways]
        for key, ways in admitted.items()
    }
    limits = sorted({value for ways in values.values() for way in ways for value in way})

    def has_enough(index: int) -> bool:
        most = (num * max(bisect_right(way, limits[index]) for way in values[key]) for key, num in numbers.items())
        return sum(most) >= count

    numbers = {key: num_domains for key, (num_domains, _) in seatings.ways.items()}
    least = bisect_left(range(len(limits)), True, key=has_enough)
    if least < len(limits):
        within = {key: [bisect_right(way, limits[least]) for way in ways] for key, ways in values.items()}
        yield {key: own.index(max(own)) for key, own in within.items()}


def _admitted(problem: Problem, layouts: list[Layout]) -> Chosen:
    """Those that keep every limit, with their estimates."""
    request = problem.request
    admitted = []
    for layout in layouts:
        if len(layout.hosts) < request.min_hosts or len(layout.places) < 1 + _needs_two(problem):
            continue
        if len(layout.hosts) > (request.max_hosts or len(layout.hosts)) or not problem.fits(layout):
            continue
        if request.objective.strategy == "tensor" and len(layout.stages) > 1:
            continue
        estimate = problem.estimate(layout)
        if is_allowed(request, layout, estimate):
            admitted.append((layout, estimate))
    return admitted


def _wanted(problem: Problem, chosen: Chosen) -> Chosen:
    """The best of these copies, as many as are asked for, each in a fault domain of its own where that is asked."""
    request = problem.request
    chosen = sorted(chosen, key=lambda pair: (objective_value(problem, pair[1]), pair[0].places[0].name))
    if request.spread:
        values = domain_values(problem, request.spread)
        seen: set[str] = set()
        spread: Chosen = []
        for layout, estimate in chosen:
            own = {values[host] for host in layout.hosts}
            if not own & seen:
                spread.append((layout, estimate))
                seen |= own
        chosen = spread
    return chosen if request.replicas == "max" else chosen[: request.replicas]


def _needs_two(problem: Problem) -> bool:
    return problem.is_forced


def _shortlisted(problem: Problem) -> list[tuple[Place, ...]]:
    """The fastest hosts, as many as one exact search takes, pinned ones first; by domain where one counts."""
    request = problem.request
    assert request.replicas != "max", "few replicas are searched for"
    speeds: dict[object, float] = {}

    def speed(place: Place) -> float:
        key = msgspec.structs.replace(place.device, id="")
        if key not in speeds:
            speeds[key] = decode_speed(problem, place)
        return speeds[key]

    label = request.domain or request.spread
    if label:
        pools = [_fastest(pool, speed, EXACT_DEVICES) for pool in _by_value(problem, label)]
        # What a replica will stand on are the fastest devices of its domain.
        pools.sort(key=lambda pool: -sum(sorted(map(speed, pool), reverse=True)[:DOMAIN_HOSTS]))
        return pools[: request.replicas + SPARE_DOMAINS]
    pinned = pinned_hosts(request)
    first = {place for place in problem.places if place.host in pinned}
    rest = tuple(place for place in problem.places if place.host not in pinned)
    taken = first | set(_fastest(rest, speed, max(0, EXACT_DEVICES - len(first))))
    return [tuple(place for place in problem.places if place in taken)]


def _fastest(places: Sequence[Place], speed: Callable[[Place], float], most: int) -> tuple[Place, ...]:
    """Devices of the fastest hosts, whole ones, at most so many; in the order that they had."""
    by_host: dict[str, list[Place]] = {}
    for place in places:
        by_host.setdefault(place.host, []).append(place)
    taken: list[Place] = []
    for own in sorted(by_host.values(), key=lambda own: -max(map(speed, own))):
        if len(taken) + len(own) > most:
            break
        taken += own
    chosen = set(taken)
    return tuple(place for place in places if place in chosen)
