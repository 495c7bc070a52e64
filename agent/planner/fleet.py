"""Copies of a model over a whole fleet: thousands of hosts in well under a second, one domain at a time. Pure.

What may hold a stage is a seat: one device, or equal ones of one host that share a stage's layers (tensor
parallelism). Seats of one domain (a rack; links inside it are taken as equal) are dealt into groups that hold the
model, and each group's layers are split so that its slowest stage is as fast as can be. With equal links that split
is water filling, exact by bisection, and it is done for all groups of all domains in one go. Domains that have the
same seats are planned once: their signature, how many of each kind they have, is remembered. What single domains
leave over is dealt once more across them. A lost host changes its own domain, and groups across domains that touch
it.

The same fleet can be seated in devices, pairs, fours …: each domain then takes what serves the objective best.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from agent.errors import FleetError
from agent.facts.cluster import DeviceFacts, LinkFacts
from agent.planner.bound import Curve, counting_bound
from agent.planner.cost import decode_step, group_link, stage_cost
from agent.planner.layout import Layout, Place, StageLayout, cut_shares
from agent.planner.order import domain_of
from agent.planner.problem import Problem
from agent.planner.split import Floats, Ints
from agent.planner.tensor import share_units

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
"""Kinds of a group's seats in order, the layers of each, and seconds of its slowest stage."""


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """The seats of a problem as numbers. Arrays are by kind of seat, but for `kind` and `domain`, by seat."""

    seats: tuple[tuple[Place, ...], ...]
    units: tuple[tuple[int, ...], ...]
    """By kind, KV heads of each device of a seat."""
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
    most_seats: int | None = None
    """Most seats of one group."""
    is_confined: bool = False
    """Whether groups may not stand in several domains."""


class FleetGroup(msgspec.Struct, frozen=True, kw_only=True):
    """One copy of the model: numbers of its seats in stage order, their layers, its slowest stage, its domain."""

    seats: tuple[int, ...]
    layers: tuple[int, ...]
    slowest_s: float
    domain: int


class FleetPlan(msgspec.Struct, frozen=True, kw_only=True):
    """All copies, and the seats that are lost. `known` remembers signatures for the next plan."""

    groups: tuple[FleetGroup, ...]
    known: dict[Signature, tuple[Share, ...]]
    lost: frozenset[int] = frozenset()

    @property
    def passes_per_s(self) -> float:
        """Steps per second that all copies finish together: their throughput for a batch of one in each stage."""
        return sum(1 / group.slowest_s for group in self.groups)


def fleet_of(problem: Problem, *, seat_size: int = 1) -> Fleet:
    """A problem's devices by domain and kind, with what a stage on each takes and holds.

    Above a `seat_size` of 1, equal devices of a host sit together, so many or else the largest power of two that is
    left of them; with a tensor-parallel size asked for, exactly so many, and those left are not seated.
    """
    seats = _seats(problem, seat_size)
    kinds: dict[Hashable, int] = {}
    samples: list[tuple[Place, ...]] = []
    kind = np.empty(len(seats), dtype=np.int64)
    device_kinds = _DeviceKinds()
    for index, seat in enumerate(seats):
        key: Hashable = device_kinds.of(seat[0].device)
        if len(seat) > 1:
            key = (key, len(seat), _own_link(problem, seat))
        if key not in kinds:
            kinds[key] = len(samples)
            samples.append(seat)
        kind[index] = kinds[key]
    units = tuple(_even_units(problem, len(seat)) for seat in samples)
    caps = np.array(
        [_caps(problem, seat, own) for seat, own in zip(samples, units, strict=True)], dtype=np.int64
    ).reshape(-1, 4)
    middle_cap = int(np.median(caps[kind, 1])) if len(seats) else 1
    stages = max(1, math.ceil(problem.spec.num_layers / max(1, middle_cap)))
    rows = math.ceil(problem.serving.batch / min(stages, problem.serving.batch))
    costs = [
        stage_cost(
            problem.spec,
            seat,
            own,
            step=decode_step(rows, problem.prompt_tokens),
            dtype=problem.serving.dtype,
            links=problem.links,
            quantisation=problem.serving.quantisation,
        )
        for seat, own in zip(samples, units, strict=True)
    ]
    return Fleet(
        seats=seats,
        units=units,
        kind=kind,
        domain=_domains(problem, seats),
        layer_s=np.array([cost.layer_s for cost in costs]),
        first_s=np.array([cost.first_s for cost in costs]),
        last_s=np.array([cost.last_s for cost in costs]),
        cap_first=caps[:, 0],
        cap_middle=caps[:, 1],
        cap_last=caps[:, 2],
        cap_only=caps[:, 3],
        num_layers=problem.spec.num_layers,
        # Of one host all seats may be used; of several, as many as hosts, which is sure to keep the limit.
        most_seats=None if problem.request.max_hosts == 1 else problem.request.max_hosts,
        is_confined=bool(problem.request.domain or problem.request.spread) or problem.request.max_hosts == 1,
    )


def plan_fleet(fleet: Fleet, *, known: dict[Signature, tuple[Share, ...]] | None = None) -> FleetPlan:
    """As many tokens per second as copies over the fleet give, domain by domain, leftovers across them."""
    remembered = dict(known or {})
    groups = _grouped(fleet, _all_members(fleet), remembered)
    if not fleet.is_confined:
        groups += _across(fleet, groups, lost=frozenset(), known=remembered)
    return FleetPlan(groups=tuple(groups), known=remembered)


class Seatings:
    """The same devices seated in several ways, of which each domain takes one.

    Domains that have the same seats in each way decide alike: `ways` has of each such kind of domain, by signature,
    how many there are and the layouts of the first one's copies in each way.
    """

    def __init__(self, fleets: Sequence[Fleet]) -> None:
        self._fleets = fleets
        self._known: list[dict[Signature, tuple[Share, ...]]] = [{} for _ in fleets]
        members = [_all_members(fleet) for fleet in fleets]
        self._groups = [_by_domain(_grouped(*each)) for each in zip(fleets, members, self._known, strict=True)]
        signatures = [_signatures(*each) for each in zip(fleets, members, strict=True)]
        self._domains: dict[tuple[Signature, ...], list[int]] = {}
        for domain in sorted(set().union(*signatures)):
            key = tuple(own.get(domain, ()) for own in signatures)
            self._domains.setdefault(key, []).append(domain)
        self.ways = {
            key: (len(domains), [self._layouts(way, domains[0]) for way in range(len(fleets))])
            for key, domains in self._domains.items()
        }

    def layouts(self, taken: Mapping[tuple[Signature, ...], int]) -> list[Layout]:
        """The copies with these ways taken, and of what is left over as the first way seats it, across domains."""
        found = [
            layout
            for key, domains in self._domains.items()
            for domain in domains
            for layout in self._layouts(taken[key], domain)
        ]
        first = self._fleets[0]
        if not first.is_confined:
            used = {place for layout in found for place in layout.places}
            gone = frozenset(index for index, seat in enumerate(first.seats) if not used.isdisjoint(seat))
            across = _across(first, (), lost=gone, known=self._known[0])
            found += [_layout(first, group) for group in across]
        return found

    def _layouts(self, way: int, domain: int) -> list[Layout]:
        return [_layout(self._fleets[way], group) for group in self._groups[way].get(domain, ())]


def seat_sizes(problem: Problem) -> tuple[int, ...]:
    """Sizes of seats worth trying: powers of two up to the most equal devices that a host has, one first."""
    request = problem.request
    if request.tensor is not None:
        return (request.tensor,)
    if request.objective.strategy == "pipeline":
        return (1,)
    device_kinds = _DeviceKinds()
    counts = Counter((place.host, device_kinds.of(place.device)) for place in problem.places)
    most = min(max(counts.values(), default=1), problem.spec.num_kv_heads)
    return tuple(1 << power for power in range(most.bit_length()))


def without_host(fleet: Fleet, plan: FleetPlan, host: str) -> FleetPlan:
    """The plan after a host is lost: its domain anew, and groups across domains that had a device of this domain.

    Raises FleetError E106 when no device of the fleet is on such a host.
    """
    gone = [index for index, seat in enumerate(fleet.seats) if seat[0].host == host]
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
    ordered = sorted(plan.groups, key=lambda group: (group.slowest_s, group.seats))
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


def _all_members(fleet: Fleet) -> dict[int, list[int]]:
    """Seats by domain, those that may not be used left out."""
    members = _members(fleet, range(len(fleet.seats)), lost=frozenset())
    members.pop(NOWHERE, None)
    return members


def _by_domain(groups: Iterable[FleetGroup]) -> dict[int, list[FleetGroup]]:
    found: dict[int, list[FleetGroup]] = {}
    for group in groups:
        found.setdefault(group.domain, []).append(group)
    return found


def _signatures(fleet: Fleet, members: dict[int, list[int]]) -> dict[int, Signature]:
    num_kinds = len(fleet.layer_s)
    return {
        domain: tuple(np.bincount(fleet.kind[own], minlength=num_kinds).tolist()) for domain, own in members.items()
    }


def _members(fleet: Fleet, indices: Iterable[int], *, lost: frozenset[int]) -> dict[int, list[int]]:
    """Seats by domain, those lost left out."""
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
            seats = tuple(by_kind[kind].pop() for kind in shape)
            groups.append(FleetGroup(seats=seats, layers=layers, slowest_s=slowest_s, domain=domain))
    return groups


def _across(
    fleet: Fleet,
    groups: Sequence[FleetGroup],
    *,
    lost: frozenset[int],
    known: dict[Signature, tuple[Share, ...]],
) -> list[FleetGroup]:
    """Groups of what domains left over, from as few neighbouring domains as hold the model together."""
    used = np.zeros(len(fleet.seats), dtype=bool)
    used[list(lost)] = True
    for group in groups:
        used[list(group.seats)] = True
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
    return any(int(fleet.domain[index]) in domains for index in group.seats)


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
    if fleet.most_seats is not None:
        # Of devices that hold their part each, any few are a group; with smaller ones, only some few.
        pools.append([kind for kind in rest if caps[kind] * fleet.most_seats >= fleet.num_layers])
    deals = [alone]
    for pool in pools:
        most = sum(caps[kind] for kind in pool) // fleet.num_layers
        # Where few seats make a group, no memory is shared out so finely that as many as it allows are whole.
        for count in sorted(
            {_count_covers(pool, caps, fleet.num_layers), *range(most - TRIED_COUNTS + 1, most + 1)}
        ):
            if count < 1:
                continue
            hands = (hand[: fleet.most_seats] for hand in _dealt(pool, caps, count))
            deals.append([*alone, *hands])
    return deals


def _count_covers(kinds: Sequence[int], caps: Sequence[int], num_layers: int) -> int:
    """Groups that hold so many layers each when one after the other is filled, largest seats first."""
    count = held = 0
    for kind in kinds:
        held += caps[kind]
        if held >= num_layers:
            count, held = count + 1, 0
    return count


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


class _DeviceKinds:
    """Numbers of devices that differ in nothing but their id."""

    def __init__(self) -> None:
        self._numbers: dict[DeviceFacts, int] = {}
        self._known: dict[DeviceFacts, int] = {}

    def of(self, device: DeviceFacts) -> int:
        if device not in self._known:
            nameless = msgspec.structs.replace(device, id="")
            self._known[device] = self._numbers.setdefault(nameless, len(self._numbers))
        return self._known[device]


def _seats(problem: Problem, size: int) -> tuple[tuple[Place, ...], ...]:
    """The problem's devices, in its order; above 1, equal ones of a host together."""
    if size == 1:
        return tuple((place,) for place in problem.places)
    device_kinds = _DeviceKinds()
    alike: dict[tuple[str, int], list[Place]] = {}
    for place in problem.places:
        alike.setdefault((place.host, device_kinds.of(place.device)), []).append(place)
    is_exact = problem.request.tensor is not None
    seats = []
    for own in alike.values():
        begin = 0
        while begin < len(own):
            left = len(own) - begin
            taken = size if left >= size else 1 << (left.bit_length() - 1)
            if taken == size or not is_exact:
                seats.append(tuple(own[begin : begin + taken]))
            begin += taken
    return tuple(seats)


def _own_link(problem: Problem, seat: tuple[Place, ...]) -> LinkFacts | None:
    """What tells one host's inner links from another's; None where nothing does."""
    if problem.links.are_equal:
        return None
    return msgspec.structs.replace(group_link(seat, problem.links), source="", target="")


def _even_units(problem: Problem, size: int) -> tuple[int, ...]:
    units = share_units(problem.spec.num_kv_heads, [1.0] * size)
    assert units is not None, f"{size} devices share {problem.spec.num_kv_heads} KV heads"
    return units


def _caps(problem: Problem, seat: tuple[Place, ...], units: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Most layers as a first, middle, last and only stage."""
    shares = cut_shares(problem.spec, units)

    def most(*, first: bool, last: bool) -> int:
        return min(
            problem.sizes.memory(share, place.device.kind, first=first, last=last, leads=index == 0).max_layers(
                problem.usable_bytes(place)
            )
            for index, (place, share) in enumerate(zip(seat, shares, strict=True))
        )

    return (
        most(first=True, last=False),
        most(first=False, last=False),
        most(first=False, last=True),
        most(first=True, last=True),
    )


def _domains(problem: Problem, seats: Sequence[tuple[Place, ...]]) -> Ints:
    """The number of each seat's domain.

    By the labels that a request names, `NOWHERE` for hosts without them; else by those that tell where hosts stand,
    or so many hosts in their order. Where a copy may stand on one host only, each is a domain.
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
        if request.max_hosts == 1:
            domain = host.name
        of_host[host.name] = number.setdefault(domain, len(number))
    return np.array([of_host[seat[0].host] for seat in seats], dtype=np.int64)


def _layout(fleet: Fleet, group: FleetGroup) -> Layout:
    kinds = fleet.kind[list(group.seats)].tolist()
    ends = itertools.accumulate(group.layers)
    return Layout(
        stages=tuple(
            StageLayout(layers=(end - count, end), places=fleet.seats[seat], units=fleet.units[kind])
            for seat, kind, count, end in zip(group.seats, kinds, group.layers, ends, strict=True)
        )
    )
