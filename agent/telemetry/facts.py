"""What this host is: its devices and what of them we may use, its software, its boot."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import shutil
from pathlib import Path

import psutil

import agent
from agent.facts.cluster import DeviceFacts, HostFacts
from agent.facts.sample import DeviceSample, Ok, Stale
from agent.telemetry.cpu import cpu_name, num_cores
from agent.telemetry.gpu_reply import GpuReply
from agent.wire.agent import PROTOCOL_VERSION, AgentConfig, Handshake


def collect_facts(config: AgentConfig, gpus: GpuReply) -> HostFacts:
    """`gpus` is the last reading. Devices outside `config.devices` are left out."""
    memory_bytes = psutil.virtual_memory().total
    devices = [_cpu(config, memory_bytes), *_gpus(config, gpus)]
    return HostFacts(
        name=config.host,
        cluster_address=config.cluster_address,
        cluster_port=config.cluster_port,
        devices=tuple(device for device in devices if not config.devices or device.id in config.devices),
        memory_bytes=memory_bytes,
        cpu_cores=num_cores(),
        os=_operating_system(),
        kernel=platform.release(),
        arch=platform.machine(),
        python=platform.python_version(),
        torch=_torch_version(),
        driver=gpus.driver,
        gpu_unavailable=gpus.unavailable or _split_gpus(gpus),
        agent_version=agent.__version__,
        release=config.release,
        boot_id=read_boot_id(),
        labels=config.labels,
        disk_free_bytes=_disk_free(Path(config.prefix)),
    )


def make_handshake(config: AgentConfig, *, started_at_s: float) -> Handshake:
    return Handshake(
        host=config.host,
        cluster=config.cluster,
        release=config.release,
        protocol=PROTOCOL_VERSION,
        pid=os.getpid(),
        boot_id=read_boot_id(),
        started_at_s=started_at_s,
        is_degraded=config.is_degraded,
    )


@functools.cache
def read_boot_id() -> str:
    """The kernel's name for this boot; empty where /proc does not have it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _cpu(config: AgentConfig, memory_bytes: int) -> DeviceFacts:
    return DeviceFacts(
        id="cpu",
        kind="cpu",
        name=cpu_name(),
        memory_bytes=memory_bytes,
        usable_bytes=int(memory_bytes * config.memory_fraction),
        cores=config.threads or num_cores(),
    )


def _gpus(config: AgentConfig, gpus: GpuReply) -> list[DeviceFacts]:
    found = []
    for device in gpus.devices:
        memory_bytes = _memory_of(device)
        if device.id in gpus.whole and memory_bytes > 0:
            found.append(
                DeviceFacts(
                    id=device.id,
                    kind="cuda",
                    name=device.name,
                    memory_bytes=memory_bytes,
                    usable_bytes=int(memory_bytes * config.memory_fraction),
                )
            )
    return found


def _memory_of(device: DeviceSample) -> int:
    """Bytes; 0 for a device that has none to give now (lost, or never read)."""
    reading = device.memory_total_bytes
    return int(reading.value) if isinstance(reading, Ok | Stale) else 0


def _split_gpus(gpus: GpuReply) -> str:
    """Why a GPU that is there is not listed: it is split by MIG, and we use whole devices only."""
    split = [device.id for device in gpus.devices if device.id not in gpus.whole and "/" not in device.id]
    return f"{', '.join(split)}: MIG is on" if split else ""


@functools.cache
def _torch_version() -> str:
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return ""


@functools.cache
def _operating_system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        return platform.system()


def _disk_free(prefix: Path) -> int:
    try:
        return shutil.disk_usage(prefix).free
    except OSError:
        return 0
