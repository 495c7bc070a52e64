"""Does a plan still describe the cluster? A digest of what it depends on, and names for what has moved. Pure."""

from __future__ import annotations

import hashlib

import msgspec

from agent.facts.cluster import ClusterFacts, HostFacts
from agent.planner.plan import Plan
from agent.planner.words import bytes_words

DIGEST_CHARACTERS = 12
MEASURED = "~measured"
"""In the place of a host's name, and none that a host can have."""


def facts_digest(facts: ClusterFacts, hosts: tuple[str, ...]) -> str:
    """One short hash per host (`gpu01:3f2a… gpu02:…`), so that a difference can be named later.

    It covers a host's devices (id, kind, name, physical and usable memory): what decides whether a plan still fits.
    What was measured of these hosts has a hash of its own behind them, if anything was: it tells plans of other
    measurements apart, but a plan is not stale because its cluster was measured again. Disks, addresses and
    versions are left out.
    """
    known = {host.name: host for host in facts.hosts}
    parts = [f"{name}:{_host_digest(known.get(name))}" for name in sorted(set(hosts))]
    measured = _measured_digest(facts, frozenset(hosts))
    return " ".join([*parts, f"{MEASURED}:{measured}"] if measured else parts)


def what_moved(plan: Plan, facts: ClusterFacts) -> tuple[str, ...]:
    """What differs between the cluster the plan was made for and this one, a sentence each.

    Empty when nothing does. Only the plan's own hosts count.
    """
    moved: list[str] = []
    known = {host.name: host for host in facts.hosts}
    recorded = dict(part.rsplit(":", 1) for part in plan.facts_digest.split() if ":" in part)
    for name in plan.hosts:
        host = known.get(name)
        if host is None:
            moved.append(f"host {name} is gone")
        elif name not in recorded:
            moved.append(f"host {name} is not among the facts that the plan was made from")
        elif recorded[name] != _host_digest(host):
            moved.append(_host_change(plan, host))
    return tuple(moved)


def _host_change(plan: Plan, host: HostFacts) -> str:
    devices = {device.id: device for device in host.devices}
    details: list[str] = []
    for replica in plan.replicas:
        for stage in replica.stages:
            for shard in stage.shards:
                if shard.host != host.name:
                    continue
                device = devices.get(shard.device)
                if device is None:
                    details.append(f"{shard.device} is gone")
                elif device.usable_bytes < shard.bytes.total:
                    details.append(
                        f"{shard.device} has {bytes_words(device.usable_bytes)} usable, "
                        f"{bytes_words(shard.bytes.total)} needed"
                    )
    now = ", ".join(
        f"{device.id} {device.name or device.kind} with {bytes_words(device.usable_bytes)}"
        for device in host.devices
    )
    return f"host {host.name} has other devices or memory: " + ("; ".join(details) or f"now {now or 'none'}")


def _host_digest(host: HostFacts | None) -> str:
    if host is None:
        return "absent"
    devices = sorted((d.id, d.kind, d.name, d.memory_bytes, d.usable_bytes) for d in host.devices)
    return hashlib.sha256(msgspec.json.encode([host.name, devices])).hexdigest()[:DIGEST_CHARACTERS]


def _measured_digest(facts: ClusterFacts, hosts: frozenset[str]) -> str:
    """Of probes of these hosts and of links among them; empty where nothing was measured."""
    probes = [
        (host.name, device.probe)
        for host in facts.hosts
        for device in host.devices
        if host.name in hosts and device.probe is not None
    ]
    links = [link for link in facts.links if link.measured_at_s is not None and {link.source, link.target} <= hosts]
    if not probes and not links:
        return ""
    return hashlib.sha256(msgspec.json.encode([probes, links])).hexdigest()[:DIGEST_CHARACTERS]
