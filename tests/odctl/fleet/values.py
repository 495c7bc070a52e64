"""Facts and samples of an invented but consistent host, for tests of the fleet and of the screens."""

from __future__ import annotations

from agent.facts.cluster import DeviceFacts, HostFacts
from agent.facts.sample import (
    DeviceSample,
    DiskSample,
    HostSample,
    NicSample,
    NotAvailable,
    Ok,
    ProcessSample,
)
from agent.wire.agent import Handshake

EPOCH_S = 1_700_000_000.0
GIB = 1 << 30
NA = NotAvailable("no driver")


def handshake(host: str) -> Handshake:
    return Handshake(
        host=host,
        cluster="lab",
        release="abc123",
        protocol=1,
        pid=100,
        boot_id="boot-1",
        started_at_s=EPOCH_S - 3600,
        is_degraded=False,
    )


def facts(host: str, *, memory_bytes: int = 16 * GIB) -> HostFacts:
    cpu = DeviceFacts(
        id="cpu",
        kind="cpu",
        name="EPYC 7543",
        memory_bytes=memory_bytes,
        usable_bytes=int(memory_bytes * 0.9),
        cores=8,
    )
    return HostFacts(
        name=host,
        cluster_address="127.0.0.1",
        cluster_port=7001,
        devices=(cpu,),
        memory_bytes=memory_bytes,
        cpu_cores=8,
        os="Debian 12",
        kernel="6.1",
        arch="x86_64",
        python="3.11.7",
        torch="2.13.0",
        gpu_unavailable="no driver",
        agent_version="0.1.0",
        release="abc123",
        boot_id="boot-1",
        disk_free_bytes=100 * GIB,
    )


def sample(host: str, *, at_s: float = EPOCH_S, cpu: float = 0.25, memory_used_bytes: int = 4 * GIB) -> HostSample:
    cpu_device = DeviceSample(
        id="cpu",
        kind="cpu",
        name="EPYC 7543",
        utilisation=Ok(cpu),
        memory_used_bytes=Ok(float(memory_used_bytes)),
        memory_total_bytes=Ok(16.0 * GIB),
        temperature_c=NA,
        power_w=NA,
        power_limit_w=NA,
        sm_clock_hz=NA,
        memory_clock_hz=NA,
    )
    return HostSample(
        host=host,
        taken_at_s=at_s,
        cpu=cpu,
        load_1m=1.5,
        memory_total_bytes=16 * GIB,
        memory_used_bytes=memory_used_bytes,
        swap_total_bytes=2 * GIB,
        swap_used_bytes=0,
        uptime_s=86_400.0 * 12,
        devices=(cpu_device,),
        nics=(
            NicSample(
                name="eth0",
                is_up=True,
                speed_bits_per_s=1e10,
                received_bytes_per_s=1.5e6,
                sent_bytes_per_s=2.5e6,
                errors=0,
                drops=0,
            ),
        ),
        disks=(
            DiskSample(
                mount="/",
                total_bytes=200 * GIB,
                free_bytes=100 * GIB,
                read_bytes_per_s=0.0,
                written_bytes_per_s=1e6,
            ),
        ),
        processes=(
            ProcessSample(
                role="agent", name="agent", pid=100, rss_bytes=50_000_000, cpu=0.01, num_threads=4, num_fds=20
            ),
        ),
    )
