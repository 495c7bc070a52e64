"""A host's newest sample in Prometheus' text format. A reading without a value has no series: it is not 0."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from agent.facts.sample import DeviceSample, HostSample, Lost, Ok, Reading

CONTENT_TYPE = CONTENT_TYPE_LATEST

_DEVICE_GAUGES = {
    "utilisation_ratio": "Busy share, 0 to 1",
    "memory_used_bytes": "Memory in use",
    "memory_total_bytes": "Memory",
    "temperature_celsius": "Temperature",
    "power_watts": "Power drawn",
    "power_limit_watts": "Power limit in force",
    "sm_clock_hertz": "SM clock",
    "memory_clock_hertz": "Memory clock",
    "ecc_uncorrected_errors": "Uncorrected ECC errors since the driver was loaded",
    "ecc_corrected_errors": "Corrected ECC errors since the driver was loaded",
    "memory_temperature_celsius": "Temperature of its memory",
    "nvlink_received_bytes_per_second": "Data received over all its NVLinks",
    "nvlink_sent_bytes_per_second": "Data sent over all its NVLinks",
    "pcie_received_bytes_per_second": "Received over PCIe",
    "pcie_sent_bytes_per_second": "Sent over PCIe",
    "pcie_generation": "PCIe generation in use",
    "pcie_max_generation": "PCIe generation that it could use",
    "pcie_lanes": "PCIe lanes in use",
    "pcie_max_lanes": "PCIe lanes that it could use",
}


def render_host_metrics(sample: HostSample) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Sampled(sample))
    return generate_latest(registry)


class _Sampled(Collector):
    def __init__(self, sample: HostSample) -> None:
        self._sample = sample

    def collect(self) -> Iterable[Metric]:
        yield from _host_metrics(self._sample)
        yield from _device_metrics(self._sample)
        yield from _nic_metrics(self._sample)
        yield from _disk_metrics(self._sample)
        yield from _process_metrics(self._sample)


def _host_metrics(sample: HostSample) -> Iterable[Metric]:
    for name, text, value in (
        ("sampled_timestamp_seconds", "When the sample was taken", sample.taken_at_s),
        ("cpu_busy_ratio", "Busy share of all cores, 0 to 1", sample.cpu),
        ("load1", "Load average over one minute", sample.load_1m),
        ("memory_total_bytes", "Memory", sample.memory_total_bytes),
        ("memory_used_bytes", "Memory in use", sample.memory_used_bytes),
        ("swap_total_bytes", "Swap", sample.swap_total_bytes),
        ("swap_used_bytes", "Swap in use", sample.swap_used_bytes),
        ("uptime_seconds", "Time since boot", sample.uptime_s),
    ):
        gauge = GaugeMetricFamily(f"odctl_host_{name}", text, labels=["host"])
        gauge.add_metric([sample.host], value)
        yield gauge


def _device_metrics(sample: HostSample) -> Iterable[Metric]:
    labels = ["host", "device", "kind"]
    for name, text in _DEVICE_GAUGES.items():
        gauge = GaugeMetricFamily(f"odctl_device_{name}", text, labels=labels)
        for device in sample.devices:
            reading = _readings(device)[name]
            if isinstance(reading, Ok):
                gauge.add_metric([sample.host, device.id, device.kind], reading.value)
        yield gauge
    lost = GaugeMetricFamily("odctl_device_lost", "1 when the device is gone", labels=labels)
    throttled = GaugeMetricFamily(
        "odctl_device_throttled", "1 for each reason that holds clocks down", labels=[*labels, "reason"]
    )
    for device in sample.devices:
        key = [sample.host, device.id, device.kind]
        lost.add_metric(key, float(isinstance(device.utilisation, Lost)))
        for reason in device.throttle_reasons:
            throttled.add_metric([*key, reason], 1)
    yield lost
    yield throttled


def _readings(device: DeviceSample) -> dict[str, Reading]:
    return {
        "utilisation_ratio": device.utilisation,
        "memory_used_bytes": device.memory_used_bytes,
        "memory_total_bytes": device.memory_total_bytes,
        "temperature_celsius": device.temperature_c,
        "power_watts": device.power_w,
        "power_limit_watts": device.power_limit_w,
        "sm_clock_hertz": device.sm_clock_hz,
        "memory_clock_hertz": device.memory_clock_hz,
        "ecc_uncorrected_errors": device.ecc_uncorrected,
        "ecc_corrected_errors": device.ecc_corrected,
        "memory_temperature_celsius": device.memory_temperature_c,
        "nvlink_received_bytes_per_second": device.nvlink_received_bytes_per_s,
        "nvlink_sent_bytes_per_second": device.nvlink_sent_bytes_per_s,
        "pcie_received_bytes_per_second": device.pcie_received_bytes_per_s,
        "pcie_sent_bytes_per_second": device.pcie_sent_bytes_per_s,
        "pcie_generation": device.pcie_generation,
        "pcie_max_generation": device.pcie_max_generation,
        "pcie_lanes": device.pcie_lanes,
        "pcie_max_lanes": device.pcie_max_lanes,
    }


def _nic_metrics(sample: HostSample) -> Iterable[Metric]:
    labels = ["host", "nic"]
    received = GaugeMetricFamily(
        "odctl_nic_received_bytes_per_second", "Received over the last second", labels=labels
    )
    sent = GaugeMetricFamily("odctl_nic_sent_bytes_per_second", "Sent over the last second", labels=labels)
    errors = CounterMetricFamily("odctl_nic_errors", "Errors since boot", labels=labels)
    drops = CounterMetricFamily("odctl_nic_drops", "Packets dropped since boot", labels=labels)
    for nic in sample.nics:
        key = [sample.host, nic.name]
        received.add_metric(key, nic.received_bytes_per_s)
        sent.add_metric(key, nic.sent_bytes_per_s)
        errors.add_metric(key, nic.errors)
        drops.add_metric(key, nic.drops)
    return received, sent, errors, drops


def _disk_metrics(sample: HostSample) -> Iterable[Metric]:
    labels = ["host", "mount"]
    total = GaugeMetricFamily("odctl_disk_total_bytes", "Size of the file system", labels=labels)
    free = GaugeMetricFamily("odctl_disk_free_bytes", "Free for us", labels=labels)
    for disk in sample.disks:
        total.add_metric([sample.host, disk.mount], disk.total_bytes)
        free.add_metric([sample.host, disk.mount], disk.free_bytes)
    return total, free


def _process_metrics(sample: HostSample) -> Iterable[Metric]:
    labels = ["host", "role", "name"]
    memory = GaugeMetricFamily("odctl_process_resident_bytes", "Resident memory", labels=labels)
    cpu = GaugeMetricFamily("odctl_process_cpu_cores", "Cores in use over the last second", labels=labels)
    for process in sample.processes:
        key = [sample.host, process.role, process.name]
        memory.add_metric(key, process.rss_bytes)
        cpu.add_metric(key, process.cpu)
    return memory, cpu
