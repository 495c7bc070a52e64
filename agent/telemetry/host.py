"""What the kernel counts of this host, as one `HostSample`. Rates are differences to the reading before."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import msgspec
import psutil

from agent.facts.sample import DeviceSample, DiskSample, HostSample, NicSample, ProcessSample
from agent.telemetry.cpu import CpuReader

DISK_S = 10.0
"""Free space and the list of mounts change slowly, and asking a file system can take its time."""
_LOCAL_FILE_SYSTEMS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "overlay", "bcachefs"})


class OwnProcess(msgspec.Struct, frozen=True, kw_only=True):
    """A process of ours, as the supervisor knows it."""

    pid: int
    role: Literal["agent", "rank", "gateway"]
    name: str
    deployment: str = ""
    rank_id: str = ""


class HostReader:
    """`own_processes` is asked at each reading; `prefix` is a directory whose disk is always shown."""

    def __init__(self, host: str, *, prefix: Path, own_processes: Callable[[], Iterable[OwnProcess]]) -> None:
        self._host = host
        self._prefix = prefix
        self._own_processes = own_processes
        self._cpu = CpuReader()
        self._nics_at: float | None = None
        self._nic_counters: dict[str, Any] = {}
        self._disks_at = 0.0
        self._mounts: dict[str, str] = {}
        self._space: dict[str, tuple[int, int]] = {}
        self._io_at: float | None = None
        self._io_counters: dict[str, Any] = {}
        self._processes: dict[int, psutil.Process] = {}

    def read(self, gpus: tuple[DeviceSample, ...] = ()) -> HostSample:
        now = time.monotonic()
        memory = psutil.virtual_memory()
        swap = psutil.swap_memory()
        used = memory.total - memory.available
        busy = self._cpu.read_busy()
        own = {process.pid: process for process in self._own_processes()}
        cpu = self._cpu.read_device(now, memory_used=used, memory_total=memory.total)
        return HostSample(
            host=self._host,
            taken_at_s=time.time(),
            cpu=busy,
            load_1m=os.getloadavg()[0],
            memory_total_bytes=memory.total,
            memory_used_bytes=used,
            swap_total_bytes=swap.total,
            swap_used_bytes=swap.used,
            uptime_s=time.clock_gettime(time.CLOCK_BOOTTIME),
            devices=(cpu, *(_name_processes(gpu, own) for gpu in gpus)),
            nics=self._read_nics(now),
            disks=self._read_disks(now),
            processes=self._read_processes(own.values()),
        )

    # ------------------------------------------------------------------------------------------------

    def _read_nics(self, now: float) -> tuple[NicSample, ...]:
        counters = psutil.net_io_counters(pernic=True, nowrap=False)
        states = psutil.net_if_stats()
        span = _span(now, self._nics_at)
        nics = []
        for name, count in sorted(counters.items()):
            before = self._nic_counters.get(name)
            state = states.get(name)
            nics.append(
                NicSample(
                    name=name,
                    is_up=bool(state and state.isup),
                    # The kernel says 65535 or -1 Mbit/s where it does not know (virtual interfaces).
                    speed_bits_per_s=float(state.speed * 1_000_000) if state and 0 < state.speed < 65535 else 0.0,
                    received_bytes_per_s=_rate(count, before, "bytes_recv", span),
                    sent_bytes_per_s=_rate(count, before, "bytes_sent", span),
                    errors=count.errin + count.errout,
                    drops=count.dropin + count.dropout,
                )
            )
        self._nics_at, self._nic_counters = now, counters
        return tuple(nics)

    def _read_disks(self, now: float) -> tuple[DiskSample, ...]:
        if now >= self._disks_at:
            self._disks_at = now + DISK_S
            self._mounts = _list_mounts(self._prefix)
            self._space = {mount: space for mount in self._mounts.values() if (space := _space_of(mount))}
        counters = psutil.disk_io_counters(perdisk=True, nowrap=False) or {}
        span = _span(now, self._io_at)
        disks = []
        for device, mount in sorted(self._mounts.items(), key=lambda pair: pair[1]):
            if mount not in self._space:
                continue
            total, free = self._space[mount]
            name = Path(device).resolve().name
            count, before = counters.get(name), self._io_counters.get(name)
            disks.append(
                DiskSample(
                    mount=mount,
                    total_bytes=total,
                    free_bytes=free,
                    read_bytes_per_s=_rate(count, before, "read_bytes", span),
                    written_bytes_per_s=_rate(count, before, "write_bytes", span),
                )
            )
        self._io_at, self._io_counters = now, counters
        return tuple(disks)

    def _read_processes(self, own: Iterable[OwnProcess]) -> tuple[ProcessSample, ...]:
        known: dict[int, psutil.Process] = {}
        samples = []
        for entry in own:
            try:
                process = self._processes.get(entry.pid)
                if process is None or not process.is_running():
                    process = psutil.Process(entry.pid)
                known[entry.pid] = process
                with process.oneshot():
                    samples.append(
                        ProcessSample(
                            role=entry.role,
                            name=entry.name,
                            pid=entry.pid,
                            rss_bytes=process.memory_info().rss,
                            cpu=process.cpu_percent(None) / 100,
                            num_threads=process.num_threads(),
                            num_fds=process.num_fds(),
                        )
                    )
            except psutil.Error:
                # It ended between the supervisor's list and our look: its row ends with it.
                continue
        self._processes = known
        return tuple(samples)


def _list_mounts(prefix: Path) -> dict[str, str]:
    """Local file systems, device to mount point; a device mounted often is shown at its shortest path."""
    mounts: dict[str, str] = {}
    for partition in psutil.disk_partitions(all=True):
        if partition.fstype not in _LOCAL_FILE_SYSTEMS:
            continue
        if Path(partition.mountpoint).is_dir():
            mount = mounts.setdefault(partition.device, partition.mountpoint)
            mounts[partition.device] = min(mount, partition.mountpoint, key=len)
    prefix_mount = _mount_of(prefix)
    if prefix_mount not in mounts.values():
        mounts[prefix_mount] = prefix_mount
    return mounts


def _mount_of(path: Path) -> str:
    path = path.absolute()
    while not path.is_mount():
        path = path.parent
    return str(path)


def _space_of(mount: str) -> tuple[int, int] | None:
    try:
        space = os.statvfs(mount)
    except OSError:
        return None
    return space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize


def _span(now: float, before: float | None) -> float:
    return now - before if before is not None else 0.0


def _rate(count: Any, before: Any, field: str, span: float) -> float:
    """Per second since the last reading; 0 at the first one, and where a counter started anew."""
    if count is None or before is None or span <= 0:
        return 0.0
    return float(max(0.0, (getattr(count, field) - getattr(before, field)) / span))


def _name_processes(gpu: DeviceSample, own: dict[int, OwnProcess]) -> DeviceSample:
    """The device with our own processes named by deployment and rank."""
    if not any(process.pid in own for process in gpu.processes):
        return gpu
    return msgspec.structs.replace(
        gpu,
        processes=tuple(
            msgspec.structs.replace(
                process, deployment=own[process.pid].deployment, rank_id=own[process.pid].rank_id
            )
            if process.pid in own
            else process
            for process in gpu.processes
        ),
    )
