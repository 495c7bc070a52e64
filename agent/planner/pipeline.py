"""Pipelines: consecutive layers on one device after another, split by an exact dynamic programme. Pure.

`propose_chains` is shared with `planner.hybrid`, where a stage may also be a tensor-parallel group.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import msgspec
import numpy as np

from agent.facts.cluster import DeviceKind
from agent.facts.model import DTYPE_BYTES
from agent.planner.carriers import carrier_of
from agent.planner.cost import StageCost, decode_step, message_s, prefill_step, stage_cost
from agent.planner.layout import Layout, Place, StageLayout, cut_shares
from agent.planner.order import nearest_neighbours, reordered, search_order, values_in_orders
from agent.planner.problem import Problem
from agent.planner.rates import DISTINCT_HOSTS, SAME_HOST_CPU, SAME_HOST_CUDA, rates_of
from agent.planner.split import Floats, Ints, Minimise, OptionTable, Split, SplitLimits, split_layers
from agent.planner.step_shape import StepShape
from agent.planner.tensor import decode_speed

MAX_PERMUTED_HOSTS = 4
"""Up to this many hosts, every order is tried; above, promising ones, and a search where links are unequal."""
MAX_VALUED_ORDERS = 1200
"""Most orders whose value one search asks for."""
SEARCHED_CELLS = 40_000_000
"""Most cells of the programme's tables that one search fills; large clusters value fewer orders with it."""
MIN_VALUED_ORDERS = 48
"""Where the cells allow no more than two populations, nothing is searched."""
SLOWEST_SLACKS = (1.0, 1.25)
"""Bounds on the slowest stage, as multiples of the least possible one, under which the sum is minimised."""


class StageOption(msgspec.Struct, frozen=True, kw_only=True):
    """A device or a group of neighbours in one order, with its shares; `start` and `end` are inclusive."""

    start: int
    end: int
    places: tuple[Place, ...]
    units: tuple[int, ...]


OptionsOf = Callable[[Sequence[Place]], list[StageOption]]
"""The devices and groups that may be stages in an order."""


class CostView(msgspec.Struct, frozen=True, kw_only=True):
    """What the programme minimises: times of one step shape, and whether the slowest stage matters."""

    step: StepShape
    by_energy: bool = False
    bounds_slowest: bool = False


class PipelineStrategy:
    """Stages of one device each. Devices may be left out; the first holds the embedding, the last the head."""

    name = "pipeline"

    def propose(self, problem: Problem) -> list[Layout]:
        request = problem.request
        if max((*request.tensor_parallel_sizes, request.tensor or 1)) > 1:
            return []

        def single_devices(order: Sequence[Place]) -> list[StageOption]:
            units = (problem.spec.num_kv_heads,)
            return [
                StageOption(start=index, end=index, places=(place,), units=units)
                for index, place in enumerate(order)
            ]

        needs_two = request.objective.strategy == self.name and problem.is_forced
        orders = device_orders(problem, single_devices)
        return propose_chains(problem, [single_devices(order) for order in orders], min_stages=1 + needs_two)


def propose_chains(
    problem: Problem, options_by_order: Sequence[list[StageOption]], *, min_stages: int
) -> list[Layout]:
    """The best chains of stages over each set of options: by sum, and under bounds on the slowest stage."""
    limits = split_limits(problem, min_stages=min_stages)
    if limits is None:
        return []
    found: dict[Layout, None] = {}
    for options in options_by_order:
        if not options:
            continue
        caps = _memory_caps(problem, options)
        if caps[:, 1:3].max(initial=0) == 0 and caps[:, 3].max(initial=0) < problem.spec.num_layers:
            continue
        for view in cost_views(problem):
            table = option_table(problem, options, caps, view)
            for split in _splits(table, problem.spec.num_layers, limits, view):
                found[_layout_of(options, split)] = None
    return list(found)


def split_limits(problem: Problem, *, min_stages: int) -> SplitLimits | None:
    """The request's constraints for the programme; None when they leave nothing to choose."""
    request = problem.request
    sizes = request.tensor_parallel_sizes
    low, high = min_stages, None
    if request.stages is not None or sizes:
        low = high = request.stages or len(sizes)
        if high < min_stages:
            return None
    if low > min(len(problem.places), problem.spec.num_layers):
        return None
    return SplitLimits(
        min_stages=low,
        max_stages=high,
        min_hosts=request.min_hosts,
        max_hosts=request.max_hosts,
        stage_sizes=sizes,
    )


def cost_views(problem: Problem) -> list[CostView]:
    """Step shapes that matter for the objective.

    A full batch is split over as many micro-batches as there are stages, which is not known before the split: as
    many as devices are assumed, and every layout is estimated with its own number afterwards.
    """
    prompt, batch = problem.prompt_tokens, problem.serving.batch
    if problem.is_probe:
        return [CostView(step=decode_step(1, prompt))]
    match problem.request.objective.kind:
        case "latency" | "context":
            return [CostView(step=decode_step(1, prompt))]
        case "ttft":
            return [CostView(step=prefill_step(problem.serving, prompt))]
        case "throughput":
            rows = math.ceil(batch / min(len(problem.places), batch))
            return [CostView(step=decode_step(rows, prompt), bounds_slowest=True)]
        case "energy":
            return [CostView(step=decode_step(batch, prompt), by_energy=True)]


def device_orders(problem: Problem, options_of: OptionsOf) -> list[tuple[Place, ...]]:
    """Orders of devices worth trying; devices of one host stay together.

    With equal devices and equal links every order is as good as another, and one is returned. With unequal links
    between more than a few hosts, orders by domain and by nearest neighbour begin a search that asks the programme.
    """
    by_host: dict[str, list[Place]] = {}
    for place in problem.places:
        by_host.setdefault(place.host, []).append(place)
    hosts = list(by_host)
    num_links = len(_link_kinds(problem, by_host))
    if len(hosts) == 1 or problem.is_probe or (num_links <= 1 and _has_equal_hosts(by_host)):
        chosen: list[Sequence[str]] = [hosts]
    elif len(hosts) <= MAX_PERMUTED_HOSTS:
        chosen = list(itertools.permutations(hosts))
    else:
        speed = {host: max(decode_speed(problem, place) for place in by_host[host]) for host in hosts}
        fastest_first = sorted(hosts, key=lambda host: -speed[host])
        chosen = [fastest_first, fastest_first[::-1]]
        if num_links > 1:
            chosen += [nearest_neighbours(problem, fastest_first, by_domain=each) for each in (False, True)]
            chosen += _searched_orders(problem, by_host, options_of, chosen)
    orders = (tuple(place for host in order for place in by_host[host]) for order in chosen)
    return list(dict.fromkeys(orders))


def _searched_orders(
    problem: Problem, by_host: dict[str, list[Place]], options_of: OptionsOf, starts: Sequence[Sequence[str]]
) -> list[Sequence[str]]:
    """The best orders that a search finds, one for each way in which the view minimises.

    It tries groups within hosts alone, and heeds pinned stages but no number of hosts: the orders it finds are good
    ones, and every limit is kept where they are split.
    """
    hosts = list(by_host)
    base = [place for host in hosts for place in by_host[host]]
    options = [each for each in options_of(base) if each.places[0].host == each.places[-1].host]
    if {option.places[0].host for option in options} != set(hosts):
        return []
    num_layers = problem.spec.num_layers
    cells = len(options) * num_layers * (len(options) + num_layers)
    max_valued = min(MAX_VALUED_ORDERS, SEARCHED_CELLS // cells)
    if max_valued < MIN_VALUED_ORDERS:
        return []
    caps = _memory_caps(problem, options)
    number = {host: index for index, host in enumerate(hosts)}
    begun = [tuple(number[host] for host in order) for order in dict.fromkeys(map(tuple, starts))]
    limits = SplitLimits(max_stages=problem.request.stages, stage_sizes=problem.request.tensor_parallel_sizes)
    found: list[Sequence[str]] = []
    for view in cost_views(problem):
        if view.by_energy:
            continue
        table = option_table(problem, options, caps, view)
        for minimise in _WAYS[view.bounds_slowest]:
            order = _searched_order(problem, table, begun, minimise, limits, max_valued=max_valued)
            found.append([hosts[index] for index in order])
    return found


_WAYS: dict[bool, tuple[Minimise, ...]] = {False: ("sum",), True: ("sum", "max")}


def _searched_order(
    problem: Problem,
    table: OptionTable,
    starts: list[tuple[int, ...]],
    minimise: Minimise,
    limits: SplitLimits,
    *,
    max_valued: int,
) -> tuple[int, ...]:
    """One search's order, remembered by all that decides it."""
    num_layers, seed = problem.spec.num_layers, problem.request.seed
    columns = tuple(getattr(table, field.name).tobytes() for field in dataclasses.fields(table))
    key = (columns, tuple(starts), minimise, limits, num_layers, seed, max_valued)
    if key not in problem.searches:

        def values_of(orders: Sequence[tuple[int, ...]]) -> list[float]:
            if limits == SplitLimits() and minimise != "squares":
                return values_in_orders(table, orders, num_layers, minimise=minimise)
            splits = (
                split_layers(reordered(table, order), num_layers, minimise=minimise, limits=limits)
                for order in orders
            )
            return [math.inf if split is None else split.value for split in splits]

        problem.searches[key] = search_order(starts, values_of, seed=seed, max_valued=max_valued).order
    return problem.searches[key]


def option_table(problem: Problem, options: list[StageOption], caps: Ints, view: CostView) -> OptionTable:
    """The programme's input: seconds (or joules) and caps of every option, and the hops between them."""
    costs = _stage_costs(problem, options, view.step)
    weights = np.array([_watts(problem, option) if view.by_energy else 1.0 for option in options])
    hosts = list(dict.fromkeys(place.host for option in options for place in option.places))
    number = {host: index for index, host in enumerate(hosts)}
    hop_s = _hop_seconds(problem, options, hosts, view.step)
    return OptionTable(
        start=np.array([option.start for option in options]),
        end=np.array([option.end for option in options]),
        layer_s=weights * [cost.layer_s for cost in costs],
        first_s=weights * [cost.first_s for cost in costs],
        last_s=weights * [cost.last_s for cost in costs],
        cap_first=caps[:, 0],
        cap_middle=caps[:, 1],
        cap_last=caps[:, 2],
        cap_only=caps[:, 3],
        size=np.array([len(option.places) for option in options]),
        first_host=np.array([number[option.places[0].host] for option in options]),
        last_host=np.array([number[option.places[-1].host] for option in options]),
        hop_s=np.zeros_like(hop_s) if view.by_energy else hop_s,
    )


def _splits(table: OptionTable, num_layers: int, limits: SplitLimits, view: CostView) -> Iterator[Split]:
    least = split_layers(table, num_layers, minimise="sum", limits=limits)
    if least is None:
        return
    yield least
    yield _balance(table, num_layers, least)
    if view.bounds_slowest:
        balanced = split_layers(table, num_layers, minimise="max", limits=limits)
        assert balanced is not None, "the same caps allowed a split before"
        for slack in SLOWEST_SLACKS:
            bounded = split_layers(
                table, num_layers, minimise="sum", limits=limits, slowest_s=balanced.value * slack
            )
            assert bounded is not None, "the balanced split is within its own bound"
            yield bounded


def _balance(table: OptionTable, num_layers: int, split: Split) -> Split:
    """The same stages, the slowest as fast as can be and the others even: decides where sums are equal."""
    chosen = np.array(split.options)
    rows = {
        field.name: getattr(table, field.name)[chosen]
        for field in dataclasses.fields(table)
        if field.name != "hop_s"
    }
    own = OptionTable(**rows, hop_s=table.hop_s[np.ix_(chosen, chosen)])
    all_of_them = SplitLimits(min_stages=len(chosen), max_stages=len(chosen))
    balanced = split_layers(own, num_layers, minimise="max", limits=all_of_them)
    assert balanced is not None, "the same stages allowed a split before"
    even = split_layers(own, num_layers, minimise="squares", limits=all_of_them, slowest_s=balanced.value)
    assert even is not None, "the balanced split is within its own bound"
    return msgspec.structs.replace(even, options=split.options)


def _layout_of(options: list[StageOption], split: Split) -> Layout:
    ends = list(itertools.accumulate(split.layers))
    chosen = (options[index] for index in split.options)
    return Layout(
        stages=tuple(
            StageLayout(layers=(end - count, end), places=option.places, units=option.units)
            for option, count, end in zip(chosen, split.layers, ends, strict=True)
        )
    )


def _memory_caps(problem: Problem, options: list[StageOption]) -> Ints:
    """Most layers per option as a first, middle, last and only stage; the fullest rank of a group decides."""
    rows = []
    for option in options:
        shares = cut_shares(problem.spec, option.units)
        row = []
        for first, last in ((True, False), (False, False), (False, True), (True, True)):
            ranks = enumerate(zip(option.places, shares, strict=True))
            row.append(
                min(
                    problem.sizes.memory(
                        share, place.device.kind, first=first, last=last, leads=index == 0
                    ).max_layers(problem.usable_bytes(place))
                    for index, (place, share) in ranks
                )
            )
        rows.append(row)
    return np.array(rows, dtype=np.int64)


def _stage_costs(problem: Problem, options: list[StageOption], step: StepShape) -> list[StageCost]:
    known: dict[object, StageCost] = {}
    costs = []
    for option in options:
        devices = [msgspec.structs.replace(place.device, id="") for place in option.places]
        is_alone = len(option.places) == 1
        key = (tuple(devices), option.units, () if is_alone else tuple(place.host for place in option.places))
        if key not in known:
            known[key] = stage_cost(
                problem.spec,
                option.places,
                option.units,
                step=step,
                dtype=problem.serving.dtype,
                links=problem.links,
                quantisation=problem.serving.quantisation,
            )
        costs.append(known[key])
    return costs


def _watts(problem: Problem, option: StageOption) -> float:
    return sum(rates_of(place.device, problem.serving.dtype).busy_watts for place in option.places)


def _hop_seconds(problem: Problem, options: list[StageOption], hosts: list[str], step: StepShape) -> Floats:
    """[from, to] seconds for the step's hidden states; a group is left at its last host, entered at its first."""
    number = {host: index for index, host in enumerate(hosts)}
    kinds = {place.host: place.device.kind for option in options for place in option.places}
    latency_s, bytes_per_s, is_carried = np.full((3, len(hosts), len(hosts)), np.nan)
    for source, target in {(link.source, link.target) for link in problem.link_facts}:
        if source in number and target in number:
            kind: DeviceKind = "cuda" if kinds[source] == kinds[target] == "cuda" else "cpu"
            link = problem.links.known(source, target, kind)
            if link is not None:
                where = number[source], number[target]
                latency_s[where], bytes_per_s[where] = link.latency_s, link.bytes_per_s
                is_carried[where] = link.carrier is not None
    # The way back stands in for the way there, and the table's defaults for what nobody measured.
    is_carried = np.where(np.isnan(latency_s), is_carried.T, is_carried) == 1
    latency_s = np.where(np.isnan(latency_s), latency_s.T, latency_s)
    bytes_per_s = np.where(np.isnan(bytes_per_s), bytes_per_s.T, bytes_per_s)
    local = [SAME_HOST_CPU if kinds[host] == "cpu" else SAME_HOST_CUDA for host in hosts]
    defaults = np.full((len(hosts), len(hosts), 2), DISTINCT_HOSTS)
    defaults[np.arange(len(hosts)), np.arange(len(hosts))] = local
    latency_s = np.where(np.isnan(latency_s), defaults[..., 0], latency_s)
    bytes_per_s = np.where(np.isnan(bytes_per_s), defaults[..., 1], bytes_per_s)
    num_bytes = step.rows * problem.spec.hidden_size * DTYPE_BYTES[problem.serving.dtype]
    first = np.array([number[option.places[0].host] for option in options])
    last = np.array([number[option.places[-1].host] for option in options])
    is_cuda = np.array([kinds[host] == "cuda" for host in hosts], dtype=np.intp)
    is_same = np.eye(len(hosts), dtype=np.intp)
    calls = _call_seconds(problem, num_bytes)[is_cuda[:, None], is_cuda[None, :], is_same]
    calls = np.where(is_carried, 0.0, calls)
    between: Floats = (latency_s + calls + num_bytes / bytes_per_s)[last[:, None], first[None, :]]
    return between


def _call_seconds(problem: Problem, num_bytes: int) -> Floats:
    """[from CUDA, to CUDA, within one host] seconds of the carrier itself for a message between two devices."""
    seconds = np.zeros((2, 2, 2))
    for one, other, is_same in itertools.product((0, 1), repeat=3):
        ends = [("a", ("cpu", "cuda:0")[one]), ("a" if is_same else "b", ("cpu", "cuda:1")[other])]
        carrier = carrier_of(ends, is_network_trusted=problem.links.is_network_trusted)
        seconds[one, other, is_same] = message_s(carrier, num_bytes)
    return seconds


def _has_equal_hosts(by_host: dict[str, list[Place]]) -> bool:
    devices = {
        tuple(msgspec.structs.replace(place.device, id="") for place in places) for places in by_host.values()
    }
    return len(devices) == 1


def _link_kinds(problem: Problem, by_host: dict[str, list[Place]]) -> set[tuple[float, float]]:
    """Latency and rate of the links between these hosts, each kind once; a default where some are not measured."""
    measured = {
        frozenset((link.source, link.target)): (link.latency_s, link.bytes_per_s)
        for link in problem.link_facts
        if link.source in by_host and link.target in by_host and link.source != link.target
    }
    kinds = {
        (link.latency_s, link.bytes_per_s)
        for link in problem.link_facts
        if frozenset((link.source, link.target)) in measured
    }
    if measured and len(measured) < len(by_host) * (len(by_host) - 1) // 2:
        kinds.add(DISTINCT_HOSTS)
    return kinds
