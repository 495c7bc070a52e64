"""Two to four plans side by side: figures, verdicts, and what moves between the first and each other. Pure.

The plans' own recorded predictions and bytes are compared; nothing is computed anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import assert_never

import msgspec

from agent.errors import FleetError
from agent.facts.cluster import ClusterFacts
from agent.planner.asked import asked_words
from agent.planner.file import plan_hash
from agent.planner.interval import Interval
from agent.planner.memory import peak_bytes
from agent.planner.plan import Plan, Range, Shard, rank_places
from agent.planner.rates import LinkTable
from agent.planner.risk import Risk, risk_of

LEAST_PLANS, MOST_PLANS = 2, 4
ENERGY = "energy per token"
EQUAL_WITHIN = 0.01
"""Figures this close count as equal: no prediction is better than a hundredth."""


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of every plan. `unit` is `s`, `tokens/s`, `J`, `bytes`, `tokens`, `fraction` or empty."""

    name: str
    unit: str
    values: tuple[float, ...]
    best: int | None
    """Index of the best plan; None when they are equal, or when less is neither better nor worse."""
    deltas: tuple[float | None, ...]
    """Each change against the first plan, as a fraction of it (of fractions, the difference); None if that is 0."""
    bounds: tuple[Interval, ...] = ()
    """Of predicted figures: what they are likely to be when they are measured."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Which plan wins for an objective; `winner` is None when they are equal."""

    objective: str
    winner: int | None
    reason: str


class HostMove(msgspec.Struct, frozen=True, kw_only=True):
    """What one host holds in each plan: layers per replica and stage, devices and bytes."""

    host: str
    layers: tuple[tuple[Range, ...], ...]
    bytes: tuple[int, ...]
    changes: bool


class PlanChange(msgspec.Struct, frozen=True, kw_only=True):
    """From the first plan to another: layers that change hosts or shares, and the bytes that new holders need."""

    plan: int
    layers_moved: tuple[int, ...]
    """Layers that another host holds, or the same one with another share of them."""
    bytes_to_move: int
    """Weights that hosts do not hold yet; they come from disk, or from the old holders."""
    bytes_by_host: dict[str, int]
    """Of those, what each host needs."""
    fetch_s: float
    """Seconds to bring them, if no host has any on disk: one host sends all, one after the other. Starting ranks
    comes on top."""
    is_link_measured: bool
    """Whether every link on their way was measured; where not, the planner's figure for such a link is used."""
    hosts_added: tuple[str, ...]
    hosts_removed: tuple[str, ...]


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    names: tuple[str, ...]
    hashes: tuple[str, ...]
    shapes: tuple[str, ...]
    asked: tuple[tuple[str, ...], ...]
    """Of each plan, the constraints that it was made under, in words."""
    is_same: bool
    """True when every plan has the same content but for its reasons."""
    metrics: tuple[Metric, ...]
    verdicts: tuple[Verdict, ...]
    hosts: tuple[HostMove, ...]
    changes: tuple[PlanChange, ...]
    risks: tuple[Risk, ...]
    warnings: tuple[str, ...]
    """What makes them hard to compare: other models, prompts or serving settings."""


def compare_plans(plans: Sequence[Plan], names: Sequence[str], *, facts: ClusterFacts | None = None) -> Comparison:
    """Compare plans under the names given (file names, `A` …). Raises FleetError E106 for too few or too many.

    Facts add what the files do not have: memory left, fault domains, measured links.
    """
    if not LEAST_PLANS <= len(plans) <= MOST_PLANS:
        raise FleetError("E106", f"{len(plans)} plans given: compare takes {LEAST_PLANS} to {MOST_PLANS}")
    bare = [msgspec.structs.replace(plan, why=()) for plan in plans]
    return Comparison(
        names=tuple(names),
        hashes=tuple(plan_hash(plan) for plan in plans),
        shapes=tuple(shape_words(plan) for plan in plans),
        asked=tuple(tuple(asked_words(plan.asked)) for plan in plans),
        is_same=all(plan == bare[0] for plan in bare[1:]),
        metrics=tuple(_metric(plans, *definition) for definition in _METRICS if _is_told(plans, definition[0])),
        verdicts=tuple(
            _verdict(plans, names, objective)
            for objective, (metric, *_) in _VERDICTS.items()
            if _is_told(plans, metric)
        ),
        hosts=_host_moves(plans),
        changes=tuple(
            plan_change(plans[0], plan, facts, index=index) for index, plan in enumerate(plans) if index > 0
        ),
        risks=tuple(risk_of(plan, facts) for plan in plans),
        warnings=_warnings(plans, names),
    )


def shape_words(plan: Plan) -> str:
    """`3 stages (TP 1, 2, 1), 4 devices on 3 hosts`, of replica 0; replicas are counted in front."""
    stages = plan.replicas[0].stages
    sizes = [stage.tensor_parallel_size for stage in stages]
    grouped = f" (TP {', '.join(map(str, sizes))})" if max(sizes) > 1 else ""
    hosts = {shard.host for stage in stages for shard in stage.shards}
    copies = f"{len(plan.replicas)} replicas of " if len(plan.replicas) > 1 else ""
    return (
        f"{copies}{_count(len(stages), 'stage')}{grouped}, {_count(sum(sizes), 'device')} "
        f"on {_count(len(hosts), 'host')}"
    )


def plan_change(old: Plan, new: Plan, facts: ClusterFacts | None = None, *, index: int = 1) -> PlanChange:
    """What becomes of the holders of layers from one plan to another, which is called `index`."""
    before, after = _layer_holders(old), _layer_holders(new)
    needed: dict[str, int] = {}
    for key, num_bytes in after.items():
        if key not in before:
            needed[key[1]] = needed.get(key[1], 0) + num_bytes
    source = new.model.source_host or new.controllers[0]
    table = LinkTable(facts or ClusterFacts(cluster="", hosts=()), is_network_trusted=new.serving.trusted_network)
    links = {host: table.between(source, host, "cpu") for host in needed if host != source}
    return PlanChange(
        plan=index,
        layers_moved=tuple(sorted({layer for layer, *_ in before.keys() ^ after.keys()})),
        bytes_to_move=sum(needed.values()),
        bytes_by_host=dict(sorted(needed.items())),
        fetch_s=sum(link.latency_s + needed[host] / link.bytes_per_s for host, link in links.items()),
        is_link_measured=all(link.is_measured for link in links.values()),
        hosts_added=tuple(sorted(_rank_hosts(new) - _rank_hosts(old))),
        hosts_removed=tuple(sorted(_rank_hosts(old) - _rank_hosts(new))),
    )


def peak_shard(plan: Plan) -> Shard:
    """The shard that holds the most bytes."""
    return max((place.shard for place in rank_places(plan)), key=lambda shard: shard.bytes.total)


def imbalance(plan: Plan) -> float:
    """How much longer the slowest stage takes than the mean one, as a fraction; 0 is perfectly balanced."""
    stages = plan.predicted.stage_s
    mean = sum(stages) / len(stages) if stages else 0.0
    return max(stages) / mean - 1 if mean > 0 else 0.0


def _total_bytes(plan: Plan) -> int:
    return sum(place.shard.bytes.total for place in rank_places(plan))


def _rank_hosts(plan: Plan) -> set[str]:
    return {place.shard.host for place in rank_places(plan)}


def _energy(plan: Plan) -> Interval:
    energy = plan.predicted.energy
    assert energy is not None, "energy is compared where every plan tells it"
    return energy


_METRICS: tuple[tuple[str, str, Callable[[Plan], float], int], ...] = (
    # name, unit, figure, +1 when more is better, -1 when less is, 0 when neither
    ("throughput", "tokens/s", lambda plan: plan.predicted.tokens_per_s, 1),
    ("time per token", "s", lambda plan: plan.predicted.time_per_token_s, -1),
    ("time to first token", "s", lambda plan: plan.predicted.ttft_s, -1),
    (ENERGY, "J", lambda plan: _energy(plan).expected, -1),
    ("context", "tokens", lambda plan: plan.serving.context, 1),
    ("sequences at once", "", lambda plan: plan.serving.batch * len(plan.replicas), 1),
    ("memory peak", "bytes", lambda plan: peak_shard(plan).bytes.total, -1),
    ("memory in all", "bytes", _total_bytes, -1),
    ("imbalance", "fraction", imbalance, -1),
    ("hosts", "", lambda plan: len(_rank_hosts(plan)), -1),
    ("devices", "", lambda plan: len(rank_places(plan)), -1),
)
_INTERVALS: dict[str, Callable[[Plan], Interval]] = {
    "throughput": lambda plan: plan.predicted.throughput,
    "time per token": lambda plan: plan.predicted.time_per_token,
    "time to first token": lambda plan: plan.predicted.ttft,
    ENERGY: _energy,
    "memory peak": lambda plan: peak_bytes(place.shard for place in rank_places(plan)),
}
_VERDICTS: dict[str, tuple[str, Callable[[Plan], float], int]] = {
    "latency": ("time per token", lambda plan: plan.predicted.time_per_token_s, -1),
    "ttft": ("time to first token", lambda plan: plan.predicted.ttft_s, -1),
    "throughput": ("throughput", lambda plan: plan.predicted.tokens_per_s, 1),
    "context": ("context", lambda plan: plan.serving.context, 1),
    "energy": (ENERGY, lambda plan: _energy(plan).expected, -1),
}


def _is_told(plans: Sequence[Plan], metric: str) -> bool:
    """Plans of earlier releases say nothing of energy, which is not none."""
    return metric != ENERGY or all(plan.predicted.energy is not None for plan in plans)


def _metric(plans: Sequence[Plan], name: str, unit: str, figure: Callable[[Plan], float], direction: int) -> Metric:
    values = tuple(float(figure(plan)) for plan in plans)
    return Metric(
        name=name,
        unit=unit,
        values=values,
        best=best_of(values, direction),
        deltas=tuple(_delta(value, values[0], unit) for value in values),
        bounds=tuple(_INTERVALS[name](plan) for plan in plans) if name in _INTERVALS else (),
    )


def _delta(value: float, first: float, unit: str) -> float | None:
    if unit == "fraction":
        return value - first
    return value / first - 1 if first else None


def best_of(values: Sequence[float], direction: int, *, equal_within: float = EQUAL_WITHIN) -> int | None:
    """Index of the best value, or None when the runner-up is as good. `direction` as in `_METRICS`."""
    if direction == 0:
        return None
    ranked = sorted(range(len(values)), key=lambda index: -direction * values[index])
    first, second = values[ranked[0]], values[ranked[1]]
    is_close = abs(first - second) <= equal_within * max(abs(first), abs(second))
    return None if is_close else ranked[0]


def _verdict(plans: Sequence[Plan], names: Sequence[str], objective: str) -> Verdict:
    what, figure, direction = _VERDICTS[objective]
    values = [figure(plan) for plan in plans]
    winner = best_of(values, direction)
    if winner is None:
        return Verdict(objective=objective, winner=None, reason=f"equal {what} within {EQUAL_WITHIN:.0%}")
    others = [value for index, value in enumerate(values) if index != winner]
    runner_up = max(others) if direction > 0 else min(others)
    edge = values[winner] / runner_up if direction > 0 else runner_up / values[winner]
    word = "more" if direction > 0 else "less"
    gain = edge - 1 if direction > 0 else 1 - 1 / edge
    return Verdict(objective=objective, winner=winner, reason=f"{names[winner]} has {gain:.0%} {word} {what}")


def _host_moves(plans: Sequence[Plan]) -> tuple[HostMove, ...]:
    holdings = [_holdings(plan) for plan in plans]
    hosts = sorted({host for holding in holdings for host in holding})
    moves = []
    for host in hosts:
        held = [holding.get(host, ()) for holding in holdings]
        moves.append(
            HostMove(
                host=host,
                layers=tuple(tuple(dict.fromkeys(layers for layers, _ in shards)) for shards in held),
                bytes=tuple(sum(shard.bytes.total for _, shard in shards) for shards in held),
                changes=any(shards != held[0] for shards in held),
            )
        )
    return tuple(moves)


def _holdings(plan: Plan) -> dict[str, tuple[tuple[Range, Shard], ...]]:
    held: dict[str, tuple[tuple[Range, Shard], ...]] = {}
    for place in rank_places(plan):
        held[place.shard.host] = (*held.get(place.shard.host, ()), (place.layers, place.shard))
    return held


def _layer_holders(plan: Plan) -> dict[tuple[int, str, Range, Range], int]:
    """Who holds which share of which layer, with its part of the shard's weights.

    A first or last stage's embedding and head are spread over its layers: a plan file does not tell them apart.
    """
    holders: dict[tuple[int, str, Range, Range], int] = {}
    for place in rank_places(plan):
        first, end = place.layers
        each = place.shard.bytes.weights // max(1, end - first)
        for layer in range(first, end):
            key = (layer, place.shard.host, place.shard.kv_heads, place.shard.columns)
            holders[key] = holders.get(key, 0) + each
    return holders


def _warnings(plans: Sequence[Plan], names: Sequence[str]) -> tuple[str, ...]:
    first, warnings = plans[0], []
    for plan, name in zip(plans[1:], names[1:], strict=True):
        if plan.model.digest != first.model.digest:
            warnings.append(f"{name} is for another model: {plan.model.name}, not {first.model.name}")
        if plan.predicted.prompt_tokens != first.predicted.prompt_tokens:
            warnings.append(
                f"{name} is predicted for prompts of {plan.predicted.prompt_tokens} tokens, "
                f"{names[0]} for {first.predicted.prompt_tokens}"
            )
        if plan.predicted.num_measured_runs != first.predicted.num_measured_runs:
            warnings.append(
                f"{name} is predicted from {_count(plan.predicted.num_measured_runs, 'measured figure')}, "
                f"{names[0]} from {first.predicted.num_measured_runs}: plan both anew to compare them"
            )
        if plan.serving.batch != first.serving.batch:
            warnings.append(
                f"{name} decodes {plan.serving.batch} sequences at once, {names[0]} {first.serving.batch}"
            )
        if _draft_words(plan) != _draft_words(first):
            warnings.append(f"{name} guesses {_draft_words(plan)}, {names[0]} {_draft_words(first)}: not predicted")
        if plan.serving.precision != first.serving.precision:
            warnings.append(f"{name} serves in {plan.serving.precision}, {names[0]} in {first.serving.precision}")
    return tuple(warnings)


def _draft_words(plan: Plan) -> str:
    """How tokens are guessed, which no prediction counts on."""
    match plan.serving.speculation:
        case "none":
            return "nothing"
        case "prompt_lookup":
            return "by prompt lookup"
        case "draft_model":
            return f"with draft model {plan.draft.name if plan.draft is not None else ''}".rstrip()
        case _:
            assert_never(plan.serving.speculation)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
