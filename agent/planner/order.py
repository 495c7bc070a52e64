"""The order of hosts along a pipeline: by domain, by nearest neighbour, and by a genetic search. Pure.

With equal links every order is as good as another. With unequal ones the best is a travelling salesman's tour whose
length the split of layers decides as well, so the search asks the exact programme for the value of every order and
never guesses at layers itself (a memetic algorithm; Moscato, 1989). The same seed gives the same order.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec
import numpy as np

from agent.planner.cost import transfer_s
from agent.planner.problem import Problem
from agent.planner.split import OptionTable, least_values

DOMAIN_LABELS = ("region", "zone", "site", "rack")
"""Labels of a host that tell where it stands, from the widest domain to the narrowest."""
HIDDEN_BYTES = 16384
"""A decode message of a large model: what distances between hosts are compared for."""
POPULATION = 24
ELITE = 4
STALE_GENERATIONS = 12
"""Generations without a better order, after which the search ends."""
MUTATION_SHARE = 0.6
IMPROVED_PER_GENERATION = 16
"""Neighbours of the best order that a generation tries: the search's local part."""
NEWCOMERS = 4
"""Random orders that join a generation, so that equal ones do not crowd out the rest."""

Order = tuple[int, ...]


class OrderSearch(msgspec.Struct, frozen=True, kw_only=True):
    """The best order found, its value (least is best), and the best value after each generation."""

    order: Order
    value: float
    best_by_generation: tuple[float, ...]
    num_valued: int


def search_order(
    starts: Sequence[Order],
    values_of: Callable[[Sequence[Order]], Sequence[float]],
    *,
    seed: int,
    max_valued: int,
    rounds: int = 2,
) -> OrderSearch:
    """Search for the order of least value, from given ones and random ones; at most `max_valued` are valued.

    Values are asked for a generation at a time, which a caller may compute together.

    The best value never gets worse from one generation to the next. A round ends when it is stale, and the next one
    begins with other random orders: where many orders are equal, as with the slowest stage, one may end early.
    """
    size = len(starts[0])
    assert size > 1, "one host has one order"
    rng = random.Random(seed)
    known: dict[Order, float] = {}

    def ranked(orders: Sequence[Order]) -> list[Order]:
        unique = list(dict.fromkeys(orders))
        new = [order for order in unique if order not in known][: max_valued - len(known)]
        if new:
            known.update(zip(new, values_of(new), strict=True))
        return sorted((order for order in unique if order in known), key=lambda order: (known[order], order))

    def drawn(count: int) -> list[Order]:
        return [tuple(rng.sample(range(size), size)) for _ in range(count)]

    best, history = ranked(starts)[0], []
    for _ in range(rounds):
        population = ranked([*starts, *drawn(POPULATION - len(starts))])
        stale, least = 0, math.inf
        while stale < STALE_GENERATIONS:
            stale = 0 if known[population[0]] < least else stale + 1
            least = known[population[0]]
            best = min(best, population[0], key=lambda order: (known[order], order))
            history.append(known[best])
            if len(known) >= max_valued:
                break
            population = ranked([*population[:ELITE], *_children(population, rng), *drawn(NEWCOMERS)])[:POPULATION]
    return OrderSearch(order=best, value=known[best], best_by_generation=tuple(history), num_valued=len(known))


def _children(population: Sequence[Order], rng: random.Random) -> list[Order]:
    """Neighbours of the best order, and crossings of drawn ones."""
    children = [_mutated(population[0], rng) for _ in range(IMPROVED_PER_GENERATION)]
    for _ in range(POPULATION - ELITE):
        child = _crossed(_parent(population, rng), _parent(population, rng), rng)
        children.append(_mutated(child, rng) if rng.random() < MUTATION_SHARE else child)
    return children


def reordered(table: OptionTable, order: Sequence[int]) -> OptionTable:
    """The options of one order of hosts in another one: `order` lists numbers of hosts. No option spans hosts."""
    starts = [int(table.start[table.first_host == host].min()) for host in range(len(order))]
    sizes = [int(table.end[table.first_host == host].max()) + 1 - starts[host] for host in range(len(order))]
    rows, shift, begin = [], np.zeros(len(table), dtype=np.int64), 0
    position = np.empty(len(order), dtype=np.int64)
    for place, host in enumerate(order):
        mine = np.flatnonzero(table.first_host == host)
        rows.append(mine)
        shift[mine] = begin - starts[host]
        begin += sizes[host]
        position[host] = place
    index = np.concatenate(rows)
    moved = {
        field.name: getattr(table, field.name)[index]
        for field in dataclasses.fields(table)
        if field.name != "hop_s"
    }
    moved["start"] = moved["start"] + shift[index]
    moved["end"] = moved["end"] + shift[index]
    moved["first_host"] = moved["last_host"] = position[table.first_host[index]]
    return OptionTable(**moved, hop_s=table.hop_s[np.ix_(index, index)])


def values_in_orders(
    table: OptionTable, orders: Sequence[Order], num_layers: int, *, minimise: Literal["sum", "max"]
) -> list[float]:
    """The least value of a split without limits in each of these orders of hosts. No option spans hosts."""
    num_hosts = len(orders[0])
    rows = [np.flatnonzero(table.first_host == host) for host in range(num_hosts)]
    first = [int(table.start[own].min()) for own in rows]
    sizes = np.array([int(table.end[own].max()) + 1 - begin for own, begin in zip(rows, first, strict=True)])
    index = np.array([np.concatenate([rows[host] for host in order]) for order in orders])
    # Where each host begins in an order, as a shift of its options' positions.
    hosts = np.array(orders)
    begins = np.zeros_like(hosts)
    begins[:, 1:] = np.cumsum(sizes[hosts], axis=1)[:, :-1]
    shift = np.empty_like(hosts)
    np.put_along_axis(shift, hosts, begins, axis=1)
    shift -= np.array(first)
    moved = np.take_along_axis(shift, table.first_host[index], axis=1)
    values = least_values(
        table, index, table.start[index] + moved, table.end[index] + moved, num_layers, minimise=minimise
    )
    return [float(value) for value in values]


def domain_of(labels: dict[str, str]) -> tuple[str, ...]:
    """Where a host stands, from the widest domain to the narrowest; empty strings where a label is missing."""
    return tuple(labels.get(label, "") for label in DOMAIN_LABELS)


def nearest_neighbours(problem: Problem, hosts: Sequence[str], *, by_domain: bool) -> list[str]:
    """Start at the first host and go on to the nearest one that is left (Rosenkrantz et al., 1977).

    By domain, a rack is left when it is used up, then its site, zone and region.
    """
    domains = {host.name: domain_of(host.labels) for host in problem.request.facts.hosts}

    def distance(here: str, host: str) -> tuple[int, float]:
        way_s = transfer_s(problem.links.between(here, host, "cpu"), HIDDEN_BYTES)
        if not by_domain:
            return 0, way_s
        shared = next(
            (depth for depth, (a, b) in enumerate(zip(domains[here], domains[host], strict=True)) if a != b),
            len(DOMAIN_LABELS),
        )
        return -shared, way_s

    order, left = [hosts[0]], list(hosts[1:])
    while left:
        here = order[-1]
        nearest = min(left, key=lambda host: distance(here, host))
        order.append(nearest)
        left.remove(nearest)
    return order


def _parent(population: Sequence[Order], rng: random.Random) -> Order:
    """The better of two drawn ones; the population is sorted."""
    return population[min(rng.randrange(len(population)), rng.randrange(len(population)))]


def _crossed(mother: Order, father: Order, rng: random.Random) -> Order:
    """Order crossover: a run of the mother's in its place, the rest in the father's order (Davis, 1985)."""
    begin, end = sorted(rng.sample(range(len(mother) + 1), 2))
    run = mother[begin:end]
    kept = set(run)
    rest = [host for host in father if host not in kept]
    return (*rest[:begin], *run, *rest[begin:])


def _mutated(order: Order, rng: random.Random) -> Order:
    """Two hosts swapped, a run reversed, or a host or a run of them put elsewhere."""
    changed = list(order)
    first, second = sorted(rng.sample(range(len(order)), 2))
    match rng.randrange(4):
        case 0:
            changed[first], changed[second] = changed[second], changed[first]
        case 1:
            changed[first : second + 1] = reversed(changed[first : second + 1])
        case 2:
            run = changed[first:second]
            del changed[first:second]
            begin = rng.randrange(len(changed) + 1)
            changed[begin:begin] = run
        case _:
            there, here = (first, second) if rng.random() < 0.5 else (second, first)
            changed.insert(there, changed.pop(here))
    return tuple(changed)
