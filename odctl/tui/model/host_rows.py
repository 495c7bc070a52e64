"""The fleet as a table: a row a host, its columns made when they are first asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from odctl.fleet.snapshot import FleetSnapshot, HostView
from odctl.tui.model.bars import bar
from odctl.tui.model.fleet_columns import FleetColumns, digest_of, fleet_columns
from odctl.tui.model.fleet_loads import MEMORY_WARNING
from odctl.tui.model.marks import HOST_MARKS, HOST_ORDER
from odctl.tui.model.readings import NONE
from odctl.tui.model.table import Banner, Column, Value
from odctl.tui.model.text import Line, Span, Tone, line
from odctl.tui.model.units import age_text, bytes_text, percent_text

COLUMNS = (
    Column(id="host", title="HOST", width=10, grow_to=20),
    Column(id="state", title="STATE", width=13),
    Column(id="cpu", title="CPU", width=10, priority=1, grow_to=16, sorts_down=True),
    Column(id="ram", title="RAM", width=11, priority=2, is_right=True, sorts_down=True),
    Column(id="gpu", title="GPU", width=9, priority=3, grow_to=16, sorts_down=True),
    Column(id="vram", title="VRAM", width=11, priority=7, is_right=True, sorts_down=True),
    Column(id="temp", title="TEMP", width=4, priority=9, is_right=True, sorts_down=True),
    Column(id="power", title="POWER", width=6, priority=10, is_right=True, sorts_down=True),
    Column(id="net", title="NET ↓ ↑/s", width=12, priority=5, is_right=True, sorts_down=True),
    Column(id="load", title="LOAD", width=5, priority=8, is_right=True, sorts_down=True),
    Column(id="ranks", title="RANKS", width=5, priority=4, is_right=True, sorts_down=True),
    Column(id="up", title="UP", width=4, priority=11, is_right=True, sorts_down=True),
    Column(id="note", title="NOTE", width=12, priority=6, grow_to=44),
)


class HostRows:
    """Every host of a snapshot. Percentages sort and filter as 0 to 100."""

    columns = COLUMNS

    def __init__(self, snapshot: FleetSnapshot) -> None:
        self._hosts = snapshot.hosts
        self._fleet = fleet_columns(snapshot)
        self._values: dict[str, Sequence[Value]] = {}
        self.keys: Sequence[str] = self._fleet.names

    def values(self, column: str) -> Sequence[Value]:
        if self._fleet.has(column):
            return self._fleet.figures(column)
        if column not in self._values:
            read = _READERS.get(column) or self._note_value
            self._values[column] = [read(host) for host in self._hosts]
        return self._values[column]

    def text(self, row: int) -> str:
        host = self._hosts[row]
        devices = " ".join(device.name for device in host.facts.devices) if host.facts else ""
        return f"{host.name} {HOST_MARKS[host.state].word} {devices} {self._note(host)[0].text}"

    def labels(self, row: int) -> dict[str, str]:
        facts = self._hosts[row].facts
        return facts.labels if facts else {}

    def cell(self, row: int, column: str, width: int) -> Line:
        host = self._hosts[row]
        match column:
            case "host":
                return line(Span(host.name, "bold"))
            case "state":
                return line(_state_span(host))
            case "note":
                return self._note(host)
            case "cpu" | "gpu":
                return _load_cell(host, column, width)
            case "ram":
                return _ram_cell(host)
            case _:
                return _figure_cell(host, column)

    def banner(self, row: int) -> Banner | None:
        """A host that never answered has no figures: its reason takes their place."""
        host = self._hosts[row]
        return ("cpu", self._note(host)) if host.sample is None else None

    def _note(self, host: HostView) -> Line:
        return line(host_note(self._fleet, host))

    def _note_value(self, host: HostView) -> Value:
        return self._note(host)[0].text


def host_note(fleet: FleetColumns, host: HostView) -> Span:
    """What a reader should know of this host first; what it is where nothing is wrong."""
    if host.reason:
        return Span(host.reason, HOST_MARKS[host.state].tone if host.state != "live" else "warn")
    if faults := fleet.open_faults.get(host.name):
        return Span(f"✗ {faults[0]}", "fault")
    digest, memory = digest_of(host), _ram(host)
    if digest is not None and digest.fault:
        return Span(f"✗ {digest.fault}", "fault")
    if memory is not None and memory > MEMORY_WARNING * 100:
        return Span(f"▲ memory {memory:.0f}% used", "warn")
    if digest is not None and digest.warning:
        return Span(f"▲ {digest.warning}", "warn")
    if deployment := fleet.healing.get(host.name):
        return Span(f"↻ {deployment} is healing", "heal")
    if host.handshake and host.handshake.is_degraded:
        return Span("▲ a reboot would lose the agent", "warn")
    return Span(_hardware(host), "dim") if host.facts else Span("")


def _state_span(host: HostView) -> Span:
    mark = HOST_MARKS[host.state]
    age = f" {age_text(host.sample_age_s)}" if host.state in {"stale", "lost"} else ""
    return Span(f"{mark.glyph} {mark.word}{age}", mark.tone)


def _load_cell(host: HostView, column: str, width: int) -> Line:
    value = _cpu(host) if column == "cpu" else _gpu(host)
    if value is None:
        return line(Span(_gpu_reason(host) if column == "gpu" else NONE, "dim"))
    tone: Tone = "bar" if host.state == "live" else "dim"
    return line(Span(bar(value / 100, width - 5), tone), Span(f" {percent_text(value / 100)}", _aged(host)))


def _ram_cell(host: HostView) -> Line:
    if host.sample is None:
        return line(Span(NONE, "dim"))
    used, total = host.sample.memory_used_bytes, host.sample.memory_total_bytes
    return line(Span(f"{bytes_text(used)}/{bytes_text(total)}", _aged(host)))


def _figure_cell(host: HostView, column: str) -> Line:
    value = _READERS[column](host)
    if value is None or isinstance(value, str):
        return line(Span(value or NONE, "dim"))
    match column:
        case "temp":
            text = f"{value:.0f}°"
        case "power":
            text = f"{value:.0f}W"
        case "load":
            text = f"{value:.1f}"
        case "up":
            text = age_text(value)
        case "net":
            row = host.history.last
            text = f"{bytes_text(row.received_bytes_per_s)} {bytes_text(row.sent_bytes_per_s)}" if row else NONE
        case "vram":
            text = _vram_text(host)
        case _:
            text = f"{value:.0f}"
    return line(Span(text, _aged(host)))


def _aged(host: HostView) -> Tone:
    return "plain" if host.state == "live" else "dim"


def _gpu_reason(host: HostView) -> str:
    if host.facts is None:
        return NONE
    digest = digest_of(host)
    has_gpu = digest is not None and digest.num_gpus > 0
    return host.facts.gpu_unavailable or (NONE if has_gpu else "no GPU")


def _cpu(host: HostView) -> float | None:
    return host.sample.cpu * 100 if host.sample else None


def _ram(host: HostView) -> float | None:
    if host.sample is None or not host.sample.memory_total_bytes:
        return None
    return host.sample.memory_used_bytes / host.sample.memory_total_bytes * 100


def _gpu(host: HostView) -> float | None:
    digest = digest_of(host)
    return digest.gpu * 100 if digest is not None and digest.gpu is not None else None


def _vram(host: HostView) -> float | None:
    digest = digest_of(host)
    if digest is None or digest.gpu_used_bytes is None or not digest.gpu_total_bytes:
        return None
    return digest.gpu_used_bytes / digest.gpu_total_bytes * 100


def _vram_text(host: HostView) -> str:
    digest = digest_of(host)
    if digest is None or digest.gpu_used_bytes is None or digest.gpu_total_bytes is None:
        return NONE
    return f"{bytes_text(digest.gpu_used_bytes)}/{bytes_text(digest.gpu_total_bytes)}"


def _temperature(host: HostView) -> float | None:
    digest = digest_of(host)
    return digest.temperature_c if digest is not None else None


def _power(host: HostView) -> float | None:
    return host.history.last.power_w if host.history.last else None


def _net(host: HostView) -> float | None:
    row = host.history.last
    return row.received_bytes_per_s + row.sent_bytes_per_s if row else None


def _ranks(host: HostView) -> float | None:
    return sum(process.role == "rank" for process in host.sample.processes) if host.sample else None


_READERS: dict[str, Callable[[HostView], Value]] = {
    "host": lambda host: host.name,
    "state": lambda host: HOST_ORDER[host.state],
    "cpu": _cpu,
    "ram": _ram,
    "gpu": _gpu,
    "vram": _vram,
    "temp": _temperature,
    "power": _power,
    "net": _net,
    "load": lambda host: host.sample.load_1m if host.sample else None,
    "ranks": _ranks,
    "up": lambda host: host.sample.uptime_s if host.sample else None,
}
"""One cell's figure. Whole columns come from `FleetColumns` where it has them."""


def _hardware(host: HostView) -> str:
    assert host.facts is not None
    names = [device.name for device in host.facts.devices if device.kind != "cpu"]
    if not names:
        return f"{host.facts.cpu_cores} cores"
    first = names[0] if len(set(names)) == 1 else "GPUs"
    return f"{len(names)}× {first}" if len(names) > 1 else first
