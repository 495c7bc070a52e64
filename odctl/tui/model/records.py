"""What screens show, as values for scripts: one flat record a row, keys that stay, units in their names.

Fractions are 0 to 1. What is unknown is None, and `unknown` says why by key. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from agent.facts.sample import DeviceSample, HostSample, Lost, Reading, Stale
from agent.planner.plan import BLOCK_TOKENS
from agent.wire.gateway import BackendStatus
from odctl.fleet.snapshot import DeploymentView, FleetSnapshot, HostView
from odctl.tui.model.device_rows import DeviceRows
from odctl.tui.model.host_rows import HostRows
from odctl.tui.model.marks import deployment_mark
from odctl.tui.model.plans import deployed_plan
from odctl.tui.model.readings import reading_reason, reading_value
from odctl.tui.model.text import line_text

Record = dict[str, Any]

HOST_KEYS: dict[str, tuple[str, ...]] = {
    "host": ("host",),
    "state": ("state", "reason", "way_out", "sample_age_s"),
    "cpu": ("cpu_fraction",),
    "ram": ("memory_used_bytes", "memory_total_bytes"),
    "gpu": ("gpu_fraction",),
    "vram": ("gpu_memory_used_bytes", "gpu_memory_total_bytes"),
    "temp": ("temperature_c",),
    "power": ("power_w",),
    "net": ("received_bytes_per_s", "sent_bytes_per_s"),
    "load": ("load_1m",),
    "ranks": ("num_ranks",),
    "up": ("uptime_s",),
    "note": ("note",),
}
"""Columns of the fleet's table, and the keys that hold what they show."""
DEVICE_KEYS: dict[str, tuple[str, ...]] = {
    "host": ("host",),
    "device": ("device",),
    "state": ("state",),
    "util": ("utilisation_fraction",),
    "memory": ("memory_used_bytes", "memory_total_bytes"),
    "temp": ("temperature_c",),
    "power": ("power_w", "power_limit_w"),
    "clock": ("sm_clock_hz",),
    "ecc": ("ecc_uncorrected",),
    "xid": ("xid",),
    "procs": ("num_processes",),
    "note": ("name", "throttle_reasons"),
}
"""Columns of the devices' table, likewise."""

_DEVICE_READINGS: dict[str, Callable[[DeviceSample], Reading]] = {
    "utilisation_fraction": lambda sample: sample.utilisation,
    "memory_used_bytes": lambda sample: sample.memory_used_bytes,
    "memory_total_bytes": lambda sample: sample.memory_total_bytes,
    "temperature_c": lambda sample: sample.temperature_c,
    "power_w": lambda sample: sample.power_w,
    "power_limit_w": lambda sample: sample.power_limit_w,
    "sm_clock_hz": lambda sample: sample.sm_clock_hz,
    "memory_clock_hz": lambda sample: sample.memory_clock_hz,
    "ecc_uncorrected": lambda sample: sample.ecc_uncorrected,
    "ecc_corrected": lambda sample: sample.ecc_corrected,
}
_HOST_FIGURES = (
    "cpu_fraction",
    "memory_used_bytes",
    "memory_total_bytes",
    "swap_used_bytes",
    "swap_total_bytes",
    "load_1m",
    "uptime_s",
    "gpu_fraction",
    "gpu_memory_used_bytes",
    "gpu_memory_total_bytes",
    "temperature_c",
    "power_w",
    "received_bytes_per_s",
    "sent_bytes_per_s",
    "read_bytes_per_s",
    "written_bytes_per_s",
    "num_ranks",
)
_BACKEND_FIGURES = (
    "tokens_per_s",
    "ttft_s_p50",
    "ttft_s_p95",
    "time_per_token_s_p50",
    "time_per_token_s_p95",
    "running",
    "queued",
    "slots",
    "finished",
    "failed",
    "cancelled",
    "prompt_tokens",
    "generated_tokens",
    "kv_tokens_held",
    "kv_tokens_total",
)


def host_records(snapshot: FleetSnapshot, rows: HostRows, order: Sequence[int]) -> list[Record]:
    """A record a host, in the order of the table. `note` is the table's."""
    hosts = {host.name: host for host in snapshot.hosts}
    return [
        host_record(hosts[rows.keys[row]]) | {"note": line_text(rows.cell(row, "note", 0)).strip()} for row in order
    ]


def host_record(host: HostView) -> Record:
    """All that is sampled of a host as a whole. Figures of a host that is not live are `sample_age_s` old."""
    figures = _host_figures(host, host.sample) if host.sample is not None else dict.fromkeys(_HOST_FIGURES)
    gpu_reason = host.facts.gpu_unavailable if host.facts is not None else ""
    unknown = {}
    for key, value in figures.items():
        if value is None:
            reason = (gpu_reason or "no GPU") if key.startswith("gpu_") else "not reported by any device"
            unknown[key] = reason if host.sample is not None else host.reason
    return {
        "host": host.name,
        "state": host.state,
        "reason": host.reason,
        "way_out": host.way_out,
        "sample_age_s": host.sample_age_s if host.sample is not None else None,
        "sampled_at_s": host.sample.taken_at_s if host.sample is not None else None,
        "labels": host.facts.labels if host.facts is not None else {},
        **figures,
        "unknown": unknown,
    }


def device_records(snapshot: FleetSnapshot, rows: DeviceRows, order: Sequence[int]) -> list[Record]:
    """A record a device, in the order of the table."""
    hosts = {host.name: host for host in snapshot.hosts}
    out = []
    for row in order:
        name, _, device = rows.keys[row].partition("/")
        out.append(device_record(hosts[name], device))
    return out


def device_record(host: HostView, device: str) -> Record:
    """One GPU, or the CPU of a host. `state` is the host's, or `device lost`."""
    samples = {sample.id: sample for sample in host.sample.devices} if host.sample is not None else {}
    facts = {found.id: found for found in host.facts.devices} if host.facts is not None else {}
    sample, fact = samples.get(device), facts.get(device)
    figures: Record = dict.fromkeys(_DEVICE_READINGS)
    unknown: dict[str, str] = {}
    stale: dict[str, float] = {}
    for key, read in _DEVICE_READINGS.items():
        if sample is None:
            unknown[key] = host.reason or "not sampled"
            continue
        reading = read(sample)
        figures[key] = reading_value(reading)
        if isinstance(reading, Stale):
            stale[key] = reading.age_s
        elif reason := reading_reason(reading):
            unknown[key] = reason
    is_lost = sample is not None and isinstance(sample.utilisation, Lost)
    return {
        "host": host.name,
        "device": device,
        "kind": sample.kind if sample is not None else fact.kind if fact is not None else "",
        "name": sample.name if sample is not None else fact.name if fact is not None else "",
        "state": "device lost" if is_lost and host.state == "live" else host.state,
        "sample_age_s": host.sample_age_s if sample is not None else None,
        **figures,
        "usable_bytes": fact.usable_bytes if fact is not None else None,
        "throttle_reasons": list(sample.throttle_reasons) if sample is not None else [],
        "xid": list(sample.xid) if sample is not None else [],
        "num_processes": len(sample.processes) if sample is not None else None,
        "num_foreign_processes": sum(not each.rank_id for each in sample.processes) if sample is not None else None,
        "stale_s": stale,
        "unknown": unknown,
    }


def deployment_record(view: DeploymentView) -> Record:
    """What a deployment does, beside what its plan promised. Times are None until a request has finished."""
    status = view.status
    backend = status.backend if status is not None else None
    figures: Record = dict.fromkeys(_BACKEND_FIGURES)
    unknown: dict[str, str] = {}
    if status is not None and backend is not None:
        figures |= _backend_figures(view, backend)
        for key, value in figures.items():
            if value is None:
                is_time = key.startswith(("ttft", "time"))
                unknown[key] = "no request has finished" if is_time else "its plan cannot be read here"
    else:
        reason = view.error.message if view.error is not None else "its gateway has no backend attached"
        unknown = dict.fromkeys(figures, reason)
    ranks = status.ranks if status is not None else ()
    num_linked = sum(rank.status is not None and rank.status.state == "linked" for rank in ranks)
    return {
        "deployment": view.name,
        "state": deployment_mark(view).word,
        "reason": view.error.message if view.error is not None else status.reason if status is not None else "",
        "generation": view.record.generation,
        "plan_hash": view.record.plan_hash,
        "controller": view.record.controller,
        "gateway_host": status.gateway_host if status is not None else None,
        "listen": status.listen if status is not None else None,
        "num_ranks": len(status.ranks) if status is not None else None,
        "num_ranks_linked": num_linked if status is not None else None,
        **figures,
        "predicted_tokens_per_s": status.predicted.tokens_per_s if status is not None else None,
        "predicted_ttft_s": status.predicted.ttft_s if status is not None else None,
        "predicted_time_per_token_s": status.predicted.time_per_token_s if status is not None else None,
        "unknown": unknown,
    }


def _host_figures(host: HostView, sample: HostSample) -> Record:
    row = host.history.last
    gpus = [device for device in sample.devices if device.kind != "cpu"]
    busy = _known(gpu.utilisation for gpu in gpus)
    used, total = _known(gpu.memory_used_bytes for gpu in gpus), _known(gpu.memory_total_bytes for gpu in gpus)
    warmth = _known(device.temperature_c for device in sample.devices)
    return {
        "cpu_fraction": sample.cpu,
        "memory_used_bytes": sample.memory_used_bytes,
        "memory_total_bytes": sample.memory_total_bytes,
        "swap_used_bytes": sample.swap_used_bytes,
        "swap_total_bytes": sample.swap_total_bytes,
        "load_1m": sample.load_1m,
        "uptime_s": sample.uptime_s,
        "gpu_fraction": sum(busy) / len(busy) if busy else None,
        "gpu_memory_used_bytes": sum(used) if used else None,
        "gpu_memory_total_bytes": sum(total) if total else None,
        "temperature_c": max(warmth, default=None),
        "power_w": row.power_w if row is not None else None,
        "received_bytes_per_s": row.received_bytes_per_s if row is not None else None,
        "sent_bytes_per_s": row.sent_bytes_per_s if row is not None else None,
        "read_bytes_per_s": sum(disk.read_bytes_per_s for disk in sample.disks),
        "written_bytes_per_s": sum(disk.written_bytes_per_s for disk in sample.disks),
        "num_ranks": sum(process.role == "rank" for process in sample.processes),
    }


def _backend_figures(view: DeploymentView, backend: BackendStatus) -> Record:
    has_finished = backend.finished > 0
    assert view.status is not None
    plan = deployed_plan(view.status)
    times = ("ttft_s_p50", "ttft_s_p95", "time_per_token_s_p50", "time_per_token_s_p95")
    counts = (
        "tokens_per_s",
        "running",
        "queued",
        "slots",
        "finished",
        "failed",
        "cancelled",
        "prompt_tokens",
        "generated_tokens",
    )
    return {
        **{key: getattr(backend, key) for key in counts},
        **{key: getattr(backend, key) if has_finished else None for key in times},
        "kv_tokens_held": backend.blocks_held * BLOCK_TOKENS,
        "kv_tokens_total": (
            plan.serving.kv_blocks * len(plan.replicas) * BLOCK_TOKENS if plan is not None else None
        ),
    }


def _known(readings: Iterable[Reading]) -> list[float]:
    return [value for reading in readings if (value := reading_value(reading)) is not None]
