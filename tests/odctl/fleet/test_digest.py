from __future__ import annotations

import msgspec

from agent.facts.sample import Lost, NotAvailable, Ok, Stale
from odctl.fleet.digest import host_digest
from tests.odctl.fleet import values
from tests.odctl.fleet.values import GIB
from tests.odctl.tui import frozen_fleet as frozen


def test_a_host_without_gpus_has_no_figures_of_them_rather_than_zeros() -> None:
    digest = host_digest(values.sample("cpu01"))
    assert (digest.num_gpus, digest.gpu, digest.gpu_used_bytes, digest.temperature_c) == (0, None, None, None)
    assert (digest.fault, digest.warning) == ("", "")


def test_lost_gpus_are_left_out_of_means_and_of_memory_and_named_as_a_fault() -> None:
    digest = host_digest(frozen.gpu_sample("gpu01"))
    assert digest.device_ids == tuple(device.id for device in frozen.gpu_sample("gpu01").devices)
    assert (digest.num_gpus, digest.num_busy, digest.num_lost) == (3, 2, 1)
    assert digest.gpu == (0.82 + 0.79) / 2, "a stale value is the last one known"
    assert (digest.gpu_used_bytes, digest.gpu_total_bytes) == (36.0 * GIB, 48.0 * GIB)
    assert digest.temperature_c == 86.0
    assert digest.fault == "cuda:2 GPU is lost (Xid 79)"
    assert digest.warning == "cuda:1 throttled: HW thermal"


def test_a_power_cap_is_no_warning_of_a_host_and_a_program_s_xid_is_no_fault() -> None:
    base = values.sample("gpu01")
    capped = msgspec.structs.replace(base, devices=(frozen.gpu(0, throttle_reasons=("power cap",)),))
    assert host_digest(capped).warning == ""
    told = msgspec.structs.replace(base, devices=(frozen.gpu(0, xid=(31,)),))
    assert (host_digest(told).warning, host_digest(told).fault) == ("cuda:0 Xid 31", "")


def test_the_hottest_device_counts_and_what_cannot_be_read_does_not() -> None:
    sample = msgspec.structs.replace(
        values.sample("gpu01"),
        devices=(
            frozen.gpu(0, temperature_c=Stale(91.0, 5.0)),
            frozen.gpu(1, temperature_c=NotAvailable("no permission"), utilisation=NotAvailable("no permission")),
            frozen.gpu(2, temperature_c=Ok(50.0), utilisation=Lost("GPU is lost")),
        ),
    )
    digest = host_digest(sample)
    assert (digest.temperature_c, digest.gpu, digest.num_busy) == (91.0, 0.82, 1)


def test_readings_that_are_late_warn_once_they_are_old() -> None:
    base = values.sample("gpu01")
    late, old = Stale(0.5, 2.0), Stale(0.5, 9.0)
    assert host_digest(msgspec.structs.replace(base, devices=(frozen.gpu(0, utilisation=late),))).warning == ""
    found = host_digest(msgspec.structs.replace(base, devices=(frozen.gpu(0, utilisation=old),)))
    assert found.warning == "cuda:0 readings 9 s old"
    assert found.gpu == 0.5, "the last value stays, and is said to be old"
