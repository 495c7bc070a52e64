"""Hybrids: each stage picks its tensor-parallel size inside the pipeline's own programme. Pure.

Groups form within a host first, where links are fast. Across hosts they are tried where single devices have only
each other, on small clusters or when a size is asked for: the programme takes them only if their links allow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agent.planner.layout import Layout, Place
from agent.planner.pipeline import StageOption, device_orders, propose_chains
from agent.planner.problem import Problem
from agent.planner.tensor import may_span_hosts, share_variants

MAX_PLACES_ACROSS_HOSTS = 16
"""Above this many devices, groups that span hosts are only tried when their size is pinned."""
MAX_UNALIGNED_DEVICES = 4
"""On hosts with more devices, groups begin at multiples of their size (0-3, 4-7), as their switches do."""


class HybridStrategy:
    """Stages of one device or of a tensor-parallel group, mixed as it serves the objective."""

    name = "hybrid"

    def propose(self, problem: Problem) -> list[Layout]:
        def grouped(order: Sequence[Place]) -> list[StageOption]:
            return stage_options(problem, order)

        options = [grouped(order) for order in device_orders(problem, grouped)]
        if problem.request.objective.strategy == "adaptive":
            # Without a group there is nothing that a pipeline's own programme does not find.
            options = [found for found in options if any(len(option.places) > 1 for option in found)]
        layouts = propose_chains(problem, options, min_stages=1)
        if problem.is_forced and problem.request.objective.strategy == self.name:
            layouts += propose_chains(problem, options, min_stages=2)
            # A model of one layer has no second stage: then groups alone are more than one device.
            groups = [[option for option in found if len(option.places) > 1] for found in options]
            layouts += propose_chains(problem, groups, min_stages=1)
            layouts = [layout for layout in layouts if len(layout.places) > 1]
        return layouts


def stage_options(problem: Problem, order: Sequence[Place]) -> list[StageOption]:
    """Every device and group that may be a stage in this order, sorted by its start."""
    request = problem.request
    pinned = {*request.tensor_parallel_sizes, *([request.tensor] if request.tensor else [])}
    options = [
        StageOption(start=start, end=start + size - 1, places=tuple(order[start : start + size]), units=units)
        for start, size in _windows(problem, order, pinned)
        for units in share_variants(problem, order[start : start + size])
    ]
    return sorted(options, key=lambda option: (option.start, option.end))


def _windows(problem: Problem, order: Sequence[Place], pinned: set[int]) -> Iterator[tuple[int, int]]:
    """Start and size of each window of neighbours that may form a stage."""
    most = min(len(order), problem.spec.num_kv_heads)
    for size in sorted(pinned) if pinned else range(1, most + 1):
        for start in range(len(order) - size + 1):
            window = order[start : start + size]
            if len({place.device.kind for place in window}) > 1:
                continue
            if size == 1:
                yield start, size
            elif window[0].host == window[-1].host:
                if _is_aligned(order, start, size) or size in pinned:
                    yield start, size
            elif size in pinned or (len(order) <= MAX_PLACES_ACROSS_HOSTS and may_span_hosts(problem, window)):
                yield start, size


def _is_aligned(order: Sequence[Place], start: int, size: int) -> bool:
    on_host = [position for position, place in enumerate(order) if place.host == order[start].host]
    if len(on_host) <= MAX_UNALIGNED_DEVICES:
        return True
    is_power = size & (size - 1) == 0
    return (is_power and (start - on_host[0]) % size == 0) or size == len(on_host)
