"""Facts and probes put together: what the planner takes for measured. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec

from agent.facts.cluster import ClusterFacts, DeviceFacts, HostFacts, LinkFacts
from agent.facts.probe import DeviceProbe, GroupProbe, LinkProbe, ProbeRecord

HASH_CHARACTERS = 12
EQUAL_WITHIN = 0.1
"""Devices of equal hardware whose figures differ by less are taken as equal: that much two probes of one differ."""


def hardware_hash(facts: HostFacts) -> str:
    """What figures hang on: devices with names, cores and memory, the driver and torch's version."""
    devices = sorted((d.id, d.kind, d.name, d.memory_bytes, d.cores) for d in facts.devices)
    parts = [devices, facts.memory_bytes, facts.cpu_cores, facts.arch, facts.driver, facts.torch]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:HASH_CHARACTERS]


def with_probes(facts: ClusterFacts, records: Iterable[ProbeRecord]) -> ClusterFacts:
    """The same facts with what was measured on this very hardware; figures of other hardware are left out."""
    by_host = {record.host: record for record in records}
    hashes = {host.name: hardware_hash(host) for host in facts.hosts}
    probes = {
        (host.name, device.id): probe
        for host in facts.hosts
        for device in host.devices
        if (probe := _device_probe(by_host.get(host.name), hashes[host.name], device)) is not None
    }
    typical = _typical_probes(facts, hashes, probes)

    def measured(host: HostFacts) -> HostFacts:
        devices = (
            msgspec.structs.replace(device, probe=typical.get((host.name, device.id))) for device in host.devices
        )
        return msgspec.structs.replace(host, devices=tuple(devices))

    hosts = tuple(measured(host) for host in facts.hosts)
    return msgspec.structs.replace(facts, hosts=hosts, links=_links(hashes, by_host))


def is_link_current(link: LinkProbe, hashes: dict[str, str]) -> bool:
    """Measured between hosts of the hardware that they have now."""
    return (link.source_hardware, link.target_hardware) == (hashes.get(link.source), hashes.get(link.target))


def is_group_current(group: GroupProbe, hashes: dict[str, str]) -> bool:
    hosts = [member.partition("/")[0] for member in group.members]
    return list(group.hardware) == [hashes.get(host) for host in hosts]


def _device_probe(record: ProbeRecord | None, hardware: str, device: DeviceFacts) -> DeviceProbe | None:
    if record is None or record.probe is None or record.probe.hardware != hardware:
        return None
    return record.probe.device(device.id)


def _typical_probes(
    facts: ClusterFacts, hashes: dict[str, str], probes: dict[tuple[str, str], DeviceProbe]
) -> dict[tuple[str, str], DeviceProbe]:
    """Noise must not make equal devices unequal: those near the median of their kind get its figures."""
    alike: dict[tuple[str, str, str], list[tuple[str, str]]] = {}
    for host in facts.hosts:
        for device in host.devices:
            if (host.name, device.id) in probes:
                alike.setdefault((hashes[host.name], device.kind, device.name), []).append((host.name, device.id))
    typical = dict(probes)
    for names in alike.values():
        in_order = sorted(names, key=lambda name: (_speed(probes[name]), name))
        median = probes[in_order[(len(in_order) - 1) // 2]]
        for name in names:
            if abs(_speed(probes[name]) / _speed(median) - 1) <= EQUAL_WITHIN:
                models = median.models or probes[name].models
                typical[name] = msgspec.structs.replace(median, models=models)
    return typical


def _speed(probe: DeviceProbe) -> float:
    """Bytes/s of the leanest product: what decoding hangs on most."""
    skinny = [gemm.weight_bytes_per_s for gemm in probe.gemms if gemm.rows == 1 and gemm.quantisation == "none"]
    return max(skinny, default=probe.read_bytes_per_s)


def _links(hashes: dict[str, str], records: dict[str, ProbeRecord]) -> tuple[LinkFacts, ...]:
    """One fact for each direction and carrier, with the all-reduces of its two ends where they were measured."""
    groups = {
        (frozenset(group.members), group.carrier): group
        for record in records.values()
        for group in record.groups
        if len(group.members) == 2 and is_group_current(group, hashes)
    }
    found = []
    for host in sorted(records):
        for link in records[host].links:
            if not is_link_current(link, hashes):
                continue
            ends = frozenset((f"{link.source}/{link.source_device}", f"{link.target}/{link.target_device}"))
            reduce_latency_s, reduce_bytes_per_s = _affine(groups.get((ends, link.carrier)))
            found.append(
                LinkFacts(
                    source=link.source,
                    target=link.target,
                    latency_s=link.latency_s,
                    bytes_per_s=link.bytes_per_s,
                    is_measured=True,
                    carrier=link.carrier,
                    measured_at_s=link.measured_at_s,
                    reduce_latency_s=reduce_latency_s,
                    reduce_bytes_per_s=reduce_bytes_per_s,
                )
            )
    return tuple(sorted(found, key=lambda link: (link.source, link.target, link.carrier)))


def _affine(group: GroupProbe | None) -> tuple[float | None, float | None]:
    """The line through the smallest and the largest sum: seconds of none, and bytes/s of more."""
    if group is None or len(group.sums) < 2:
        return None, None
    small, *_, large = sorted(group.sums, key=lambda each: each.num_bytes)
    slope = max((large.seconds - small.seconds) / (large.num_bytes - small.num_bytes), 1e-12)
    return max(small.seconds - small.num_bytes * slope, 1e-6), 1 / slope
