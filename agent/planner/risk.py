"""What a plan hangs on: hosts and fault domains whose loss stops it, and the memory that it leaves. Pure."""

from __future__ import annotations

import msgspec

from agent.facts.cluster import ClusterFacts
from agent.planner.interval import Interval
from agent.planner.memory import held_bytes, kind_of_device
from agent.planner.plan import Plan, Shard, rank_places
from agent.planner.words import bytes_interval_words, list_words


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """What stays free on the device that has the least left, and that as a fraction of what is usable."""

    device: str
    bytes_left: int
    fraction_left: float
    bytes_left_bounds: tuple[int, int]
    """Least and most, for a process and its workspace are not exact."""

    @property
    def left(self) -> Interval:
        """Bytes."""
        low, high = self.bytes_left_bounds
        return Interval(low=low, expected=self.bytes_left, high=high)


class Risk(msgspec.Struct, frozen=True, kw_only=True):
    fatal_hosts: tuple[str, ...]
    """Losing any one of these stops the deployment: no replica is whole without it, or the gateway runs there."""
    fatal_domains: dict[str, tuple[str, ...]] = {}
    """By label of hosts: values whose loss, all their hosts at once, stops it. Known with facts alone."""
    least_room: Room | None = None
    """None without facts."""


def risk_of(plan: Plan, facts: ClusterFacts | None) -> Risk:
    """`facts` are of the cluster as it is; without them the plan's file alone is looked at."""
    replicas = [
        {shard.host for stage in replica.stages for shard in stage.shards} | {plan.gateway_host}
        for replica in plan.replicas
    ]
    return Risk(
        fatal_hosts=tuple(sorted(set.intersection(*replicas))),
        fatal_domains=_fatal_domains(replicas, facts) if facts is not None else {},
        least_room=_least_room(plan, facts) if facts is not None else None,
    )


def risk_words(risk: Risk) -> str:
    """`stops with the loss of any of a and b; of rack r1; least memory left: 3.1 GB (2.9..3.2), 12%, on a/cpu`."""
    hosts = risk.fatal_hosts
    any_of = "any of " if len(hosts) > 1 else ""
    parts = [f"stops with the loss of {any_of}{list_words(hosts)}" if hosts else "no single host's loss stops it"]
    parts += [f"of {label} {list_words(values)}" for label, values in risk.fatal_domains.items()]
    if risk.least_room is not None:
        room = risk.least_room
        parts.append(
            f"least memory left: {bytes_interval_words(room.left)}, {room.fraction_left:.0%}, on {room.device}"
        )
    return "; ".join(parts)


def _fatal_domains(replicas: list[set[str]], facts: ClusterFacts) -> dict[str, tuple[str, ...]]:
    """`replicas` are the hosts that each of them needs, the gateway's among them."""
    members: dict[str, dict[str, set[str]]] = {}
    for host in facts.hosts:
        for label, value in host.labels.items():
            members.setdefault(label, {}).setdefault(value, set()).add(host.name)
    fatal = {
        label: tuple(sorted(value for value, hosts in values.items() if all(hosts & each for each in replicas)))
        for label, values in sorted(members.items())
    }
    return {label: values for label, values in fatal.items() if values}


def _least_room(plan: Plan, facts: ClusterFacts) -> Room | None:
    usable = {(host.name, device.id): device.usable_bytes for host in facts.hosts for device in host.devices}
    rooms = [
        _room(place.shard, usable[place.shard.host, place.shard.device])
        for place in rank_places(plan)
        if usable.get((place.shard.host, place.shard.device))
    ]
    return min(rooms, key=lambda room: room.bytes_left, default=None)


def _room(shard: Shard, usable_bytes: int) -> Room:
    held = held_bytes(shard.bytes, kind_of_device(shard.device))
    return Room(
        device=f"{shard.host}/{shard.device}",
        bytes_left=usable_bytes - shard.bytes.total,
        fraction_left=1 - shard.bytes.total / usable_bytes,
        bytes_left_bounds=(int(usable_bytes - held.high), int(usable_bytes - held.low)),
    )
