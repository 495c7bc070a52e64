"""The fleet as a table with a row for every device: GPUs, and the CPU of each host."""

from __future__ import annotations

from collections.abc import Sequence

from agent.facts.cluster import DeviceFacts
from agent.facts.sample import DeviceSample, Lost, Reading
from odctl.fleet.snapshot import FleetSnapshot, HostView
from odctl.tui.model.fleet_columns import fleet_columns
from odctl.tui.model.marks import HOST_MARKS, HOST_ORDER, Mark
from odctl.tui.model.readings import (
    NONE,
    load_span,
    memory_text,
    reading_reason,
    reading_span,
    reading_value,
)
from odctl.tui.model.table import Banner, Column, Value
from odctl.tui.model.text import Line, Span, dimmed, line

COLUMNS = (
    Column(id="host", title="HOST", width=12, grow_to=24),
    Column(id="device", title="DEVICE", width=7),
    Column(id="state", title="STATE", width=13, priority=7),
    Column(id="util", title="UTIL", width=11, priority=1, grow_to=18, sorts_down=True),
    Column(id="memory", title="MEMORY", width=11, priority=2, is_right=True, sorts_down=True),
    Column(id="temp", title="TEMP", width=4, priority=3, is_right=True, sorts_down=True),
    Column(id="power", title="POWER", width=9, priority=4, is_right=True, sorts_down=True),
    Column(id="clock", title="SM MHz", width=6, priority=8, is_right=True, sorts_down=True),
    Column(id="ecc", title="ECC", width=5, priority=9, is_right=True, sorts_down=True),
    Column(id="xid", title="XID", width=5, priority=6, sorts_down=True),
    Column(id="procs", title="PROCS", width=5, priority=10, is_right=True, sorts_down=True),
    Column(id="note", title="NAME", width=14, priority=5, grow_to=60),
)

Device = tuple[HostView, str, DeviceSample | None, DeviceFacts | None]
"""A host, a device of it, and what its sample and its facts say of that."""


class DeviceRows:
    """Every device of a snapshot; keys are `host/device`."""

    columns = COLUMNS

    def __init__(self, snapshot: FleetSnapshot) -> None:
        self._hosts = snapshot.hosts
        self._index = fleet_columns(snapshot).devices
        self.keys: Sequence[str] = self._index.keys
        self._last: tuple[int, Device] | None = None

    def _device(self, row: int) -> Device:
        """A row's cells are asked for one after the other: the last device is kept."""
        if self._last is None or self._last[0] != row:
            self._last = row, self._found(row)
        return self._last[1]

    def _found(self, row: int) -> Device:
        place = self._index.place(row)
        host = self._hosts[place.host]
        sample = host.sample.devices[place.sample] if host.sample is not None and place.sample is not None else None
        facts = host.facts.devices[place.facts] if host.facts is not None and place.facts is not None else None
        return host, place.device, sample, facts

    def values(self, column: str) -> Sequence[Value]:
        return [_value(self._device(row), column) for row in range(len(self.keys))]

    def text(self, row: int) -> str:
        device = self._device(row)
        host, name, _, _ = device
        return f"{host.name} {name} {_name(device)} {HOST_MARKS[host.state].word}"

    def labels(self, row: int) -> dict[str, str]:
        facts = self._hosts[self._index.place(row).host].facts
        return facts.labels if facts else {}

    def banner(self, row: int) -> Banner | None:  # noqa: ARG002 - every row has its cells
        return None

    def cell(self, row: int, column: str, width: int) -> Line:
        device = self._device(row)
        host, device_id, sample, _ = device
        match column:
            case "host":
                return line(Span(host.name, "bold"))
            case "device":
                return line(device_id)
            case "state":
                return line(_mark(host, sample).span)
            case "note":
                return _note(device)
        if sample is None or (isinstance(sample.utilisation, Lost) and column not in {"util", "xid"}):
            return line(Span(NONE, "dim"))
        spans = _sample_cell(sample, column, width)
        return spans if host.state == "live" else dimmed(spans)


def _name(device: Device) -> str:
    _, _, sample, facts = device
    return sample.name if sample else facts.name if facts else ""


def _mark(host: HostView, sample: DeviceSample | None) -> Mark:
    if host.state == "live" and sample is not None and isinstance(sample.utilisation, Lost):
        return Mark("✗", "device lost", "fault")
    return HOST_MARKS[host.state]


def _note(device: Device) -> Line:
    """The name, after whatever is wrong."""
    _, _, sample, _ = device
    if sample is None:
        return line(_name(device))
    if isinstance(sample.utilisation, Lost):
        return line(Span(f"✗ {sample.utilisation.reason}", "fault"), f"  {_name(device)}")
    if sample.throttle_reasons:
        return line(Span(f"▲ {', '.join(sample.throttle_reasons)}", "warn"), f"  {_name(device)}")
    reason = reading_reason(sample.utilisation)
    return line(_name(device), Span(f"  {reason}" if reason else "", "dim"))


def _sample_cell(sample: DeviceSample, column: str, width: int) -> Line:
    match column:
        case "util":
            return load_span(sample.utilisation, width)
        case "memory":
            return line(memory_text(sample.memory_used_bytes, sample.memory_total_bytes))
        case "temp":
            return line(reading_span(sample.temperature_c, lambda value: f"{value:.0f}°"))
        case "power":
            return line(power_span(sample.power_w, sample.power_limit_w))
        case "clock":
            return line(reading_span(sample.sm_clock_hz, lambda value: f"{value / 1e6:.0f}"))
        case "ecc":
            count = reading_span(sample.ecc_uncorrected, lambda value: f"{value:.0f}")
            return line(Span(count.text, "fault") if (reading_value(sample.ecc_uncorrected) or 0) > 0 else count)
        case "xid":
            return line(Span(",".join(map(str, sample.xid)), "fault") if sample.xid else Span(NONE, "dim"))
        case _:
            return line(str(len(sample.processes)))


def power_span(power: Reading, limit: Reading) -> Span:
    top = reading_value(limit)
    return reading_span(power, lambda value: f"{value:.0f}/{top:.0f}W" if top is not None else f"{value:.0f}W")


def _value(device: Device, column: str) -> Value:
    host, device_id, sample, _ = device
    match column:
        case "host":
            return host.name
        case "device":
            return device_id
        case "state":
            return HOST_ORDER[host.state]
        case "note":
            return _name(device)
    return _sample_value(sample, column) if sample is not None else None


def _sample_value(sample: DeviceSample, column: str) -> Value:
    match column:
        case "util":
            return _percent(reading_value(sample.utilisation))
        case "memory":
            used, total = reading_value(sample.memory_used_bytes), reading_value(sample.memory_total_bytes)
            return used / total * 100 if used is not None and total else None
        case "temp":
            return reading_value(sample.temperature_c)
        case "power":
            return reading_value(sample.power_w)
        case "clock":
            return reading_value(sample.sm_clock_hz)
        case "ecc":
            return reading_value(sample.ecc_uncorrected)
        case "xid":
            return float(len(sample.xid))
        case _:
            return float(len(sample.processes))


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else fraction * 100
