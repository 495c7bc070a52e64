"""Facts and probes put together: what the planner takes for measured. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import accumulate, compress
from statistics import geometric_mean, median
from typing import TypeVar

import msgspec

from agent.facts.cluster import ClusterFacts, DeviceFacts, DeviceKind, HostFacts, LinkFacts
from agent.facts.probe import (
    AttentionProbe,
    DeviceProbe,
    GemmProbe,
    GroupProbe,
    HeadProbe,
    LayerProbe,
    LinkProbe,
    ModelProbe,
    ProbeRecord,
    RestProbe,
    StepProbe,
)

Timed = TypeVar("Timed", GemmProbe, AttentionProbe, LayerProbe, StepProbe, HeadProbe, RestProbe)

RehearsalKey = tuple[str, str, str, int, int]
"""Widths, dtype, quantisation, parts and layers: rehearsals of one are of the same thing."""

HASH_CHARACTERS = 12
EQUAL_WITHIN: dict[DeviceKind, float] = {"cpu": 0.15, "cuda": 0.1}
"""Devices of equal hardware whose figures differ by less are taken as equal: that much two probes of one differ,
those of a CPU more, since others share its machine."""
LINKS_EQUAL_WITHIN = 1.5
"""Latencies, rates and sums of links between equal devices are taken as equal within this factor, each by itself.

Sums of three equal pairs, each probed in a moment of its own, were told as 0.83, 1.05 and 1.70 ms.
"""


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
    links = _typical_links(_links(hashes, by_host), hosts, hashes)
    return msgspec.structs.replace(facts, hosts=hosts, links=links)


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
    """Noise must not make equal devices unequal: those near the median of their kind get the medians of theirs.

    Were each to keep its own, plans would choose the device that was measured in the quietest moment, and promise
    what it did then.
    """
    alike: dict[tuple[str, DeviceKind, str], list[tuple[str, str]]] = {}
    for host in facts.hosts:
        for device in host.devices:
            if (host.name, device.id) in probes:
                alike.setdefault((hashes[host.name], device.kind, device.name), []).append((host.name, device.id))
    typical = dict(probes)
    for (_, kind, _), names in alike.items():
        speeds = dict(zip(names, _speeds([probes[name] for name in names]), strict=True))
        in_order = sorted(names, key=lambda name: (speeds[name], name))
        typical_speed = speeds[in_order[(len(in_order) - 1) // 2]]
        near = [name for name in in_order if abs(speeds[name] / typical_speed - 1) <= EQUAL_WITHIN[kind]]
        pooled = _pooled([probes[name] for name in near])
        typical |= dict.fromkeys(near, pooled)
    return typical


def _pooled(probes: Sequence[DeviceProbe]) -> DeviceProbe:
    """Medians of every figure that several have, at the age of the oldest."""
    if len(probes) == 1:
        return probes[0]
    first = probes[0]
    return msgspec.structs.replace(
        first,
        measured_at_s=min(probe.measured_at_s for probe in probes),
        copy_bytes_per_s=median(probe.copy_bytes_per_s for probe in probes),
        read_bytes_per_s=median(probe.read_bytes_per_s for probe in probes),
        gemms=_of_medians([probe.gemms for probe in probes], "dtype", "quantisation", "size", "rows"),
        attention=_of_medians([probe.attention for probe in probes], "context"),
        layers=_of_medians([probe.layers for probe in probes], "dtype", "quantisation", "sequences"),
        models=tuple(_pooled_models([probe.models for probe in probes])),
    )


def _pooled_models(of_devices: Sequence[tuple[ModelProbe, ...]]) -> Iterator[ModelProbe]:
    """A model that only some have rehearsed counts for all."""
    alike: dict[RehearsalKey, list[ModelProbe]] = {}
    for model in (model for models in of_devices for model in models):
        alike.setdefault(_key_of(model), []).append(model)
    for models in alike.values():
        yield msgspec.structs.replace(
            models[0],
            measured_at_s=min(model.measured_at_s for model in models),
            steps=_of_medians([model.steps for model in models], "rows", "sequences", "context"),
            heads=_of_medians([model.heads for model in models], "rows"),
            rests=_of_medians([model.rests for model in models], "idle_s"),
        )


def _key_of(model: ModelProbe) -> RehearsalKey:
    return model.widths, model.dtype, model.quantisation, model.parts, model.num_layers


def _of_medians(of_devices: Sequence[tuple[Timed, ...]], *key: str) -> tuple[Timed, ...]:
    """The first one's entries, each with the median of the seconds of all that are alike by these fields."""

    def key_of(entry: Timed) -> tuple[object, ...]:
        return tuple(getattr(entry, name) for name in key)

    seconds: dict[tuple[object, ...], list[float]] = {}
    for entry in (entry for entries in of_devices for entry in entries):
        seconds.setdefault(key_of(entry), []).append(entry.seconds)
    return tuple(msgspec.structs.replace(entry, seconds=median(seconds[key_of(entry)])) for entry in of_devices[0])


def _speeds(probes: Sequence[DeviceProbe]) -> list[float]:
    """How fast each of these decodes, to compare them: in models that they have rehearsed, or a product.

    A rehearsal goes through its points three times within a minute, a product is measured in one moment: where
    others shared its machine, that made one of three equal hosts 30% slower. Who has rehearsed nothing is as much
    faster than the others as its product is.
    """
    decoding = [
        {_key_of(model): step.seconds for model in probe.models for step in model.steps if step.rows == 1}
        for probe in probes
    ]
    products = [_product_speed(probe) for probe in probes]
    rehearsed = [seconds for seconds in decoding if seconds]
    shared = sorted(set(rehearsed[0]).intersection(*rehearsed)) if rehearsed else []
    if not shared:
        return products
    speeds = [1 / geometric_mean(seconds[key] for key in shared) if seconds else 0.0 for seconds in decoding]
    per_product = median(speed / product for speed, product in zip(speeds, products, strict=True) if speed)
    return [speed or product * per_product for speed, product in zip(speeds, products, strict=True)]


def _product_speed(probe: DeviceProbe) -> float:
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
            found.append(
                LinkFacts(
                    source=link.source,
                    target=link.target,
                    latency_s=link.latency_s,
                    bytes_per_s=link.bytes_per_s,
                    is_measured=True,
                    carrier=link.carrier,
                    measured_at_s=link.measured_at_s,
                    sums=_sums(groups.get((ends, link.carrier))),
                )
            )
    return tuple(sorted(found, key=lambda link: (link.source, link.target, link.carrier)))


def _typical_links(
    links: Sequence[LinkFacts], hosts: Sequence[HostFacts], hashes: dict[str, str]
) -> tuple[LinkFacts, ...]:
    """Noise must not make equal links unequal either: figures near the median of their kind get that of theirs."""
    # Hosts are of one kind when they have the very same typical probes.
    kinds = {host.name: (hashes[host.name], *(id(device.probe) for device in host.devices)) for host in hosts}
    alike: dict[Hashable, list[int]] = {}
    for index, link in enumerate(links):
        ends = frozenset((kinds[link.source], kinds[link.target]))
        alike.setdefault((link.carrier, ends, *(size for size, _ in link.sums)), []).append(index)
    found = list(links)
    for indices in alike.values():
        pairs = [frozenset((links[index].source, links[index].target)) for index in indices]
        columns = zip(*(_figures(links[index]) for index in indices), strict=True)
        typical = zip(*(_typical_figures(pairs, column) for column in columns), strict=True)
        for index, figures in zip(indices, typical, strict=True):
            found[index] = _with_figures(links[index], figures)
    return tuple(found)


def _typical_figures(pairs: Sequence[Hashable], figures: Sequence[float]) -> list[float]:
    """One figure of equal links, each of its own pair of hosts: those near the median get the median of theirs.

    Each figure by itself: a link whose latency was told in a bad moment may be as quick as the others.
    """
    usual = median(figures)
    near = [usual / LINKS_EQUAL_WITHIN <= figure <= usual * LINKS_EQUAL_WITHIN for figure in figures]
    if len(set(compress(pairs, near))) < 2:
        return list(figures)  # both directions of one pair: what tells them apart is no moment
    pooled = median(compress(figures, near))
    return [pooled if is_near else figure for figure, is_near in zip(figures, near, strict=True)]


def _figures(link: LinkFacts) -> tuple[float, ...]:
    return (link.latency_s, link.bytes_per_s, *(seconds for _, seconds in link.sums))


def _sums(group: GroupProbe | None) -> tuple[tuple[int, float], ...]:
    """(bytes, seconds), by bytes."""
    sums = group.sums if group is not None else ()
    if len(sums) < 2:
        return ()
    return _in_order((each.num_bytes, each.seconds) for each in sums)


def _in_order(sums: Iterable[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """By bytes, none quicker than one of fewer."""
    sizes, seconds = zip(*sorted(sums), strict=True)
    return tuple(zip(sizes, accumulate(seconds, max), strict=True))


def _with_figures(link: LinkFacts, figures: Sequence[float]) -> LinkFacts:
    latency_s, bytes_per_s, *seconds = figures
    sums = _in_order(zip((size for size, _ in link.sums), seconds, strict=True)) if link.sums else ()
    return msgspec.structs.replace(link, latency_s=latency_s, bytes_per_s=bytes_per_s, sums=sums)
