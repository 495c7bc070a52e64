from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from agent.api.metrics import render_host_metrics
from agent.facts.sample import (
    DeviceSample,
    DiskSample,
    HostSample,
    Lost,
    NicSample,
    NotAvailable,
    Ok,
    ProcessSample,
    Reading,
    Stale,
)


def device(number: int, reading: Reading) -> DeviceSample:
    return DeviceSample(
        id=f"cuda:{number}",
        kind="cuda",
        name="GPU",
        utilisation=reading,
        memory_used_bytes=reading,
        memory_total_bytes=reading,
        temperature_c=reading,
        power_w=reading,
        power_limit_w=reading,
        sm_clock_hz=reading,
        memory_clock_hz=reading,
        throttle_reasons=("power cap",) if number == 0 else (),
    )


SAMPLE = HostSample(
    host="a",
    taken_at_s=1.0,
    cpu=0.25,
    load_1m=1.5,
    memory_total_bytes=100,
    memory_used_bytes=40,
    swap_total_bytes=0,
    swap_used_bytes=0,
    uptime_s=7.0,
    devices=(
        device(0, Ok(0.5)),
        device(1, Lost("GPU is lost")),
        device(2, NotAvailable("x")),
        device(3, Stale(1, 2)),
    ),
    nics=(
        NicSample(
            name="eth0",
            is_up=True,
            speed_bits_per_s=1e9,
            received_bytes_per_s=10.0,
            sent_bytes_per_s=20.0,
            errors=1,
            drops=2,
        ),
    ),
    disks=(DiskSample(mount="/", total_bytes=9, free_bytes=4, read_bytes_per_s=0, written_bytes_per_s=0),),
    processes=(ProcessSample(role="rank", name="r", pid=1, rss_bytes=5, cpu=0.5, num_threads=1, num_fds=1),),
)


def series() -> dict[tuple[str, str], float]:
    text = render_host_metrics(SAMPLE).decode()
    return {
        (sample.name, sample.labels.get("device") or sample.labels.get("nic") or ""): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_prometheus_own_parser_reads_every_figure() -> None:
    found = series()
    assert found["odctl_host_cpu_busy_ratio", ""] == 0.25
    assert found["odctl_device_utilisation_ratio", "cuda:0"] == 0.5
    assert found["odctl_device_throttled", "cuda:0"] == 1
    assert found["odctl_nic_sent_bytes_per_second", "eth0"] == 20
    assert found["odctl_nic_drops_total", "eth0"] == 2
    assert found["odctl_disk_free_bytes", ""] == 4
    assert found["odctl_process_cpu_cores", ""] == 0.5


def test_what_is_not_known_has_no_series_and_a_lost_device_says_so() -> None:
    found = series()
    for silent in ("cuda:1", "cuda:2", "cuda:3"):
        assert ("odctl_device_utilisation_ratio", silent) not in found
    assert [found["odctl_device_lost", f"cuda:{number}"] for number in range(4)] == [0, 1, 0, 0]
