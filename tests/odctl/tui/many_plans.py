"""Plans of many stages, replicas and groups, for the pages that have to show them. Figures are invented."""

from __future__ import annotations

import msgspec

from agent.planner.plan import Plan, Predicted, Replica, Shard, ShardBytes, Stage
from tests.odctl.tui import frozen_fleet as frozen

LAYER_BYTES = 400_000_000


def shard(host: str, device: str, *, layers: int, extra: int = 0, tensor: int = 1, index: int = 0) -> Shard:
    """`extra` bytes are those of an embedding or a head."""
    each = 32 // tensor
    held = ShardBytes(
        weights=(layers * LAYER_BYTES + extra) // tensor,
        kv_cache=200_000_000,
        activations=100_000_000,
        headroom=50_000_000,
    )
    return Shard(
        host=host,
        device=device,
        heads=(index * each, (index + 1) * each),
        kv_heads=(index * each // 4, (index + 1) * each // 4),
        columns=(0, 11008),
        vocab=(0, 32000),
        bytes=held,
    )


def chain(num_stages: int, *, num_replicas: int = 1, tensor: int = 1, name: str = "large", slow: int = 3) -> Plan:
    """A layer a stage, each on a host of its own; the first and the last have an embedding and a head beside it.

    `slow` is the stage that takes the longest.
    """

    def stage(replica: int, index: int) -> Stage:
        host = f"h{replica * num_stages + index:03d}"
        extra = 90_000_000 if index in (0, num_stages - 1) else 0
        shards = tuple(
            shard(host, f"cuda:{t}", layers=1, extra=extra, tensor=tensor, index=t) for t in range(tensor)
        )
        return Stage(layers=(index, index + 1), shards=shards)

    stage_s = tuple(0.004 if index == slow else 0.002 for index in range(num_stages))
    predicted = Predicted(
        prompt_tokens=512,
        ttft_s=0.61,
        time_per_token_s=0.19,
        tokens_per_s=320.0,
        bottleneck=f"replica 0 stage {slow} (h{slow:03d}/cuda:0): memory bandwidth",
        stage_s=stage_s,
        ttft_bounds_s=(0.5, 0.8),
        time_per_token_bounds_s=(0.15, 0.24),
        tokens_per_s_bounds=(250.0, 400.0),
        answer_tokens=128,
        num_measured_runs=12,
        joules_per_token=(4.0, 9.0, 21.0),
        peak_bytes=(700_000_000, 840_000_000, 900_000_000),
    )
    return msgspec.structs.replace(
        frozen.plan(name),
        replicas=tuple(
            Replica(stages=tuple(stage(replica, index) for index in range(num_stages)))
            for replica in range(num_replicas)
        ),
        predicted=predicted,
        controllers=("h000",),
        why=("each host holds a layer, for none has room for two",),
    )
