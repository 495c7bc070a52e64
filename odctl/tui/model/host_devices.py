"""The devices of one host as a table, what they hold, and the reason for every value that is not there.

Columns that a narrow terminal has no room for stand in a line below their device: nothing is cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from agent.facts.sample import DeviceProcess, DeviceSample, Lost, NotAvailable, Ok, Reading
from agent.planner.plan import rank_places
from agent.planner.words import layers_words
from odctl.fleet.snapshot import FleetSnapshot, HostView
from odctl.tui.model.device_rows import power_span
from odctl.tui.model.plans import deployed_plan
from odctl.tui.model.readings import (
    NONE,
    load_span,
    memory_text,
    reading_reason,
    reading_span,
    reading_value,
)
from odctl.tui.model.table import GAP, Column, layout
from odctl.tui.model.text import Line, Span, dimmed, fit, fit_line, line, line_width, wrap
from odctl.tui.model.units import bytes_text, rate_text

BUSY = 0.2
"""From this utilisation on a PCIe link that is below its generation is no sleeping one."""
_UNKNOWN = Span(NONE, "dim")


class _Cell(NamedTuple):
    column: Column
    draw: Callable[[DeviceSample, int], Line]


class ForeignProcess(NamedTuple):
    """A process on a device that is not ours."""

    device: str
    process: DeviceProcess


def device_lines(host: HostView, *, width: int) -> tuple[Line, ...]:
    """Header, a line a device with what found no room below it, and why values are missing."""
    if host.sample is None:
        return ()
    shown = layout([cell.column for cell in _CELLS], width - 1)
    header = (" " * GAP).join(fit(column.title, size, is_right=column.is_right) for column, size in shown)
    lines: list[Line] = [line(Span(f" {header}", "title"))]
    for device in host.sample.devices:
        lines.append(_row(device, shown, is_live=host.state == "live"))
        if not isinstance(device.utilisation, Lost):
            lines += _more_lines(device, {column.id: size for column, size in shown}, width)
        lines += [line(Span(f"   — {text}", "dim")) for text in wrap(_reasons(device), width - 6) if text]
    return tuple(lines)


def foreign_processes(host: HostView) -> tuple[ForeignProcess, ...]:
    """By device and pid."""
    if host.sample is None:
        return ()
    return tuple(
        ForeignProcess(device.id, process)
        for device in host.sample.devices
        for process in device.processes
        if not process.rank_id and not process.deployment
    )


def process_lines(snapshot: FleetSnapshot, host: HostView, *, width: int) -> tuple[Line, ...]:
    """Who is on each device: our ranks with the layers they hold, and foreign ones marked."""
    if host.sample is None or not any(device.processes for device in host.sample.devices):
        return ()
    held = held_layers(snapshot)
    lines = [line(Span(" DEVICE      PID USER       MEMORY HOLDS", "title"))]
    for device in host.sample.devices:
        for process in device.processes:
            row = line(
                f" {fit(device.id, 7)} {process.pid:>7} {process.user or NONE:<8} ",
                _right(reading_span(process.memory_bytes, bytes_text), 8),
                " ",
                *_holds(process, held),
            )
            room = width - line_width(row) - 2
            if len(process.command) <= room:
                lines.append((*row, Span(f"  {process.command}", "dim")))
            else:
                lines.append(row)
                lines += [line(Span(f"   {text}", "dim")) for text in wrap(process.command, width - 4)]
    return tuple(lines)


def held_layers(snapshot: FleetSnapshot) -> dict[tuple[str, str], str]:
    """`layers 0-19` by deployment and rank, from the plans that run."""
    found: dict[tuple[str, str], str] = {}
    for view in snapshot.deployments:
        plan = deployed_plan(view.status) if view.status is not None else None
        if plan is not None:
            found |= {(view.name, place.rank_id): layers_words(place.layers) for place in rank_places(plan)}
    return found


def _holds(process: DeviceProcess, held: dict[tuple[str, str], str]) -> tuple[Span, ...]:
    if not process.rank_id and not process.deployment:
        return (Span("▲ foreign", "warn"),)
    of = f" of {process.deployment}" if process.deployment else ""
    layers = held.get((process.deployment, process.rank_id))
    if layers is None and not process.deployment:
        # A sample of an earlier release names the rank alone.
        matches = {words for (_, rank_id), words in held.items() if rank_id == process.rank_id}
        layers = matches.pop() if len(matches) == 1 else None
    return (Span(f"● {process.rank_id or 'ours'}{of}", "ok"), Span(f", {layers}" if layers else ""))


# --- cells --------------------------------------------------------------------------------------------


def _row(device: DeviceSample, shown: Sequence[tuple[Column, int]], *, is_live: bool) -> Line:
    spans: list[Span] = [Span(" ")]
    draws = {cell.column.id: cell.draw for cell in _CELLS}
    for column, size in shown:
        if len(spans) > 1:
            spans.append(Span(" " * GAP))
        if isinstance(device.utilisation, Lost) and column.id != "device":
            # One sentence in the place of all cells: none of them is known.
            xid = f"  Xid {_xid_text(device)}" if device.xid else ""
            spans.append(Span(f"✗ {device.utilisation.reason}; its row stays{xid}", "fault"))
            break
        cell = draws[column.id](device, size)
        if column.is_right and (padding := size - line_width(cell)) > 0:
            cell = (Span(" " * padding), *cell)
        spans += fit_line(cell, size)
    return tuple(spans) if is_live else dimmed(tuple(spans))


def _more_lines(device: DeviceSample, shown: dict[str, int], width: int) -> list[Line]:
    """What is known and has no column here: `mem 9501 MHz · NVLink ↓118G/s ↑121G/s`."""
    parts: list[Line] = []
    for cell in _CELLS:
        if cell.column.id in shown:
            continue
        drawn = _throttle(device, width) if cell.column.id == "throttle" else cell.draw(device, cell.column.width)
        if drawn == (_UNKNOWN,):
            continue
        parts.append((Span(f"{cell.column.title} ", "dim"), *drawn))
    reasons = ", ".join(device.throttle_reasons)
    if len(reasons) + 2 > shown.get("throttle", width):
        # Cut in its column, whole here.
        parts.append((Span("throttled by ", "dim"), Span(reasons, "warn")))
    if link := _pcie_link(device):
        parts.append(link)
    lines: list[Line] = []
    for part in parts:
        if lines and line_width(lines[-1]) + 3 + line_width(part) <= width:
            lines[-1] += (Span(" · ", "dim"), *part)
        else:
            lines.append((Span("   "), *part))
    return lines


def _pcie_link(device: DeviceSample) -> Line:
    """`PCIe gen 4 ×16`; a warning with what it could do where it is less while the device works."""
    generation, lanes = reading_value(device.pcie_generation), reading_value(device.pcie_lanes)
    if generation is None or lanes is None:
        return ()
    most, widest = reading_value(device.pcie_max_generation), reading_value(device.pcie_max_lanes)
    said = f"PCIe gen {generation:.0f} ×{lanes:.0f}"
    is_slow = most is not None and generation < most and (reading_value(device.utilisation) or 0.0) >= BUSY
    is_narrow = widest is not None and lanes < widest
    if is_slow or is_narrow:
        could = f"gen {most:.0f} " if most is not None else ""
        could += f"×{widest:.0f}" if widest is not None else ""
        return line(Span(f"▲ {said} of {could.strip()}", "warn"))
    return line(Span(said, "dim"))


def _temperatures(device: DeviceSample, width: int) -> Line:  # noqa: ARG001 - a cell's signature
    core = reading_span(device.temperature_c, lambda value: f"{value:.0f}°")
    if reading_value(device.memory_temperature_c) is None:
        return (core,)
    memory = reading_span(device.memory_temperature_c, lambda value: f"{value:.0f}°")
    return (Span(f"{core.text}/{memory.text}", core.tone),)


def _clocks(device: DeviceSample, width: int) -> Line:  # noqa: ARG001 - likewise
    clocks = [reading_span(clock, lambda value: f"{value / 1e6:.0f}") for clock in _clock_readings(device)]
    if all(clock.text == NONE for clock in clocks):
        return (_UNKNOWN,)
    return (Span("/".join(clock.text for clock in clocks), clocks[0].tone),)


def _clock_readings(device: DeviceSample) -> tuple[Reading, Reading]:
    return device.sm_clock_hz, device.memory_clock_hz


def _throttle(device: DeviceSample, width: int) -> Line:
    if device.throttle_reasons:
        return (Span(fit(f"▲ {', '.join(device.throttle_reasons)}", width).rstrip(), "warn"),)
    # A CPU of an earlier release says nothing about its throttling, and so does not say that there is none.
    is_unknown = bool(device.throttle_unavailable) or device.kind == "cpu"
    return (_UNKNOWN if is_unknown else Span("none", "dim"),)


def _ecc(device: DeviceSample, width: int) -> Line:  # noqa: ARG001 - likewise
    if reading_value(device.ecc_uncorrected) is None and reading_value(device.ecc_corrected) is None:
        return (_UNKNOWN,)
    corrected = reading_span(device.ecc_corrected, lambda value: f"{value:.0f}")
    uncorrected = reading_span(device.ecc_uncorrected, lambda value: f"{value:.0f}")
    is_bad = (reading_value(device.ecc_uncorrected) or 0) > 0
    return (corrected, Span("/"), Span(f"✗{uncorrected.text}", "fault") if is_bad else uncorrected)


def _xid(device: DeviceSample, width: int) -> Line:  # noqa: ARG001 - likewise
    return (Span(f"✗{_xid_text(device)}", "fault") if device.xid else _UNKNOWN,)


def _xid_text(device: DeviceSample) -> str:
    return ",".join(map(str, dict.fromkeys(device.xid)))


def _both_ways(received: Reading, sent: Reading) -> Line:
    if reading_value(received) is None and reading_value(sent) is None:
        return (_UNKNOWN,)
    down, up = reading_span(received, rate_text), reading_span(sent, rate_text)
    return (Span(f"↓{down.text} ↑{up.text}", down.tone),)


def _nvlink(device: DeviceSample, width: int) -> Line:  # noqa: ARG001 - likewise
    return _both_ways(device.nvlink_received_bytes_per_s, device.nvlink_sent_bytes_per_s)


def _pcie(device: DeviceSample, width: int) -> Line:  # noqa: ARG001 - likewise
    return _both_ways(device.pcie_received_bytes_per_s, device.pcie_sent_bytes_per_s)


_CELLS: tuple[_Cell, ...] = (
    _Cell(Column(id="device", title="DEVICE", width=7), lambda device, _: (Span(device.id, "bold"),)),
    _Cell(
        Column(id="util", title="UTIL", width=11, priority=1, grow_to=18),
        lambda device, width: load_span(device.utilisation, width),
    ),
    _Cell(
        Column(id="memory", title="MEMORY", width=11, priority=2, is_right=True),
        lambda device, _: (memory_text(device.memory_used_bytes, device.memory_total_bytes),),
    ),
    _Cell(Column(id="temp", title="T/MEM", width=7, priority=3, is_right=True), _temperatures),
    _Cell(
        Column(id="power", title="POWER", width=9, priority=4, is_right=True),
        lambda device, _: (power_span(device.power_w, device.power_limit_w),),
    ),
    _Cell(Column(id="clock", title="SM/MEM MHz", width=10, priority=8, is_right=True), _clocks),
    _Cell(Column(id="throttle", title="THROTTLE", width=13, priority=6, grow_to=34), _throttle),
    _Cell(Column(id="ecc", title="ECC c/u", width=7, priority=7, is_right=True), _ecc),
    _Cell(Column(id="xid", title="XID", width=6, priority=5), _xid),
    _Cell(Column(id="nvlink", title="NVLink", width=17, priority=9), _nvlink),
    _Cell(Column(id="pcie", title="PCIe", width=17, priority=10), _pcie),
)


def _right(span: Span, width: int) -> Span:
    return Span(fit(span.text, width, is_right=True), span.tone)


# --- reasons ------------------------------------------------------------------------------------------


def _reasons(device: DeviceSample) -> str:
    """`cuda:0 ECC: not supported; NVLink: no data`, for the readings that have no fresh value."""
    if isinstance(device.utilisation, Lost):
        return ""
    readings = {
        "utilisation": device.utilisation,
        "memory": device.memory_used_bytes,
        "temperature": device.temperature_c,
        "power": device.power_w,
        "clock": device.sm_clock_hz,
        "ECC": device.ecc_uncorrected,
    }
    if device.kind != "cpu":
        readings |= {
            "throttling": NotAvailable(device.throttle_unavailable) if device.throttle_unavailable else Ok(0.0),
            "memory temperature": device.memory_temperature_c,
            "NVLink": device.nvlink_received_bytes_per_s,
            "PCIe": device.pcie_received_bytes_per_s,
        }
    by_reason: dict[str, list[str]] = {}
    for name, reading in readings.items():
        if reason := reading_reason(reading):
            by_reason.setdefault(reason, []).append(name)
    if not by_reason:
        return ""
    return f"{device.id} " + "; ".join(f"{', '.join(names)}: {reason}" for reason, names in by_reason.items())
