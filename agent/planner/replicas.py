"""Which devices each replica stands on. Pure."""

from __future__ import annotations

from agent.planner.advise import choose_layout
from agent.planner.cost import Estimate
from agent.planner.layout import Layout, Place
from agent.planner.problem import Problem
from agent.planner.propose import candidates


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
        best = choose_layout(left, candidates(left))
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
    found = [choose_layout(share, candidates(share)) for share in dealt if share.places]
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
