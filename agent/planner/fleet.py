"""Copies of a model over a whole fleet: thousands of hosts in well under a second, one domain at a time. Pure.

Devices of one domain (a rack; links inside it are taken as equal) are dealt into groups that hold the model, and
each group's layers are split so that its slowest stage is as fast as can be. With equal links that split is water
filling, exact by bisection, and it is done for all groups of all domains in one go. Domains that have the same
devices are planned once: their signature, how many of each kind they have, is remembered. What single domains leave
over is dealt once more across them. A lost host changes its own domain, and groups across domains that touch it.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from agent.errors import FleetError
from agent.facts.cluster import DeviceFacts
from agent.planner.bound import Curve, counting_bound
from agent.planner.cost import decode_step, stage_cost
from agent.planner.layout import Layout, Place, StageLayout, cut_shares
from agent.planner.order import domain_of
from agent.planner.problem import Problem
from agent.planner.split import Floats, Ints

DOMAIN_HOSTS = 32
"""Hosts of a domain where labels tell of none: as many as a rack holds."""
TRIED_COUNTS = 4
"""Numbers of groups tried for a signature: the most that memory allows, and fewer."""
BISECTIONS = 48
ACROSS = -1
"""The domain of a group whose devices are of several."""
NOWHERE = -2
"""The domain of devices that may not be used: their host lacks the label that names domains."""

Signature = tuple[int, ...]
Share = tuple[tuple[int, ...], tuple[int, ...], float]
"""Kinds of a group's devices in order, the layers of each, and seconds of its slowest stage."""


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """The devices of a problem as numbers. Arrays are by kind of device, but for `kind` and `domain`, by place."""

    places: tuple[Place, ...]
    kind: Ints
    domain: Ints
    layer_s: Floats
    first_s: Floats
    last_s: Floats
    cap_first: Ints
    cap_middle: Ints
    cap_last: Ints
    cap_only: Ints
    num_layers: int
    num_kv_heads: int
    most_places: int | None = None
    """Most devices of one group."""
    is_confined: bool = False
    """Whether groups may not stand in several domains."""


class FleetGroup(msgspec.Struct, frozen=True, kw_only=True):
    """One copy of the model: numbers of its places in stage order, their layers, its slowest stage, its domain."""

    places: tuple[int, ...]
    layers: tuple[int, ...]
    slowest_s: float
    domain: int


class FleetPlan(msgspec.Struct, frozen=True, kw_only=True):
    """All copies, and the places that are lost. `known` remembers signatures for the next plan."""

    groups: tuple[FleetGroup, ...]
    known: dict[Signature, tuple[Share, ...]]
    lost: frozenset[int] = frozenset()

    @property
    def passes_per_s(self) -> float:
        """Steps per second that all copies finish together: their throughput for a batch of one in each stage."""
        return sum(1 / group.slowest_s for group in self.groups)


def fleet_of(problem: Problem) -> Fleet:
    """A problem's devices by domain and kind, with what a stage on each takes and holds."""
    places = problem.places
    kinds: dict[DeviceFacts, int] = {}
    samples: list[Place] = []
    kind = np.empty(len(places), dtype=np.int64)
    for index, place in enumerate(places):
        key = msgspec.structs.replace(place.device, id="")
        if key not in kinds:
            kinds[key] = len(samples)
            samples.append(place)
        kind[index] = kinds[key]
    caps = np.array([_caps(problem, place) for place in samples], dtype=np.int64)
    stages = max(1, math.ceil(problem.spec.num_layers / max(1, int(np.median(caps[kind, 1])))))
    rows = math.ceil(problem.serving.batch / min(stages, problem.serving.batch))
    costs = [
        stage_cost(
            problem.spec,
            (place,),
            (problem.spec.num_kv_heads,),
            step=decode_step(rows, problem.prompt_tokens),
            dtype=problem.serving.dtype,
            links=problem.links,
            quantisation=problem.serving.quantisation,
        )
        for place in samples
    ]
    return Fleet(
        places=places,
        kind=kind,
        domain=_domains(problem),
        layer_s=np.array([cost.layer_s for cost in costs]),
        first_s=np.array([cost.first_s for cost in costs]),
        last_s=np.array([cost.last_s for cost in costs]),
        cap_first=caps[:, 0],
        cap_middle=caps[:, 1],
        cap_last=caps[:, 2],
        cap_only=caps[:, 3],
        num_layers=problem.spec.num_layers,
        num_kv_heads=problem.spec.num_kv_heads,
        most_places=problem.request.max_hosts,
        is_confined=bool(problem.request.domain or problem.request.spread),
    )


def plan_fleet(fleet: Fleet, *, known: dict[Signature, tuple[Share, ...]] | None = None) -> FleetPlan:
    """As many tokens per second as copies over the fleet give, domain by domain, leftovers across them."""
    remembered = dict(known or {})
    members = _members(fleet, range(len(fleet.places)), lost=frozenset())
    members.pop(NOWHERE, None)
    groups = _grouped(fleet, members, remembered)
    if not fleet.is_confined:
        groups += _across(fleet, groups, lost=frozenset(), known=remembered)
    return FleetPlan(groups=tuple(groups), known=remembered)


def without_host(fleet: Fleet, plan: FleetPlan, host: str) -> FleetPlan:
    """The plan after a host is lost: its domain anew, and groups across domains that had a device of this domain.

    Raises FleetError E106 when no device of the fleet is on such a host.
    """
    gone = [index for index, place in enumerate(fleet.places) if place.host == host]
    if not gone:
        raise FleetError("E106", f"no device of the fleet is on host `{host}`")
    lost = plan.lost | set(gone)
    touched = set(fleet.domain[gone].tolist())
    kept = [group for group in plan.groups if not _touches(fleet, group, touched)]
    known = dict(plan.known)
    affected = np.flatnonzero(np.isin(fleet.domain, list(touched))).tolist()
    own = _grouped(fleet, _members(fleet, affected, lost=lost), known)
    again = [] if fleet.is_confined else _across(fleet, [*kept, *own], lost=lost, known=known)
    return FleetPlan(groups=(*kept, *own, *again), known=known, lost=lost)


def fleet_layouts(fleet: Fleet, plan: FleetPlan) -> list[Layout]:
    """The copies as layouts, fastest first; ties go to the names of their devices."""
    ordered = sorted(plan.groups, key=lambda group: (group.slowest_s, group.places))
    return [_layout(fleet, group) for group in ordered]


def fleet_bound(fleet: Fleet) -> float:
    """Steps per second that no division of the fleet exceeds: the counting bound over kinds of devices."""
    counts = np.bincount(fleet.kind, minlength=len(fleet.layer_s))
    curves = [
        Curve(
            tokens_per_s=tuple((1 / (layer_s * np.arange(1, min(cap, fleet.num_layers) + 1))).tolist()),
            count=int(count),
        )
        for layer_s, cap, count in zip(fleet.layer_s, fleet.cap_middle, counts, strict=True)
    ]
    return counting_bound(curves, fleet.num_layers)


# --- dealing ------------------------------------------------------------------------------------------


def _members(fleet: Fleet, indices: Iterable[int], *, lost: frozenset[int]) -> dict[int, list[int]]:
    """Places by domain, those lost left out."""
    members: dict[int, list[int]] = {}
    domains = fleet.domain.tolist()
    for index in indices:
        if index not in lost:
            members.setdefault(domains[index], []).append(index)
    return members


def _grouped(
    fleet: Fleet, members: dict[int, list[int]], known: dict[Signature, tuple[Share, ...]]
) -> list[FleetGroup]:
    """Groups of each of these domains. What is not known yet is planned for all of them at once."""
    kinds = fleet.kind.tolist()
    queues: dict[int, list[list[int]]] = {}
    for domain, indices in members.items():
        by_kind: list[list[int]] = [[] for _ in fleet.layer_s]
        for index in reversed(indices):
            by_kind[kinds[index]].append(index)
        queues[domain] = by_kind
    signatures = {domain: tuple(map(len, by_kind)) for domain, by_kind in queues.items()}
    _learn(fleet, [each for each in dict.fromkeys(signatures.values()) if each not in known], known)
    groups = []
    for domain, by_kind in queues.items():
        for shape, layers, slowest_s in known[signatures[domain]]:
            places = tuple(by_kind[kind].pop() for kind in shape)
            groups.append(FleetGroup(places=places, layers=layers, slowest_s=slowest_s, domain=domain))
    return groups


def _across(
    fleet: Fleet,
    groups: Sequence[FleetGroup],
    *,
    lost: frozenset[int],
    known: dict[Signature, tuple[Share, ...]],
) -> list[FleetGroup]:
    """Groups of what domains left over, from as few neighbouring domains as hold the model together."""
    used = np.zeros(len(fleet.places), dtype=bool)
    used[list(lost)] = True
    for group in groups:
        used[list(group.places)] = True
    left = np.flatnonzero(~used)
    left = left[np.argsort(fleet.domain[left], kind="stable")].tolist()
    caps, kinds = fleet.cap_middle.tolist(), fleet.kind.tolist()
    pools: dict[int, list[int]] = {0: []}
    held = 0
    for index in left:
        if held >= fleet.num_layers + max(caps):
            pools[len(pools)], held = [], 0
        pools[len(pools) - 1].append(index)
        held += caps[kinds[index]]
    found = _grouped(fleet, pools, known)
    return [msgspec.structs.replace(group, domain=ACROSS) for group in found]


def _touches(fleet: Fleet, group: FleetGroup, domains: set[int]) -> bool:
    if group.domain != ACROSS:
        return group.domain in domains
    return any(int(fleet.domain[index]) in domains for index in group.places)


def _learn(fleet: Fleet, signatures: Sequence[Signature], known: dict[Signature, tuple[Share, ...]]) -> None:
    """Plan every signature: try a few numbers of groups, fill all of them at once, keep the best number."""
    tried: list[tuple[Signature, list[list[int]]]] = []
    for signature in signatures:
        tried += [(signature, dealt) for dealt in _deals(fleet, signature)]
    filled = _fill(fleet, [kinds for _, dealt in tried for kinds in dealt])
    shares = iter(filled)
    best: dict[Signature, tuple[float, tuple[Share, ...]]] = dict.fromkeys(signatures, (-1.0, ()))
    for signature, dealt in tried:
        found = tuple(share for share in itertools.islice(shares, len(dealt)) if share is not None)
        rate = sum(1 / slowest_s for _, _, slowest_s in found)
        if rate > best[signature][0]:
            best[signature] = rate, found
    known.update({signature: found for signature, (_, found) in best.items()})


def _deals(fleet: Fleet, signature: Signature) -> list[list[list[int]]]:
    """Ways to deal these devices into groups: alone where one holds the model, the rest into several numbers."""
    alone = [[kind] for kind, count in enumerate(signature) for _ in range(count) if _holds_all(fleet, kind)]
    rest = [kind for kind, count in enumerate(signature) for _ in range(count) if not _holds_all(fleet, kind)]
    caps = fleet.cap_middle.tolist()
    rest = sorted((kind for kind in rest if caps[kind] > 0), key=lambda kind: (-caps[kind], kind))
    pools = [rest]
    if fleet.most_places is not None:
        # Of devices that hold their part each, any few are a group; with smaller ones, only some few.
        pools.append([kind for kind in rest if caps[kind] * fleet.most_places >= fleet.num_layers])
    deals = [alone]
    for pool in pools:
        most = sum(caps[kind] for kind in pool) // fleet.num_layers
        for count in range(max(1, most - TRIED_COUNTS + 1), most + 1):
            hands = (hand[: fleet.most_places] for hand in _dealt(pool, caps, count))
            deals.append([*alone, *hands])
    return deals


def _dealt(kinds: Sequence[int], caps: Sequence[int], count: int) -> list[list[int]]:
    """Kinds into `count` hands, largest first to the hand that holds the fewest layers."""
    hands: list[list[int]] = [[] for _ in range(count)]
    fullness = [(0, hand) for hand in range(count)]
    for kind in kinds:
        held, hand = fullness[0]
        heapq.heapreplace(fullness, (held + caps[kind], hand))
        hands[hand].append(kind)
    return hands


def _holds_all(fleet: Fleet, kind: int) -> bool:
    return int(fleet.cap_only[kind]) >= fleet.num_layers


# --- water filling ------------------------------------------------------------------------------------


def _fill(fleet: Fleet, groups: Sequence[Sequence[int]]) -> list[Share | None]:
    """Layers of each group's devices such that its slowest stage is as fast as can be; None where memory lacks.

    The fastest device is the last stage and has the head, the next fastest is the first and has the embedding.
    """
    if not groups:
        return []
    layer_s = fleet.layer_s.tolist()
    ordered = [_stage_order(kinds, layer_s) for kinds in groups]
    width = max(map(len, ordered))
    kind = np.full((len(ordered), width), -1)
    for row, kinds in enumerate(ordered):
        kind[row, : len(kinds)] = kinds
    sizes = (kind >= 0).sum(axis=1)
    column = np.arange(width)
    is_member = column < sizes[:, None]
    is_first = np.broadcast_to(column == 0, kind.shape)
    is_last = column == sizes[:, None] - 1
    is_only = is_first & is_last
    caps = np.select(
        [~is_member, is_only, is_first, is_last],
        [0, fleet.cap_only[kind], fleet.cap_first[kind], fleet.cap_last[kind]],
        fleet.cap_middle[kind],
    )
    fixed_s = np.where(is_first, fleet.first_s[kind], 0.0) + np.where(is_last, fleet.last_s[kind], 0.0)
    slowest_s, layers = _water_levels(fleet.layer_s[kind], fixed_s, caps, fleet.num_layers)
    # A first or last stage without layers would leave its embedding or head nowhere.
    needs_layer = is_member & (is_first | is_last)
    fits = (caps.sum(axis=1) >= fleet.num_layers) & ((layers > 0) | ~needs_layer).all(axis=1)
    shares: list[Share | None] = []
    for row, kinds in enumerate(ordered):
        if not fits[row]:
            shares.append(None)
            continue
        taken = layers[row, : len(kinds)].tolist()
        used = [(k, count) for k, count in zip(kinds, taken, strict=True) if count > 0]
        shares.append((tuple(k for k, _ in used), tuple(count for _, count in used), float(slowest_s[row])))
    return shares


def _water_levels(layer_s: Floats, fixed_s: Floats, caps: Ints, num_layers: int) -> tuple[Floats, Ints]:
    """Per row the least time within which devices take `num_layers` together, and the layers of each.

    In time t a device takes floor((t - fixed) / layer) layers, at most its cap; the least t is found by bisection.
    Layers beyond the number wanted are taken back from the slowest. Rows that cannot hold them mean nothing.
    """

    def within(seconds: Floats) -> Ints:
        counts: Ints = np.clip(np.floor((seconds[:, None] - fixed_s) / layer_s + 1e-9), 0, caps).astype(np.int64)
        return counts

    low = np.zeros(len(layer_s))
    high = (fixed_s + caps * layer_s).max(axis=1)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        is_enough = within(middle).sum(axis=1) >= num_layers
        high = np.where(is_enough, middle, high)
        low = np.where(is_enough, low, middle)
    layers = within(high)
    excess = layers.sum(axis=1) - num_layers
    while (rows := np.flatnonzero(excess > 0)).size:
        seconds: Floats = np.where(layers[rows] > 1, fixed_s[rows] + layers[rows] * layer_s[rows], -np.inf)
        is_spare = np.isfinite(seconds).any(axis=1, keepdims=True)
        seconds = np.where(is_spare, seconds, layers[rows])
        layers[rows, seconds.argmax(axis=1)] -= 1
        excess[rows] -= 1
    slowest_s: Floats = np.where(layers > 0, fixed_s + layers * layer_s, 0.0).max(axis=1)
    return slowest_s, layers


def _stage_order(kinds: Sequence[int], layer_s: Sequence[float]) -> list[int]:
    """The next fastest first, the fastest last."""
    by_speed = sorted(kinds, key=lambda kind: (layer_s[kind], kind))
    return [*by_speed[1:], by_speed[0]]


# --- facts --------------------------------------------------------------------------------------------


def _caps(problem: Problem, place: Place) -> tuple[int, int, int, int]:
    """Most layers as a first, middle, last and only stage."""
    share = cut_shares(problem.spec, (problem.spec.num_kv_heads,))[0]
    usable = problem.usable_bytes(place)
    first, middle, last, only = (
        problem.sizes.memory(share, place.device.kind, first=is_first, last=is_last, leads=True).max_layers(usable)
        for is_first, is_last in ((True, False), (False, False), (False, True), (True, True))
    )
    return first, middle, last, only


def _domains(problem: Problem) -> Ints:
    """The number of each place's domain.

    By the labels that a request names, `NOWHERE` for hosts without them; else by those that tell where hosts stand,
    or so many hosts in their order.
    """
    request = problem.request
    named = [label for label in (request.spread, request.domain) if label]
    number: dict[object, int] = {}
    of_host: dict[str, int] = {}
    unlabelled = 0
    for host in request.facts.hosts:
        stands = tuple(host.labels.get(label, "") for label in named) if named else domain_of(host.labels)
        domain: object = stands
        if named and not all(stands):
            of_host[host.name] = NOWHERE
            continue
        if not any(stands):
            domain = unlabelled // DOMAIN_HOSTS
            unlabelled += 1
        of_host[host.name] = number.setdefault(domain, len(number))
    return np.array([of_host[place.host] for place in problem.places], dtype=np.int64)


def _layout(fleet: Fleet, group: FleetGroup) -> Layout:
    ends = list(itertools.accumulate(group.layers))
    return Layout(
        stages=tuple(
            StageLayout(layers=(end - count, end), places=(fleet.places[index],), units=(fleet.num_kv_heads,))
            for index, count, end in zip(group.places, group.layers, ends, strict=True)
        )
    )
