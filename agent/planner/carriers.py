"""Which carrier a link uses: decided by where its ends are and whether the network may see what passes. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from agent.planner.plan import Plan, Shard, Stage

CarrierKind = Literal["tls", "tcp", "unix", "gloo", "nccl"]
"""Sockets: under mutual TLS 1.3, without it, inside a host. torch.distributed's: both without encryption."""

End = tuple[str, str]
"""Host and device of a rank."""

DIRECT_SUM_BYTES = 65536
"""Up to here more than two ranks send everybody everything, in one hop; above, each sums a part, in two hops.

Three ranks, TLS, loopback: the one hop takes 0.6 of the time at 8 KiB, the same at 64, 1.4 times it at 256 KiB."""


def carrier_of(ends: Sequence[End], *, is_network_trusted: bool) -> CarrierKind:
    """The carrier of a link or a group with these ends.

    Plaintext crosses a network only where that was declared trusted. NCCL takes one rank on a device. Gloo is named
    nowhere: sockets without TLS carry what it carries in half the time, and can be aborted (docs/adr/0005).
    """
    hosts = {host for host, _ in ends}
    is_plaintext_allowed = len(hosts) == 1 or is_network_trusted
    is_cuda = all(device.startswith("cuda") for _, device in ends) and len(set(ends)) == len(ends)
    if is_cuda and is_plaintext_allowed:
        return "nccl"
    if len(hosts) == 1:
        return "unix"
    return "tcp" if is_network_trusted else "tls"


def carrier_among(plan: Plan, *shards: Shard) -> CarrierKind:
    """The carrier that a plan names for the link or the group between these ranks of it."""
    ends = [(shard.host, shard.device) for shard in shards]
    return carrier_of(ends, is_network_trusted=plan.serving.trusted_network)


def stage_carriers(plan: Plan) -> list[tuple[str, str]]:
    """What links stages, and the ranks of one stage: `(s0>s1, tls)`, `(s1, unix)`; `r1 s0>s1` with replicas."""
    found = []
    for number, replica in enumerate(plan.replicas):
        name = f"r{number} " if len(plan.replicas) > 1 else ""
        for index, stage in enumerate(replica.stages):
            if index > 0:
                kinds = {carrier_among(plan, *pair) for pair in linked_shards(replica.stages[index - 1], stage)}
                found.append((f"{name}s{index - 1}>s{index}", "+".join(sorted(kinds))))
            if len(stage.shards) > 1:
                found.append((f"{name}s{index}", carrier_among(plan, *stage.shards)))
    return found


def linked_shards(sender: Stage, receiver: Stage) -> list[tuple[Shard, Shard]]:
    """Rank j of the receiving stage hears rank j modulo the sender's size."""
    size = len(sender.shards)
    return [(sender.shards[index % size], shard) for index, shard in enumerate(receiver.shards)]
