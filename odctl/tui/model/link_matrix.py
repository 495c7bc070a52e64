"""What `odctl probe` found, as tables: from each host to each other one, and a row for every device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from agent.facts.probe import DeviceProbe, GemmProbe, HostProbe, LinkProbe
from odctl.fleet import FleetSnapshot
from odctl.tui.model.marks import MARKED
from odctl.tui.model.table import Banner, Column, Value
from odctl.tui.model.text import Line, Span, Tone, line
from odctl.tui.model.units import age_text, bytes_text, plural, rate_text, seconds_text

Figure = Literal["latency", "rate"]
MAX_TARGETS = 40
"""Columns of a matrix, of hosts that links were measured to; a host's page has all its links."""
MAX_GROUPS = 4
OLD_S = 7 * 86_400.0
"""Older figures are marked: cables and neighbours change."""
RANKS: tuple[tuple[str, Tone], ...] = (("█", "ok"), ("▓", "plain"), ("▒", "warn"), ("░", "fault"))
"""From the best to the worst link of one matrix, by its place among them."""


class Links(msgspec.Struct, frozen=True, kw_only=True):
    """Every link between hosts that was measured, of one carrier."""

    carrier: str
    carriers: tuple[str, ...]
    """All that were measured."""
    by_pair: dict[tuple[str, str], LinkProbe]


def links_of(snapshot: FleetSnapshot, carrier: str = "") -> Links:
    """Those of a carrier; of the one that most were measured with, when it is not given or not there."""
    found = [
        link
        for host in snapshot.hosts
        if host.probes is not None
        for link in host.probes.links
        if link.source != link.target
    ]
    counts: dict[str, int] = {}
    for link in found:
        counts[link.carrier] = counts.get(link.carrier, 0) + 1
    carriers = tuple(sorted(counts, key=lambda name: (-counts[name], name)))
    chosen = carrier if carrier in counts else next(iter(carriers), "")
    pairs = {(link.source, link.target): link for link in found if link.carrier == chosen}
    return Links(carrier=chosen, carriers=carriers, by_pair=pairs)


class MatrixRows:
    """A row for each source, a column for each target; the cell is the latency or the rate between them."""

    def __init__(
        self, snapshot: FleetSnapshot, links: Links, figure: Figure, *, marked: frozenset[str] = frozenset()
    ) -> None:
        self._links = links.by_pair
        self._figure = figure
        self._marked = marked
        self._snapshot = snapshot
        self.keys: Sequence[str] = tuple(host.name for host in snapshot.hosts)
        reached = {target for _, target in links.by_pair}
        targets = [name for name in self.keys if name in reached][:MAX_TARGETS]
        self.columns = (
            Column(id="mark", title="", width=1),
            Column(id="from", title="FROM \\ TO", width=10, grow_to=16),
            *(
                Column(id=name, title=name, width=10, is_right=True, priority=index, sorts_down=figure == "rate")
                for index, name in enumerate(targets)
            ),
            Column(id="age", title="AGE", width=4, is_right=True),
        )
        # A reader compares links with each other: the quarter that a link is in says more than a fixed threshold.
        self._ordered = sorted(self._number(link) for link in self._links.values())

    def values(self, column: str) -> Sequence[Value]:
        return [self._value(name, column) for name in self.keys]

    def text(self, row: int) -> str:
        return self.keys[row]

    def labels(self, row: int) -> dict[str, str]:
        facts = self._snapshot.hosts[row].facts
        return facts.labels if facts is not None else {}

    def banner(self, row: int) -> Banner | None:  # noqa: ARG002 - every row has its cells
        return None

    def cell(self, row: int, column: str, width: int) -> Line:  # noqa: ARG002 - no cell draws a bar
        name = self.keys[row]
        match column:
            case "mark":
                return line(Span(MARKED if name in self._marked else " ", "key"))
            case "from":
                return line(Span(name, "bold"))
            case "age":
                return line(_age_span(self._age_s(name)))
            case _ if column == name:
                return line(Span("·", "dim"))
            case _:
                link = self._links.get((name, column))
                if link is None:
                    return line(Span("—", "dim"))
                glyph, tone = self._rank(self._number(link))
                said = seconds_text(link.latency_s) if self._figure == "latency" else rate_text(link.bytes_per_s)
                return line(Span(f"{said} {glyph}", tone))

    def _value(self, name: str, column: str) -> Value:
        match column:
            case "mark":
                return MARKED if name in self._marked else " "
            case "from":
                return name
            case "age":
                return self._age_s(name)
            case _:
                link = self._links.get((name, column))
                return None if link is None else self._number(link)

    def _number(self, link: LinkProbe) -> float:
        return link.latency_s if self._figure == "latency" else link.bytes_per_s

    def _rank(self, number: float) -> tuple[str, Tone]:
        """By the place among all links; equal ones are of one rank, and where all are equal, all are best."""
        better = sum(other < number if self._figure == "latency" else other > number for other in self._ordered)
        last = self._ordered[-1] if self._figure == "latency" else self._ordered[0]
        most = len(self._ordered) - self._ordered.count(last)
        return RANKS[round(better / most * (len(RANKS) - 1)) if most else 0]

    def _age_s(self, name: str) -> float | None:
        times = [link.measured_at_s for (source, _), link in self._links.items() if source == name]
        return max(0.0, self._snapshot.taken_at_s - min(times)) if times else None


DEVICE_COLUMNS = (
    Column(id="mark", title="", width=1),
    Column(id="host", title="HOST", width=10, grow_to=16),
    Column(id="device", title="DEVICE", width=7),
    Column(id="read", title="1 ROW", width=8, is_right=True, sorts_down=True),
    Column(id="skinny", title="SKINNY", width=9, priority=1, is_right=True, sorts_down=True),
    Column(id="chunk", title="CHUNK", width=9, is_right=True, sorts_down=True),
    Column(id="int8", title="INT8 ROW", width=8, priority=2, is_right=True, sorts_down=True),
    Column(id="int8_chunk", title="INT8 CHUNK", width=10, priority=6, is_right=True, sorts_down=True),
    Column(id="f32_chunk", title="F32 CHUNK", width=9, priority=7, is_right=True, sorts_down=True),
    Column(id="attention", title="ATTENTION", width=9, priority=3, is_right=True, sorts_down=True),
    Column(id="copy", title="COPY", width=8, priority=4, is_right=True, sorts_down=True),
    Column(id="disk", title="DISK", width=8, priority=5, is_right=True, sorts_down=True),
    Column(id="age", title="AGE", width=8, is_right=True),
)
_FLOPS = {"skinny", "chunk", "int8_chunk", "f32_chunk"}


class ProbedRows:
    """A row for every device that was measured; one for a host without figures, which says so."""

    columns = DEVICE_COLUMNS

    def __init__(self, snapshot: FleetSnapshot, *, marked: frozenset[str] = frozenset()) -> None:
        self._now_s = snapshot.taken_at_s
        self._marked = marked
        self._rows: list[tuple[str, HostProbe | None, DeviceProbe | None]] = []
        for host in snapshot.hosts:
            probe = host.probes.probe if host.probes is not None else None
            devices = probe.devices if probe is not None else ()
            self._rows += [(host.name, probe, device) for device in devices] or [(host.name, None, None)]
        self.keys: Sequence[str] = tuple(
            f"{name}/{device.device}" if device is not None else name for name, _, device in self._rows
        )

    def values(self, column: str) -> Sequence[Value]:
        return [self._value(row, column) for row in range(len(self._rows))]

    def text(self, row: int) -> str:
        name, _, device = self._rows[row]
        return f"{name} {device.device} {device.name}" if device is not None else f"{name} not measured"

    def labels(self, row: int) -> dict[str, str]:  # noqa: ARG002 - probes have none
        return {}

    def banner(self, row: int) -> Banner | None:
        if self._rows[row][2] is not None:
            return None
        return "device", line(Span("○ not measured, or of other hardware", "dim"))

    def cell(self, row: int, column: str, width: int) -> Line:  # noqa: ARG002 - no cell draws a bar
        name, probe, _ = self._rows[row]
        value = self._value(row, column)
        match column:
            case "mark":
                return line(Span(str(value), "key"))
            case "host":
                return line(Span(name, "bold"))
            case "age" if isinstance(value, float):
                quick = Span(" ~", "warn") if probe is not None and probe.is_quick else Span("  ")
                return line(_age_span(value), quick)
            case _ if value is None:
                return line(Span("—", "dim"))
            case _ if column in _FLOPS and isinstance(value, float):
                return line(flops_text(value))
            case _:
                return line(rate_text(value) if isinstance(value, float) else str(value))

    def _value(self, row: int, column: str) -> Value:
        name, probe, device = self._rows[row]
        match column:
            case "mark":
                return MARKED if name in self._marked else " "
            case "host":
                return name
        if device is None or probe is None:
            return None
        plain, codes = _gemms(device, "bfloat16", "none"), _gemms(device, "bfloat16", "int8")
        match column:
            case "device":
                return device.device
            case "read":
                return plain[0].weight_bytes_per_s if plain else None
            case "skinny":
                return plain[-2].flops_per_s if len(plain) > 1 else None
            case "chunk":
                return plain[-1].flops_per_s if plain else None
            case "int8":
                return codes[0].weight_bytes_per_s if codes else None
            case "int8_chunk":
                return codes[-1].flops_per_s if codes else None
            case "f32_chunk":
                wide = _gemms(device, "float32", "none")
                return wide[-1].flops_per_s if wide else None
            case "attention":
                return device.attention[-1].cache_bytes_per_s if device.attention else None
            case "copy":
                return device.copy_bytes_per_s
            case "disk":
                return probe.disk_read_bytes_per_s if device is probe.devices[0] else None
            case _:
                return max(0.0, self._now_s - probe.measured_at_s)


def probed_page(snapshot: FleetSnapshot, key: str, *, width: int) -> tuple[Line, ...]:
    """Every product of a device by dtype and rows, and attention by context."""
    name, _, device_id = key.partition("/")
    host = snapshot.host(name)
    probe = host.probes.probe if host is not None and host.probes is not None else None
    device = probe.device(device_id) if probe is not None else None
    if probe is None or device is None:
        return (line(Span(f" {name} was not measured as it is: mark it with space, then p measures it", "dim")),)
    lines = [
        line(
            Span(f" {key}", "bold"),
            f"  {device.name}, {plural(device.threads, 'thread')}" if device.threads else f"  {device.name}",
            Span(f"  took {seconds_text(probe.took_s)}{', quick' if probe.is_quick else ''}", "dim"),
        )
    ]
    kinds = dict.fromkeys((gemm.dtype, gemm.quantisation) for gemm in device.gemms)
    for dtype, quantisation in kinds:
        words = [
            f"{gemm.rows} rows {flops_text(gemm.flops_per_s)}" if gemm.rows > 1 else
            f"1 row {rate_text(gemm.weight_bytes_per_s)}"
            for gemm in _gemms(device, dtype, quantisation)
        ]  # fmt: skip
        title = dtype if quantisation == "none" else f"{dtype} {quantisation}"
        lines.append(line(Span(f"   {title:<14}", "dim"), "  ".join(words)))
    attention = "  ".join(f"{each.context} {rate_text(each.cache_bytes_per_s)}" for each in device.attention)
    lines.append(line(Span("   attention     ", "dim"), attention))
    return tuple(lines) if width > 0 else ()


def link_page(snapshot: FleetSnapshot, links: Links, key: str) -> tuple[Line, ...]:
    """Of the host under the cursor, the links at their best and worst, both ways, and sums of its groups."""
    mine = [link for pair, link in links.by_pair.items() if key in pair]
    if not mine:
        return (line(Span(f" no link of {key} was measured: mark two hosts with space, then p measures", "dim")),)
    by_latency = sorted(mine, key=lambda link: link.latency_s)
    by_rate = sorted(mine, key=lambda link: -link.bytes_per_s)
    now_s = snapshot.taken_at_s
    ends = (
        ("quickest", by_latency[0]),
        ("slowest", by_latency[-1]),
        ("widest", by_rate[0]),
        ("tightest", by_rate[-1]),
    )
    lines = [
        line(
            Span(f" {title:<8}", "dim"),
            f" {link.source} → {link.target}  {seconds_text(link.latency_s)}  {rate_text(link.bytes_per_s)}  "
            f"{link.source_device} to {link.target_device} by {link.carrier}",
            Span(f"  {age_text(max(0.0, now_s - link.measured_at_s))} ago", "dim"),
        )
        for title, link in ends
    ]
    return (*lines, *_group_lines(snapshot, links.carrier, key))


def _group_lines(snapshot: FleetSnapshot, carrier: str, key: str) -> list[Line]:
    """All-reduces of the candidate groups that a host is in, by their size; the largest groups are left out."""
    found = [
        group
        for host in snapshot.hosts
        if host.probes is not None
        for group in host.probes.groups
        if group.carrier == carrier and key in {member.partition("/")[0] for member in group.members}
    ]
    found.sort(key=lambda group: (len(group.members), group.members))
    return [
        line(
            Span(" sum     ", "dim"),
            f" {' + '.join(group.members)}  ",
            "  ".join(f"{bytes_text(each.num_bytes)} {seconds_text(each.seconds)}" for each in group.sums),
        )
        for group in found[:MAX_GROUPS]
    ]


def probes_summary(snapshot: FleetSnapshot, links: Links, view: str, *, marked: frozenset[str]) -> tuple[Line, ...]:
    """What was measured, what is shown, and what is marked."""
    measured = [host for host in snapshot.hosts if host.probes is not None and host.probes.probe is not None]
    pairs = len(snapshot.hosts) * (len(snapshot.hosts) - 1)
    spans = [
        Span(f" {len(measured)} of {plural(len(snapshot.hosts), 'host')} measured", "bold"),
        Span(f"   {len(links.by_pair)} of {pairs} directions by {links.carrier or 'any carrier'}"),
    ]
    if len(links.carriers) > 1:
        spans.append(Span(f" (c: {', '.join(links.carriers)})", "dim"))
    if marked:
        spans.append(Span(f"   {MARKED} {len(marked)} marked", "key"))
    lines = [tuple(spans)]
    if view != "devices":
        legend = [Span(f" {'bandwidth' if view == 'rate' else view}, from row to column: best ", "dim")]
        legend += [Span(glyph, tone) for glyph, tone in RANKS]
        legend.append(Span(" worst of these links  ", "dim"))
        if len(snapshot.hosts) > MAX_TARGETS:
            legend.append(Span(f"columns: the first {MAX_TARGETS} hosts", "dim"))
        lines.append(tuple(legend))
    else:
        lines.append(
            line(
                Span(
                    " bf16: weights read at one row, arithmetic at 64 rows, at a chunk; ~ quick",
                    "dim",
                )
            )
        )
    return tuple(lines)


def flops_text(flops_per_s: float) -> str:
    """`1.2 TF/s`, `340 GF/s`."""
    return f"{flops_per_s / 1e12:.1f} TF/s" if flops_per_s >= 1e12 else f"{flops_per_s / 1e9:.0f} GF/s"


def _gemms(device: DeviceProbe, dtype: str, quantisation: str) -> list[GemmProbe]:
    found = [gemm for gemm in device.gemms if (gemm.dtype, gemm.quantisation) == (dtype, quantisation)]
    return sorted(found, key=lambda gemm: gemm.rows)


def _age_span(age_s: float | None) -> Span:
    if age_s is None:
        return Span("—", "dim")
    return Span(age_text(age_s), "warn" if age_s > OLD_S else "plain")
