"""Hosts, devices and links as they were last seen. Frozen values, no I/O."""

from __future__ import annotations

from typing import Literal

import msgspec

from agent.facts.probe import DeviceProbe, ProbedCarrier
from agent.facts.run import MeasuredRun

DeviceKind = Literal["cpu", "cuda"]


class DeviceFacts(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One GPU, or the CPU of a host.

    `memory_bytes` is physical; `usable_bytes` is what the inventory's limits leave to us (at most the
    former). Rates are `None` until something measured them: the planner then uses its own defaults.
    """

    id: str
    """`cpu`, or `cuda:0`, `cuda:1` …: unique on its host."""
    kind: DeviceKind
    name: str
    memory_bytes: int
    usable_bytes: int
    cores: int = 0
    """CPU cores (0 for a GPU)."""
    read_bytes_per_s: float | None = None
    """Measured memory read bandwidth."""
    flops_per_s: float | None = None
    """Measured dense matrix rate in the serving dtype."""
    probe: DeviceProbe | None = None
    """What `odctl probe` found; it goes before both rates above."""


class HostFacts(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What an agent says of its own host. `boot_id` tells a reboot from a restart of the agent."""

    name: str
    cluster_address: str
    """Where other agents and ranks reach this host (an IP address or a DNS name)."""
    cluster_port: int
    """TLS port of the agent on the cluster plane."""
    devices: tuple[DeviceFacts, ...]
    memory_bytes: int
    cpu_cores: int
    os: str = ""
    kernel: str = ""
    arch: str = ""
    python: str = ""
    torch: str = ""
    """Version of torch in the agent's interpreter, read from its metadata; empty when there is none."""
    driver: str = ""
    """NVIDIA driver version, or empty."""
    gpu_unavailable: str = ""
    """Why no GPU is listed (`no driver`, `NVML stuck 7 s` …); empty when NVML answered."""
    agent_version: str = ""
    release: str = ""
    """Content hash of the installed release."""
    boot_id: str = ""
    labels: dict[str, str] = {}
    disk_free_bytes: int = 0


class LinkFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One direction between two hosts: time for n bytes is `latency_s + n / bytes_per_s`.

    Without a `carrier` these are the network's figures, and whatever carries messages adds its own time.
    """

    source: str
    target: str
    latency_s: float
    bytes_per_s: float
    is_measured: bool = False
    carrier: ProbedCarrier | None = None
    """It was measured with this one, whose own time is in the figures."""
    measured_at_s: float | None = None
    """Seconds since the epoch."""
    sums: tuple[tuple[int, float], ...] = ()
    """(bytes, seconds) of all-reduces between the two, by the carrier, by bytes; empty where none were measured."""


class ClusterFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the planner may know. Hosts are sorted by name, so equal clusters are equal values."""

    cluster: str
    hosts: tuple[HostFacts, ...]
    links: tuple[LinkFacts, ...] = ()
    runs: tuple[MeasuredRun, ...] = ()
    """What deployments on this cluster did, oldest first."""

    def __post_init__(self) -> None:
        names = [host.name for host in self.hosts]
        assert names == sorted(set(names)), f"hosts must be sorted and unique: {names}"

    def host(self, name: str) -> HostFacts | None:
        return next((host for host in self.hosts if host.name == name), None)
