"""Invented probes with round figures."""

from __future__ import annotations

from agent.facts.cluster import HostFacts
from agent.facts.measured import hardware_hash
from agent.facts.model import Dtype, Quantisation
from agent.facts.probe import (
    AttentionProbe,
    DeviceProbe,
    GemmProbe,
    GroupProbe,
    HostProbe,
    LinkProbe,
    ProbeRecord,
    SumProbe,
)

SIZE = 4096
KINDS: tuple[tuple[Dtype, Quantisation, int], ...] = (
    ("bfloat16", "none", 2),
    ("bfloat16", "int8", 1),
    ("float32", "none", 4),
)


def device_probe(
    device: str = "cpu",
    *,
    read_bytes_per_s: float = 10e9,
    skinny_flops_per_s: float = 100e9,
    large_flops_per_s: float = 200e9,
    measured_at_s: float = 1000.0,
) -> DeviceProbe:
    """One row reads at `read_bytes_per_s`, 64 rows and a chunk reach their FLOP/s, whatever the dtype."""
    gemms = []
    for dtype, quantisation, element in KINDS:
        weight_bytes = SIZE * SIZE * element
        for rows, seconds in (
            (1, weight_bytes / read_bytes_per_s),
            (8, weight_bytes / read_bytes_per_s),
            (64, 2 * 64 * SIZE**2 / skinny_flops_per_s),
            (512, 2 * 512 * SIZE**2 / large_flops_per_s),
        ):
            gemms.append(
                GemmProbe(
                    dtype=dtype,
                    quantisation=quantisation,
                    kernel="plain",
                    size=SIZE,
                    rows=rows,
                    seconds=seconds,
                    weight_bytes=weight_bytes,
                )
            )
    return DeviceProbe(
        device=device,
        name="a device",
        threads=1,
        measured_at_s=measured_at_s,
        copy_bytes_per_s=12e9,
        read_bytes_per_s=11e9,
        gemms=tuple(gemms),
        attention=(
            AttentionProbe(context=1024, heads=32, kv_heads=8, head_size=128, seconds=1e-3, cache_bytes=4 << 20),
        ),
    )


def record_of(
    host: HostFacts,
    *devices: DeviceProbe,
    links: tuple[LinkProbe, ...] = (),
    groups: tuple[GroupProbe, ...] = (),
    hardware: str | None = None,
) -> ProbeRecord:
    """What an agent of this host would tell; `hardware` of another one makes the figures stale."""
    own = hardware_hash(host)
    probe = HostProbe(
        host=host.name,
        hardware=hardware or own,
        measured_at_s=1000.0,
        took_s=8.0,
        is_quick=False,
        devices=devices,
        disk_read_bytes_per_s=1e9,
    )
    return ProbeRecord(host=host.name, hardware=own, probe=probe if devices else None, links=links, groups=groups)


def link_probe(source: HostFacts, target: HostFacts, *, latency_s: float = 50e-6, rate: float = 1e9) -> LinkProbe:
    return LinkProbe(
        source=source.name,
        target=target.name,
        source_device="cpu",
        target_device="cpu",
        carrier="tls",
        latency_s=latency_s,
        bytes_per_s=rate,
        streamed_bytes=64 << 20,
        measured_at_s=1000.0,
        source_hardware=hardware_hash(source),
        target_hardware=hardware_hash(target),
    )


def group_probe(*hosts: HostFacts, small_s: float, large_s: float) -> GroupProbe:
    """Sums of 16 KiB and of 1 MiB."""
    return GroupProbe(
        members=tuple(f"{host.name}/cpu" for host in hosts),
        carrier="tls",
        sums=(SumProbe(num_bytes=16 << 10, seconds=small_s), SumProbe(num_bytes=1 << 20, seconds=large_s)),
        measured_at_s=1000.0,
        hardware=tuple(hardware_hash(host) for host in hosts),
    )
