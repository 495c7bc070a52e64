"""What views of many hosts need of a sample, reckoned once when it arrives: no view walks 80,000 devices to draw.

No I/O, no clock.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from agent.facts.sample import HostSample, Lost, Ok, Stale

_KNOWN = (Ok, Stale)
QUIET_THROTTLES = frozenset({"application clocks", "power cap", "sync boost", "display clocks"})
"""Reasons that a healthy GPU gives every day: the device table shows them, but they are no warning of a host."""

OLD_READING_S = 5.0
"""A device's last value is worth a warning from this age on; a second late now and then is nothing."""


class HostDigest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One sample over all devices of its host. Fractions 0 to 1; None where no device says anything."""

    device_ids: tuple[str, ...] = ()
    """All devices that the sample has, in its order."""
    num_gpus: int = 0
    gpu: float | None = None
    """Mean utilisation of the GPUs that have a value, fresh or stale."""
    num_busy: int = 0
    """How many GPUs that mean is of."""
    gpu_used_bytes: float | None = None
    """Over the GPUs that tell both used and total memory."""
    gpu_total_bytes: float | None = None
    temperature_c: float | None = None
    """The hottest device's."""
    num_lost: int = 0
    """GPUs that are gone (fell off the bus)."""
    fault: str = ""
    """What is broken, by the first device that is: `cuda:2 GPU is lost`."""
    warning: str = ""
    """What is amiss, by the first device that says so: `cuda:1 throttled: HW thermal`."""
    trouble: Literal["", "warning", "fault"] = ""
    """The worse one of the two that there is."""


def host_digest(sample: HostSample) -> HostDigest:
    """One pass over the devices."""
    num_gpus = num_lost = num_busy = num_held = 0
    busy = used = total = 0.0
    hottest: float | None = None
    fault = warning = old = ""
    for device in sample.devices:
        heat = device.temperature_c
        if isinstance(heat, _KNOWN) and (hottest is None or heat.value > hottest):
            hottest = heat.value
        if device.kind == "cpu":
            continue
        num_gpus += 1
        load, held, size = device.utilisation, device.memory_used_bytes, device.memory_total_bytes
        if isinstance(load, _KNOWN):
            num_busy += 1
            busy += load.value
            if isinstance(load, Stale) and load.age_s >= OLD_READING_S and not old:
                old = f"{device.id} readings {load.age_s:.0f} s old"
        elif isinstance(load, Lost):
            num_lost += 1
            fault = fault or f"{device.id} {load.reason}"
        if isinstance(held, _KNOWN) and isinstance(size, _KNOWN):
            num_held += 1
            used += held.value
            total += size.value
        if device.xid:
            # Many codes tell of a program's mistake, not of a broken GPU: what is broken says so by being lost.
            warning = warning or f"{device.id} Xid {','.join(map(str, device.xid))}"
        if device.throttle_reasons and not warning:
            loud = [reason for reason in device.throttle_reasons if reason not in QUIET_THROTTLES]
            warning = f"{device.id} throttled: {', '.join(loud)}" if loud else ""
    warning = warning or old
    return HostDigest(
        device_ids=tuple([device.id for device in sample.devices]),
        num_gpus=num_gpus,
        gpu=busy / num_busy if num_busy else None,
        num_busy=num_busy,
        gpu_used_bytes=used if num_held else None,
        gpu_total_bytes=total if num_held else None,
        temperature_c=hottest,
        num_lost=num_lost,
        fault=fault,
        warning=warning,
        trouble="fault" if fault else "warning" if warning else "",
    )
