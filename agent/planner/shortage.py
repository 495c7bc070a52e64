"""When nothing fits: which device lacks how many bytes, and what would help. Pure."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from agent.errors import FleetError
from agent.planner.layout import Layout, Place, cut_shares
from agent.planner.memory import runtime_bytes, stage_bytes
from agent.planner.plan import ShardBytes
from agent.planner.problem import Problem
from agent.planner.replicas import is_large
from agent.planner.words import bytes_words, layers_words

Propose = Callable[[Problem], list[Layout]]

MAX_MEMORY_SCALE = 2.0**24
SCALE_STEPS = 12
"""Halvings of the bracket around the least memory that suffices: to a few per mille."""
SHOWN_DEVICES = 6


class Shortage(msgspec.Struct, frozen=True, kw_only=True):
    """One rank of the best attempt: what it would hold, and what its device has for it."""

    place: Place
    layers: tuple[int, int]
    held: ShardBytes

    @property
    def missing_bytes(self) -> int:
        """Above 0 where it does not fit."""
        return self.held.total - self.place.device.usable_bytes


def does_not_fit(problem: Problem, propose: Propose) -> FleetError:
    """E601 with the numbers of the best attempt, or E602 when no memory in the world would help."""
    if is_large(problem):
        return _fleet_does_not_fit(problem)
    if problem.request.replicas not in (1, "max"):
        single = msgspec.structs.replace(problem.request, replicas=1)
        if propose(problem.varied(request=single, is_probe=True)):
            return FleetError(
                "E601",
                f"{problem.request.replicas} replicas of {problem.spec.name} do not fit on "
                f"{len(problem.places)} devices; one does",
                hint="ask for fewer replicas, or add hosts",
            )
    ranks = best_attempt(problem, propose)
    if ranks is None:
        return FleetError(
            "E602",
            f"no layout of {problem.spec.name} on {len(problem.places)} devices satisfies what is asked for",
            hint="ask for fewer stages or hosts, a smaller tensor-parallel size, or another strategy",
        )
    short = sorted((rank for rank in ranks if rank.missing_bytes > 0), key=lambda rank: -rank.missing_bytes)
    if not short:
        # A plugin's strategy may propose nothing here and something on larger devices, whatever it needs of them.
        return FleetError(
            "E602",
            f"strategy `{problem.request.objective.strategy}` proposes no layout of {problem.spec.name} on these "
            f"{len(problem.places)} devices, though memory suffices",
            hint="choose another --strategy",
        )
    worst = short[0]
    lines = [
        f"{problem.spec.name} does not fit: {worst.place.name} is {bytes_words(worst.missing_bytes)} short in the "
        f"best attempt ({problem.serving.dtype}, context {problem.serving.context}, batch {problem.serving.batch})"
    ]
    lines += [f"  {_rank_words(rank)}" for rank in ranks[:SHOWN_DEVICES]]
    if len(ranks) > SHOWN_DEVICES:
        lines.append(f"  and {len(ranks) - SHOWN_DEVICES} more devices")
    return FleetError("E601", "\n".join(lines), hint=_ways_out(problem, propose, short), host=worst.place.host)


def _fleet_does_not_fit(problem: Problem) -> FleetError:
    """E601 for more devices than can be searched for the best attempt: what there is, and what a copy takes."""
    spec, serving, replicas = problem.spec, problem.serving, problem.request.replicas
    usable = [problem.usable_bytes(place) for place in problem.places]
    kind = problem.places[0].device.kind
    alone = problem.sizes.memory(cut_shares(spec, (spec.num_kv_heads,))[0], kind, first=True, last=True, leads=True)
    needed = alone.fixed_bytes + spec.num_layers * alone.layer_bytes
    what = f"{replicas} replicas" if replicas not in (1, "max") else "not even one replica"
    verb = "do not fit" if replicas not in (1, "max") else "fits"
    return FleetError(
        "E601",
        f"{what} of {spec.name} {verb} on {len(usable)} devices: they have {bytes_words(sum(usable))} usable in "
        f"all, {bytes_words(max(usable))} at most; a replica takes {bytes_words(needed)} on one device, and "
        f"{bytes_words(runtime_bytes(kind))} more for each further one ({serving.dtype}, context "
        f"{serving.context}, batch {serving.batch})",
        hint="add hosts, ask for fewer replicas, a shorter --context, a smaller --batch, or --quantisation int8",
    )


def best_attempt(problem: Problem, propose: Propose) -> list[Shortage] | None:
    """Ranks of the layout that needs the least more memory, every device growing alike; None when none would do."""

    def layouts(scale: float) -> list[Layout]:
        return propose(problem.varied(memory_scale=scale, is_probe=True))

    low, high = 1.0, 2.0
    while not layouts(high):
        low, high = high, high * 2
        if high > MAX_MEMORY_SCALE:
            return None
    for _ in range(SCALE_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if layouts(middle) else (middle, high)
    attempts = [_ranks_of(problem, layout) for layout in layouts(high)]
    return min(attempts, key=lambda ranks: (max(rank.missing_bytes for rank in ranks), len(ranks)))


def _ranks_of(problem: Problem, layout: Layout) -> list[Shortage]:
    return [
        Shortage(place=place, layers=stage.layers, held=held)
        for stage in layout.stages
        for place, held in zip(
            stage.places, stage_bytes(problem.spec, stage, problem.serving, problem.draft), strict=True
        )
    ]


def _rank_words(rank: Shortage) -> str:
    held = rank.held
    verdict = f"{bytes_words(rank.missing_bytes)} short" if rank.missing_bytes > 0 else "fits"
    return (
        f"{rank.place.name} {layers_words(rank.layers)}: needs {bytes_words(held.total)} of "
        f"{bytes_words(rank.place.device.usable_bytes)} usable, {verdict} (weights {bytes_words(held.weights)}, "
        f"KV cache {bytes_words(held.kv_cache)}, activations {bytes_words(held.activations)}, "
        f"runtime {bytes_words(held.headroom)})"
    )


def _ways_out(problem: Problem, propose: Propose, short: list[Shortage]) -> str:
    """Settings that do fit, found by trying them; else how much memory is missing in all."""
    ways = []
    serving = problem.serving
    if context := _largest(problem, propose, "context", serving.context):
        ways.append(f"--context {context} fits")
    if batch := _largest(problem, propose, "batch", serving.batch):
        ways.append(f"--batch {batch} fits")
    missing = bytes_words(sum(rank.missing_bytes for rank in short))
    more = f"add hosts with {missing} or more usable for weights and KV cache in all"
    if not ways:
        return f"neither a shorter context nor a smaller batch is enough: {more}"
    return f"{', '.join(ways)}; or {more}"


def _largest(problem: Problem, propose: Propose, field: str, asked: int) -> int | None:
    """The largest value of a serving setting below what was asked that fits; None when not even 1 does."""

    def fits(value: int) -> bool:
        serving = msgspec.structs.replace(problem.serving, **{field: value})
        return bool(propose(problem.varied(serving=serving, is_probe=True)))

    if asked <= 1 or not fits(1):
        return None
    low, high = 1, asked - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
