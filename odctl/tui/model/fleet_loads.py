"""The load and memory of every host and of all together, in one pass.

A host's values lie together, and ten thousand hosts' do not fit a cache: a pass for each figure would fetch them
all again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from agent.facts.sample import HostSample
from odctl.fleet.digest import HostDigest
from odctl.fleet.history import HostRow
from odctl.fleet.snapshot import HostState

MEMORY_WARNING = 0.95
"""Share of a host's memory in use from which that is worth a warning."""


class Totals(NamedTuple):
    """Sums over the hosts whose sample is fresh."""

    num_hosts: int
    cores: int
    busy_cores: float
    memory_used_bytes: int
    memory_total_bytes: int
    num_gpus: int
    num_telling: int
    """GPUs that tell their utilisation."""
    busy_gpus: float
    gpu_used_bytes: float
    gpu_total_bytes: float
    sent_bytes_per_s: float


class FleetLoads(NamedTuple):
    """Percentages, 0 to 100, by row number; None where there is none."""

    cpu: list[float | None]
    ram: list[float | None]
    gpu: list[float | None]
    full: list[int]
    """Rows of the hosts whose memory is used up but for a little."""
    troubled: list[int]
    """Rows of the hosts whose digest tells of a trouble."""
    totals: Totals


def fleet_loads(
    states: Sequence[HostState],
    samples: Sequence[HostSample | None],
    cores: Sequence[int],
    digests: Sequence[HostDigest],
    last_rows: Sequence[HostRow | None],
) -> FleetLoads:
    """Of hosts whose state, sample and so on stand in the same place of each."""
    cpus: list[float | None] = []
    rams: list[float | None] = []
    gpus: list[float | None] = []
    full: list[int] = []
    troubled: list[int] = []
    num_hosts = all_cores = used = total = num_gpus = num_telling = 0
    busy = busy_gpus = gpu_used = gpu_total = sent = 0.0
    full_from = MEMORY_WARNING * 100
    for state, sample, of_host, digest, last in zip(states, samples, cores, digests, last_rows, strict=True):
        gpu = digest.gpu
        gpus.append(gpu * 100 if gpu is not None else None)
        if digest.trouble:
            troubled.append(len(gpus) - 1)
        if sample is None:
            cpus.append(None)
            rams.append(None)
            continue
        cpu, held, size = sample.cpu, sample.memory_used_bytes, sample.memory_total_bytes
        cpus.append(cpu * 100)
        ram = held / size * 100 if size else None
        rams.append(ram)
        if ram is not None and ram > full_from:
            full.append(len(rams) - 1)
        if state != "live":
            continue
        num_hosts += 1
        all_cores += of_host
        busy += cpu * of_host
        used += held
        total += size
        if of_gpus := digest.num_gpus:
            num_gpus += of_gpus
            telling = digest.num_busy
            num_telling += telling
            busy_gpus += (gpu or 0.0) * telling
            gpu_used += digest.gpu_used_bytes or 0
            gpu_total += digest.gpu_total_bytes or 0
        if last is not None:
            sent += last.sent_bytes_per_s
    totals = Totals(
        num_hosts, all_cores, busy, used, total, num_gpus, num_telling, busy_gpus, gpu_used, gpu_total, sent
    )
    return FleetLoads(cpus, rams, gpus, full, troubled, totals)
