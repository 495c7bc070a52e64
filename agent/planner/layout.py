"""A layout: layers and KV heads against devices, before bytes are counted. Pure; strategies propose it.

KV heads are the unit in which tensor parallelism cuts a stage: a KV head goes with its group of query heads,
and MLP columns and vocabulary rows follow in the same proportion.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise

import msgspec

from agent.errors import FleetError
from agent.facts.cluster import ClusterFacts, DeviceFacts
from agent.facts.model import ModelSpec
from agent.planner.plan import Plan, Range, Shard, Stage
from agent.planner.shards import ShardExtent


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A device on its host: where a rank can stand."""

    host: str
    device: DeviceFacts

    @property
    def name(self) -> str:
        return f"{self.host}/{self.device.id}"


class StageLayout(msgspec.Struct, frozen=True, kw_only=True):
    """Consecutive layers on one device or a tensor-parallel group; `units` are KV heads per place."""

    layers: Range
    places: tuple[Place, ...]
    units: tuple[int, ...]

    def __post_init__(self) -> None:
        assert len(self.places) == len(self.units), f"{len(self.places)} places, {len(self.units)} shares"

    @property
    def num_layers(self) -> int:
        return self.layers[1] - self.layers[0]

    @property
    def name(self) -> str:
        """`gpu01/cuda:0+cuda:1`, or `gpu01/cpu+gpu02/cpu` where the group spans hosts."""
        hosts = {place.host for place in self.places}
        if len(hosts) == 1:
            return f"{self.places[0].host}/" + "+".join(place.device.id for place in self.places)
        return "+".join(place.name for place in self.places)


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """One replica: stages in order."""

    stages: tuple[StageLayout, ...]

    @property
    def places(self) -> tuple[Place, ...]:
        return tuple(place for stage in self.stages for place in stage.places)

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(sorted({place.host for place in self.places}))

    @property
    def tensor_parallel_sizes(self) -> tuple[int, ...]:
        return tuple(len(stage.places) for stage in self.stages)


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """The ranges of one rank inside its stage, half-open."""

    heads: Range
    kv_heads: Range
    columns: Range
    vocab: Range


def shape_of_sizes(sizes: Sequence[int]) -> str:
    """What stages of these tensor-parallel sizes are: `single device`, `pipeline`, `tensor` or `hybrid`."""
    if sum(sizes) == 1:
        return "single device"
    if len(sizes) == 1:
        return "tensor"
    return "pipeline" if max(sizes) == 1 else "hybrid"


def cut_shares(spec: ModelSpec, units: Sequence[int]) -> tuple[Share, ...]:
    """Ranges for a group whose ranks take `units` KV heads each; columns and vocabulary rows in proportion.

    Boundaries that are no integers are rounded to the nearest one, so that neighbours always meet.
    """
    assert sum(units) == spec.num_kv_heads, f"{sum(units)} KV heads shared out of {spec.num_kv_heads}"
    return _cut(tuple(units), spec.queries_per_kv_head, spec.mlp_columns, spec.vocab_size)


@lru_cache(maxsize=4096)
def _cut(units: tuple[int, ...], group: int, num_columns: int, vocab_size: int) -> tuple[Share, ...]:
    """By numbers alone: a fleet's stages have the same few shares thousands of times."""
    return tuple(
        Share(
            heads=(first * group, end * group),
            kv_heads=(first, end),
            columns=_proportion(num_columns, first, end, of=sum(units)),
            vocab=_proportion(vocab_size, first, end, of=sum(units)),
        )
        for first, end in pairwise(accumulate(units, initial=0))
    )


def stage_extents(spec: ModelSpec, stage: StageLayout) -> tuple[ShardExtent, ...]:
    """What each rank of a stage owns, in the group's order."""
    return tuple(extent_of(spec, stage.layers, share) for share in cut_shares(spec, stage.units))


def extent_of(spec: ModelSpec, layers: Range, share: Share | Shard) -> ShardExtent:
    """The extent of a share of the stage with these layers; also of a plan's shard."""
    return ShardExtent(
        layers=layers,
        heads=share.heads,
        kv_heads=share.kv_heads,
        columns=share.columns,
        vocab=share.vocab,
        is_first_stage=layers[0] == 0,
        is_last_stage=layers[1] == spec.num_layers,
    )


def layout_of_stage(stage: Stage, places: tuple[Place, ...]) -> StageLayout:
    """A plan's stage as a layout, on places that were looked up by the caller."""
    units = tuple(shard.kv_heads[1] - shard.kv_heads[0] for shard in stage.shards)
    return StageLayout(layers=stage.layers, places=places, units=units)


def layouts_of_plan(plan: Plan, facts: ClusterFacts) -> list[Layout]:
    """A plan's replicas as layouts on the devices of these facts. Raises FleetError E106 for an unknown device."""
    places = {
        (host.name, device.id): Place(host=host.name, device=device)
        for host in facts.hosts
        for device in host.devices
    }
    layouts = []
    for replica in plan.replicas:
        stages = []
        for stage in replica.stages:
            for shard in stage.shards:
                if (shard.host, shard.device) not in places:
                    raise FleetError(
                        "E106",
                        f"the plan puts a shard on {shard.host}/{shard.device}, which is not in the cluster",
                        hint="plan anew, or look for it with `odctl status`",
                        host=shard.host,
                    )
            chosen = tuple(places[shard.host, shard.device] for shard in stage.shards)
            stages.append(layout_of_stage(stage, chosen))
        layouts.append(Layout(stages=tuple(stages)))
    return layouts


def _proportion(total: int, first: int, end: int, *, of: int) -> Range:
    return (2 * total * first + of) // (2 * of), (2 * total * end + of) // (2 * of)
