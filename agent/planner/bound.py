"""The counting bound: tokens per second that no placement of these devices can exceed. Pure.

Where tokens flow at F per second, each of L layers is passed F times a second, L*F in all. A device that holds k
layers takes part in at most k * min(T(k), F) of these passes, T(k) being its tokens per second through k layers. So

    sum over devices of max over k of k * min(T(k), F)  >=  L * F,

and the largest F for which this holds bounds every plan: replicas, pipelines and groups alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from agent.planner.cost import decode_step, stage_cost
from agent.planner.layout import Place, cut_shares
from agent.planner.problem import Problem

Floats = NDArray[np.float64]
BISECTIONS = 100
"""Halvings of the bracket: beyond what a float tells apart."""

ROUNDING = 1e-12
"""Of a sum of products; how it is rounded differs between processors."""


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """What `count` equal machines do: tokens per second of one of them through 1, 2, … layers."""

    tokens_per_s: tuple[float, ...]
    count: int = 1


def counting_bound(curves: Sequence[Curve], num_layers: int) -> float:
    """Tokens per second that machines of these curves cannot exceed; 0 when all together hold too few layers."""
    if not any(curve.count and curve.tokens_per_s for curve in curves):
        return 0.0
    width = max(len(curve.tokens_per_s) for curve in curves)
    rates: Floats = np.array([[*c.tokens_per_s, *[0.0] * (width - len(c.tokens_per_s))] for c in curves])
    layers, counts = np.arange(1.0, width + 1), np.array([curve.count for curve in curves])

    def passes(flow: float) -> float:
        return float(counts @ (layers * np.minimum(rates, flow)).max(axis=1))

    return _largest_flow(passes, num_layers, most=float(rates.max()) * sum(curve.count for curve in curves))


def throughput_bound(problem: Problem) -> float:
    """Tokens per second that no layout of a problem's devices can exceed, at the batch that is served.

    A rank with a share of a layer counts as that share of a layer: its work, its overheads and its bytes are at
    least the share's. Decoding the whole batch at once reads the weights least often, so its rate bounds all.
    """
    rates, most = [], []
    for place, count in _counted(problem):
        layers_per_s, most_layers = _passes_of(problem, place)
        rates.append(count * layers_per_s)
        most.append(count * most_layers)
    layers_per_s_all, most_layers_all = np.array(rates), np.array(most)

    def passes(flow: float) -> float:
        return float(np.minimum(layers_per_s_all, most_layers_all * flow).sum())

    return _largest_flow(passes, problem.spec.num_layers, most=float(layers_per_s_all.sum()))


def _largest_flow(passes: Callable[[float], float], num_layers: int, *, most: float) -> float:
    """The largest F with passes(F) >= num_layers * F. passes(F) / F never grows with F, so bisection finds it."""

    def can_pass(flow: float) -> bool:
        # Where machines hold just the layers there are, both sides are equal up to the bound, but for rounding.
        return passes(flow) >= num_layers * flow * (1 - ROUNDING)

    # A millionth of the least flow of interest stands for zero: below every rate, layers held are what counts.
    low, high = 0.0, most
    if not math.isfinite(most) or most <= 0 or not can_pass(most * 1e-9):
        return 0.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if can_pass(middle) else (low, middle)
    return high


def _counted(problem: Problem) -> list[tuple[Place, int]]:
    """One place of each kind of device, and how many there are of it."""
    first: dict[object, Place] = {}
    counts: dict[object, int] = {}
    for place in problem.places:
        key = msgspec.structs.replace(place.device, id="")
        first.setdefault(key, place)
        counts[key] = counts.get(key, 0) + 1
    return [(place, counts[key]) for key, place in first.items()]


def _passes_of(problem: Problem, place: Place) -> tuple[float, float]:
    """Layers times tokens per second that a device does alone, and the most layers that its memory holds."""
    spec, serving = problem.spec, problem.serving
    whole = (spec.num_kv_heads,)
    cost = stage_cost(
        spec,
        (place,),
        whole,
        step=decode_step(serving.batch, problem.prompt_tokens),
        dtype=serving.dtype,
        links=problem.links,
        quantisation=serving.quantisation,
    )
    memory = problem.sizes.memory(cut_shares(spec, whole)[0], place.device.kind, first=False, last=False)
    held = min(spec.num_layers, problem.usable_bytes(place) / memory.layer_bytes)
    return serving.batch / cost.layer_s, held
