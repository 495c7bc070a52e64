"""Pipelines over machines of a few types: the most flow for every number of stages, and what of it is served. Pure.

A stage of p machines of one type with k layers passes p * T(k) tokens per second. For a flow F each type is a
knapsack: the most layers that n machines cover in s stages, where a stage of k layers takes ceil(F / T(k)) of them.
F itself is searched for among the p * T(k), the only values at which anything changes, so the flow is exact.

Flow is not what is served. A sequence waits for its own token to come round before it sends the next one, and the
KV cache bounds how many are on the way: X = min(flow's share of generated tokens, C_kv / RTT). More stages raise
the flow and the round trip alike, so the best plan by flow is not the best one.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

import msgspec

STAGE_WAIT_S = 62e-3
"""Of a round trip, waiting at a stage for prompts that are computed there, and the hop: per stage.

With `KV_SHARE` fitted to the round trips and rates that Helix's event simulator gives four plans of its cluster
(70B, prompts of 763 tokens and answers of 232 on average): 58 to 66 ms in plans of 11, 13, 14 and 24 stages.
"""
KV_SHARE = 0.56
"""Of the sequences that memory could hold, those on the way at once: long ones stay longer, some are prompts."""
MEMORY_SHARE = 0.9
"""Of a machine's memory, what weights and KV cache may take."""
READ_SHARE = 0.69
"""Of nominal memory bandwidth, as `planner.rates` has it for GPUs."""
LAYER_S = 57e-6
"""Launching a layer's kernels, as there."""


class MachineType(msgspec.Struct, frozen=True, kw_only=True):
    """`count` equal machines; `tokens_per_s[k - 1]` is what one of them passes with k layers."""

    name: str
    count: int
    tokens_per_s: tuple[float, ...]
    memory_bytes: float = 0.0
    read_bytes_per_s: float = 0.0


class TypeStage(msgspec.Struct, frozen=True, kw_only=True):
    """Consecutive layers, each of `machines` machines holding all of them."""

    machine: str
    machines: int
    layers: int


class TypePlan(msgspec.Struct, frozen=True, kw_only=True):
    """Stages that cover the layers, and the tokens per second that the narrowest passes."""

    stages: tuple[TypeStage, ...]
    tokens_per_s: float


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked, on average, and what a layer of the model takes."""

    prompt_tokens: float
    output_tokens: float
    layer_bytes: float
    kv_bytes: float
    """Of a token and layer."""


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """Generated tokens per second, seconds from one to the next of a sequence, and sequences on the way."""

    tokens_per_s: float
    round_trip_s: float
    sequences: float
    limit: str
    """What bounds it: `flow` or `KV cache`."""


def stage_pareto(types: Sequence[MachineType], num_layers: int) -> tuple[TypePlan, ...]:
    """Every plan that no other beats in flow with as few stages; by growing number of stages, so growing flow.

    Empty when the machines cannot hold the model.
    """
    flows = sorted(
        {p * rate for kind in types for rate in kind.tokens_per_s for p in range(1, kind.count + 1) if rate > 0}
    )
    found: list[TypePlan] = []
    for max_stages in range(1, min(num_layers, sum(kind.count for kind in types)) + 1):
        plan = _most_flow(types, num_layers, flows, max_stages)
        if plan is not None and (not found or plan.tokens_per_s > found[-1].tokens_per_s):
            found.append(plan)
    return tuple(found)


def serve_types(plan: TypePlan, types: Sequence[MachineType], traffic: Traffic) -> Served:
    """What a plan is expected to serve, of its flow and with the sequences that its memory holds."""
    by_name = {kind.name: kind for kind in types}
    context = traffic.prompt_tokens + traffic.output_tokens / 2
    round_trip_s, sequences = 0.0, math.inf
    for stage in plan.stages:
        kind = by_name[stage.machine]
        layer_s = traffic.layer_bytes / (READ_SHARE * kind.read_bytes_per_s) + LAYER_S
        round_trip_s += stage.layers * layer_s + STAGE_WAIT_S
        room = MEMORY_SHARE * kind.memory_bytes - stage.layers * traffic.layer_bytes
        sequences = min(sequences, stage.machines * max(0.0, room) / (stage.layers * traffic.kv_bytes * context))
    generated = traffic.output_tokens / (traffic.prompt_tokens + traffic.output_tokens)
    flow, held = plan.tokens_per_s * generated, KV_SHARE * sequences / round_trip_s
    return Served(
        tokens_per_s=min(flow, held),
        round_trip_s=round_trip_s,
        sequences=min(flow, held) * round_trip_s,
        limit="flow" if flow <= held else "KV cache",
    )


def best_served(
    plans: Sequence[TypePlan], types: Sequence[MachineType], traffic: Traffic
) -> tuple[TypePlan, Served]:
    """The plan to take for throughput: most tokens served, fewer stages where they are equal."""
    served = [(plan, serve_types(plan, types, traffic)) for plan in plans]
    return max(served, key=lambda each: (each[1].tokens_per_s, -len(each[0].stages)))


def _most_flow(
    types: Sequence[MachineType], num_layers: int, flows: Sequence[float], max_stages: int
) -> TypePlan | None:
    """The most flow in at most so many stages, and the fewest stages for it; None when nothing covers the model."""

    def is_too_much(flow: float) -> bool:
        return _cover(types, num_layers, flow, max_stages) is None

    # Covering is harder the more must flow: the flows that can be covered come first.
    count = bisect_right(flows, False, key=is_too_much)
    if count == 0:
        return None
    stages = _cover(types, num_layers, flows[count - 1], max_stages)
    assert stages is not None, "this flow could be covered a moment ago"
    return TypePlan(stages=stages, tokens_per_s=flows[count - 1])


def _cover(
    types: Sequence[MachineType], num_layers: int, flow: float, max_stages: int
) -> tuple[TypeStage, ...] | None:
    """The fewest stages, at most `max_stages`, that cover the layers at this flow; None when none do."""
    best: list[tuple[int, tuple[TypeStage, ...]]] = [(0, ())]
    for kind in types:
        own = _knapsack(kind, flow, max_stages)
        merged: list[tuple[int, tuple[TypeStage, ...]]] = []
        for total in range(min(max_stages, len(best) + len(own) - 2) + 1):
            pairs = [
                (best[total - used], own[used])
                for used in range(max(0, total - len(best) + 1), min(total, len(own) - 1) + 1)
            ]
            before, added = max(pairs, key=lambda pair: pair[0][0] + pair[1][0])
            merged.append((before[0] + added[0], before[1] + added[1]))
        best = merged
    covering = next((stages for layers, stages in best if layers >= num_layers), None)
    return None if covering is None else _trimmed(covering, num_layers)


def _knapsack(kind: MachineType, flow: float, max_stages: int) -> list[tuple[int, tuple[TypeStage, ...]]]:
    """By number of stages, from none on: the most layers that this type covers at a flow, and the stages for it."""
    needs: dict[int, int] = {}
    for layers, rate in enumerate(kind.tokens_per_s, 1):
        if rate > 0:
            # A billionth of slack: the flow is a product of the same rates.
            machines = math.ceil(flow / rate * (1 - 1e-9))
            if machines <= kind.count:
                needs[machines] = max(layers, needs.get(machines, 0))
    empty: tuple[int, tuple[tuple[int, int], ...]] = (0, ())
    rows = [[empty] * (kind.count + 1)]
    for _ in range(min(max_stages, kind.count)):
        row = []
        for left in range(kind.count + 1):
            options = [rows[-1][left]] + [
                (rows[-1][left - p][0] + layers, (*rows[-1][left - p][1], (p, layers)))
                for p, layers in needs.items()
                if p <= left
            ]
            row.append(max(options, key=lambda option: option[0]))
        rows.append(row)
    return [
        (row[-1][0], tuple(TypeStage(machine=kind.name, machines=p, layers=k) for p, k in row[-1][1]))
        for row in rows
    ]


def _trimmed(stages: tuple[TypeStage, ...], num_layers: int) -> tuple[TypeStage, ...]:
    """Layers covered twice are taken from the largest stages, which lowers their load."""
    counts = [stage.layers for stage in stages]
    for _ in range(sum(counts) - num_layers):
        counts[counts.index(max(counts))] -= 1
    return tuple(
        msgspec.structs.replace(stage, layers=count)
        for stage, count in zip(stages, counts, strict=True)
        if count > 0
    )
