from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from agent.engine import device_probe
from agent.engine.device_probe import (
    LAYER_SEQUENCES,
    SKINNY_ROWS,
    measure_device,
    seconds_in_turn,
    seconds_of,
)
from agent.errors import FleetError
from agent.wire.probe import DeviceProbeConfig, ProbeSizes

TINY = ProbeSizes(
    copy_bytes=1 << 20,
    matrix_size=256,
    weights_bytes=1 << 20,
    large_rows=96,
    contexts=(64, 512),
    disk_bytes=4 << 20,
    span_s=0.002,
)


def config(sizes: ProbeSizes = TINY, *, device: str = "cpu", disk_dir: str = "") -> DeviceProbeConfig:
    return DeviceProbeConfig(
        host="h",
        device=device,
        kind="cpu" if device == "cpu" else "cuda",
        name="it",
        threads=1,
        sizes=sizes,
        disk_dir=disk_dir,
        limit_s=30,
    )


def test_every_kind_that_serves_is_measured_by_its_kernel(tmp_path: Path) -> None:
    report = measure_device(config(disk_dir=str(tmp_path)))
    probe = report.device
    rows = (*SKINNY_ROWS, TINY.large_rows)
    assert [(g.dtype, g.quantisation, g.rows) for g in probe.gemms] == [
        (dtype, quantisation, count)
        for dtype, quantisation in (("bfloat16", "none"), ("bfloat16", "int8"), ("float32", "none"))
        for count in rows
    ]
    for gemm in probe.gemms:
        assert gemm.seconds > 0
        assert gemm.flops_per_s == pytest.approx(2 * gemm.rows * 256**2 / gemm.seconds)
    # codes and their scales, not the bf16 that they were made of
    assert {g.quantisation: g.weight_bytes >= 2 * 256**2 for g in probe.gemms} == {"none": True, "int8": False}
    assert [a.context for a in probe.attention] == [64, 512]
    assert probe.attention[0].cache_bytes == 2 * 64 * 8 * 128 * 2
    assert [(layer.dtype, layer.quantisation, layer.sequences) for layer in probe.layers] == [
        (dtype, quantisation, count)
        for dtype, quantisation in (("bfloat16", "none"), ("bfloat16", "int8"), ("float32", "none"))
        for count in LAYER_SEQUENCES
    ]
    assert all(0 < layer.seconds < 1 for layer in probe.layers)
    assert {layer.weight_elements for layer in probe.layers} == {512 * 256 + 256 * 256 + 3 * 512 * 256}
    assert probe.copy_bytes_per_s > 0
    assert probe.read_bytes_per_s > 0
    assert report.disk_read_bytes_per_s is not None
    assert list(tmp_path.iterdir()) == [], "nothing is left on the disk"


def test_the_warm_up_is_not_counted_and_there_are_three_repeats_at_least() -> None:
    calls: list[int] = []
    seconds = seconds_of(calls.append, torch.device("cpu"), 1e-3)
    assert calls[:4] == [0, 1, 2, 3]
    assert 0 < seconds < 0.01


def test_on_a_slow_device_one_repeat_is_enough() -> None:
    calls: list[int] = []

    def act(number: int) -> None:
        calls.append(number)
        time.sleep(0.01)

    assert seconds_of(act, torch.device("cpu"), 1e-3) > 0.009
    assert calls == [0, 1]


def test_what_takes_seconds_is_measured_the_first_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_probe, "LONG_ROUND_S", 0.02)
    calls: list[int] = []

    def act(number: int) -> None:
        calls.append(number)
        time.sleep(0.012)

    one, other = seconds_in_turn([act, act], torch.device("cpu"), 1e-3)
    assert calls == [0, 0]
    assert min(one, other) >= 0.012


def test_a_disk_without_room_is_not_filled(tmp_path: Path) -> None:
    import msgspec

    sizes = msgspec.structs.replace(TINY, disk_bytes=1 << 60)
    assert measure_device(config(sizes, disk_dir=str(tmp_path))).disk_read_bytes_per_s is None


def test_a_device_without_room_is_refused_before_anything_is_allocated() -> None:
    with pytest.raises(FleetError, match="a probe of cpu needs") as refused:
        measure_device(config(ProbeSizes(copy_bytes=1 << 50)))
    assert (refused.value.code, refused.value.host) == ("E804", "h")
    assert "--quick" in refused.value.hint


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(FleetError, match="cuda:0 is not there"):
        measure_device(config(device="cuda:0"))
