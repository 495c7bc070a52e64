"""One host in full: what it is, what its devices and disks do, what of ours runs there, and the last 15 minutes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from agent.facts.sample import DeviceSample, DiskSample, HostSample, Lost, NicSample
from agent.wire.agent import RankView
from odctl.fleet.history import HISTORY_S, HostRow
from odctl.fleet.snapshot import FleetSnapshot, HostView
from odctl.tui.model.bars import bar, time_strip
from odctl.tui.model.device_rows import DeviceRows
from odctl.tui.model.marks import HOST_MARKS, rank_mark
from odctl.tui.model.probe_rows import probe_rows
from odctl.tui.model.readings import reading_reason, reading_span
from odctl.tui.model.table import GAP, layout, row_line
from odctl.tui.model.text import BLANK, Line, Span, fit, line, line_width, wrap
from odctl.tui.model.units import age_text, bytes_text, count_text, percent_text, rate_text


class _Lane(NamedTuple):
    title: str
    points: list[tuple[float, float | None]]
    top: float | None
    last: str


def host_page(snapshot: FleetSnapshot, name: str, *, width: int) -> tuple[Line, ...]:
    """The whole page. A host that the inventory lacks says so."""
    host = snapshot.host(name)
    if host is None:
        return (line(Span(f" {name} is not in the inventory", "warn")),)
    sections = [_head(host, width), _trouble(snapshot, host, width)]
    if host.sample is not None:
        sections += [
            _devices(snapshot, host, width),
            _meters(host, host.sample, width),
            _disks(host.sample.disks),
            _nics(host.sample.nics),
            _probes(host, width, now_s=snapshot.taken_at_s),
            _ranks(snapshot, host),
            _processes(host.sample),
            _foreign(host.sample),
            (*_title("last 15 minutes", width), *_lanes(host, width=width, now_s=snapshot.taken_at_s)),
        ]
    lines: list[Line] = []
    for section in sections:
        if section and lines:
            lines.append(BLANK)
        lines += section
    return tuple(lines)


def host_strip_lines(host: HostView, *, width: int, now_s: float) -> tuple[Line, ...]:
    """CPU and network of one host over 15 minutes: what stands under the fleet's table."""
    if host.sample is None:
        mark = HOST_MARKS[host.state]
        hint = f"  {host.way_out}" if host.way_out else ""
        return (line(" ▸ ", Span(host.name, "bold"), " ", mark.span, f" {host.reason}", Span(hint, "dim")),)
    lanes = [lane for lane in _lane_values(host) if lane.title in {"cpu", "gpu", "net ↑"}]
    title = line(" ▸ ", Span(host.name, "bold"), Span("  last 15 minutes", "dim"))
    return (title, *[_lane_line(lane, width=width, now_s=now_s) for lane in lanes])


def _title(text: str, width: int) -> tuple[Line, ...]:
    rule = "─" * max(0, width - len(text) - 4)
    return (line(Span(f" {text} ", "title"), Span(rule, "dim")),)


def _head(host: HostView, width: int) -> tuple[Line, ...]:
    mark = HOST_MARKS[host.state]
    age = f" {age_text(host.sample_age_s)} ago" if host.state in {"stale", "lost"} else ""
    first: Line = line(" ", Span(host.name, "bold"), "  ", Span(f"{mark.glyph} {mark.word}{age}", mark.tone))
    facts = host.facts
    if facts is None:
        return (first,)
    parts = [
        f"{facts.cpu_cores} cores, {bytes_text(facts.memory_bytes)}",
        " ".join(part for part in (facts.os, facts.kernel, facts.arch) if part),
        f"up {age_text(host.sample.uptime_s)}" if host.sample else "",
        f"cluster {facts.cluster_address}:{facts.cluster_port}",
        f"driver {facts.driver}" if facts.driver else f"GPU: {facts.gpu_unavailable}",
        f"python {facts.python}",
        f"torch {facts.torch}" if facts.torch else "no torch",
        f"agent {facts.agent_version} {facts.release[:12]}".rstrip(),
        " ".join(f"{key}={value}" for key, value in sorted(facts.labels.items())),
    ]
    lines = [first]
    for part in parts:
        if not part or part == "GPU: ":
            continue
        if line_width(lines[-1]) + 3 + len(part) > width:
            lines.append(line(" "))
        gap = "   " if line_width(lines[-1]) > 1 else ""
        lines[-1] += line(Span(f"{gap}{part}", "dim"))
    return tuple(lines)


def _trouble(snapshot: FleetSnapshot, host: HostView, width: int) -> tuple[Line, ...]:
    """Why it is not live, and its open faults, each with its way out."""
    said: list[tuple[str, str]] = [(host.reason, host.way_out)] if host.reason else []
    if host.handshake is not None and host.handshake.is_degraded:
        said.append(
            ("no systemd user unit keeps the agent: a reboot loses it", "`odctl bootstrap` after enabling linger")
        )
    for fault in snapshot.faults:
        if fault.host == host.name and fault.healed_at_s is None:
            said.append((f"{fault.kind}: {fault.message}", fault.way_out))
    lines = []
    for what, way_out in said:
        lines += [line(Span(f" ▲ {text}", "warn")) for text in wrap(what, width - 4)]
        lines += [line(Span(f"   → {text}", "dim")) for text in wrap(way_out, width - 6) if text]
    return tuple(lines)


def _devices(snapshot: FleetSnapshot, host: HostView, width: int) -> tuple[Line, ...]:
    """The device table of this host alone, with the reasons for every dash below."""
    rows = DeviceRows(FleetSnapshot(cluster=snapshot.cluster, taken_at_s=snapshot.taken_at_s, hosts=(host,)))
    columns = layout([column for column in rows.columns if column.id not in {"host", "state"}], width - 1)
    header = (" " * GAP).join(fit(column.title, size, is_right=column.is_right) for column, size in columns)
    lines = [line(Span(f" {header}", "title"))]
    for row in range(len(rows.keys)):
        lines.append((Span(" "), *row_line(rows, row, columns, width - 1)))
    assert host.sample is not None
    for device in host.sample.devices:
        lines += [line(Span(f"   — {text}", "dim")) for text in wrap(_reasons(device), width - 6) if text]
    return tuple(lines)


def _reasons(device: DeviceSample) -> str:
    """`cpu: temperature, power: not supported`, for the readings that have no fresh value."""
    readings = {
        "utilisation": device.utilisation,
        "memory": device.memory_used_bytes,
        "temperature": device.temperature_c,
        "power": device.power_w,
        "clock": device.sm_clock_hz,
        "ECC": device.ecc_uncorrected,
    }
    by_reason: dict[str, list[str]] = {}
    for name, reading in readings.items():
        if isinstance(reading, Lost):
            return f"{device.id}: {reading.reason}"
        if reason := reading_reason(reading):
            by_reason.setdefault(reason, []).append(name)
    if not by_reason:
        return ""
    return f"{device.id} " + "; ".join(f"{', '.join(names)}: {reason}" for reason, names in by_reason.items())


def _meters(host: HostView, sample: HostSample, width: int) -> tuple[Line, ...]:
    cells = 10 if width < 100 else 24
    ram = sample.memory_used_bytes / sample.memory_total_bytes if sample.memory_total_bytes else 0.0
    swap = (
        f"{bytes_text(sample.swap_used_bytes)}/{bytes_text(sample.swap_total_bytes)}"
        if sample.swap_total_bytes
        else "none"
    )
    cores = f" / {host.facts.cpu_cores} cores" if host.facts else ""
    return (
        line(
            Span(" CPU ", "title"),
            Span(bar(sample.cpu, cells), "bar"),
            f" {percent_text(sample.cpu).strip()}  load {sample.load_1m:.1f}{cores}  ",
            Span("RAM ", "title"),
            Span(bar(ram, cells), "bar"),
            f" {bytes_text(sample.memory_used_bytes)}/{bytes_text(sample.memory_total_bytes)}  ",
            Span("swap ", "title"),
            swap,
        ),
    )


def _disks(disks: Sequence[DiskSample]) -> tuple[Line, ...]:
    return tuple(
        line(
            Span(f" {fit(disk.mount, 20)}", "title"),
            f" {bytes_text(disk.free_bytes):>5} free of {bytes_text(disk.total_bytes):<6}",
            Span("read ", "dim"),
            f"{rate_text(disk.read_bytes_per_s):<8}",
            Span("write ", "dim"),
            rate_text(disk.written_bytes_per_s),
        )
        for disk in disks
    )


def _nics(nics: Sequence[NicSample]) -> tuple[Line, ...]:
    lines = []
    for nic in sorted(nics, key=lambda nic: (not nic.is_up, nic.name)):
        # A port that is down is no fault by itself: most machines have some that nobody plugged in.
        state = Span("● up  ", "ok") if nic.is_up else Span("○ down", "dim")
        speed = f"{nic.speed_bits_per_s / 1e9:.3g} Gb/s" if nic.speed_bits_per_s > 0 else "speed —"
        trouble = nic.errors + nic.drops
        lines.append(
            line(
                Span(f" {fit(nic.name, 12)} ", "title"),
                state,
                f" {fit(speed, 10)} ↓ {rate_text(nic.received_bytes_per_s):<8}",
                f" ↑ {rate_text(nic.sent_bytes_per_s):<8}",
                Span(f" errors {nic.errors} drops {nic.drops}", "warn" if trouble else "dim"),
            )
        )
    return tuple(lines)


def _probes(host: HostView, width: int, *, now_s: float) -> tuple[Line, ...]:
    """What `odctl probe` found; nothing where nothing was measured."""
    if host.probes is None:
        return ()
    rows = probe_rows(host.probes, now_s=now_s)
    return (*_title("measured by odctl probe", width), *rows) if rows else ()


def _ranks(snapshot: FleetSnapshot, host: HostView) -> tuple[Line, ...]:
    """Ranks that the controllers say run here."""
    found: list[tuple[str, RankView]] = [
        (view.name, rank)
        for view in snapshot.deployments
        if view.status is not None
        for rank in view.status.ranks
        if rank.host == host.name
    ]
    if not found:
        return ()
    lines = [line(Span(" RANK      DEPLOYMENT    DEVICE  STATE         WEIGHTS     KV  TOKENS RESTARTS", "title"))]
    for name, rank in found:
        mark, status = rank_mark(rank), rank.status
        held = "       —      —       —"
        if status is not None:
            weights, cache = bytes_text(status.weight_bytes), bytes_text(status.kv_cache_bytes)
            held = f"{weights:>8} {cache:>6} {count_text(status.tokens):>7}"
        trouble = Span(f"  {rank.trouble}" if rank.trouble else "", "warn")
        lines.append(
            line(
                f" {fit(rank.rank_id, 9)} {fit(name, 13)} {fit(rank.device, 7)} ",
                Span(fit(f"{mark.glyph} {mark.word}", 13), mark.tone),
                f"{held} {rank.restarts:>8}",
                trouble,
            )
        )
    return tuple(lines)


def _processes(sample: HostSample) -> tuple[Line, ...]:
    if not sample.processes:
        return (line(Span(" none of our processes runs here", "dim")),)
    lines = [line(Span(" ROLE     NAME                    PID     CPU     RSS  THREADS   FDS", "title"))]
    for process in sample.processes:
        lines.append(
            line(
                f" {fit(process.role, 8)} {fit(process.name, 20)} {process.pid:>7} "
                f"{process.cpu * 100:>6.0f}% {bytes_text(process.rss_bytes):>7} "
                f"{process.num_threads:>8} {process.num_fds:>5}"
            )
        )
    return tuple(lines)


def _foreign(sample: HostSample) -> tuple[Line, ...]:
    """Processes on our devices that are not ours."""
    lines = []
    for device in sample.devices:
        for process in device.processes:
            if process.rank_id:
                continue
            memory = reading_span(process.memory_bytes, bytes_text)
            lines.append(
                line(
                    Span(" foreign ", "warn"),
                    f"{device.id}  {process.pid} {process.user}  ",
                    memory,
                    Span(f"  {process.command}", "dim"),
                )
            )
    return tuple(lines)


def _lane_values(host: HostView) -> list[_Lane]:
    rows = host.history.rows()
    last = rows[-1] if rows else None

    def lane(title: str, field: str, top: float | None, text: str) -> _Lane:
        return _Lane(title, [(row.at_s, getattr(row, field)) for row in rows], top, text)

    if last is None:
        return []
    lanes = [
        lane("cpu", "cpu", 1.0, percent_text(last.cpu)),
        lane("ram", "memory", 1.0, percent_text(last.memory)),
    ]
    if _has(rows, "gpu"):
        lanes.append(lane("gpu", "gpu", 1.0, percent_text(last.gpu) if last.gpu is not None else "—"))
        lanes.append(
            lane("vram", "gpu_memory", 1.0, percent_text(last.gpu_memory) if last.gpu_memory is not None else "—")
        )
    if _has(rows, "power_w"):
        lanes.append(lane("power", "power_w", None, f"{last.power_w:.0f}W" if last.power_w is not None else "—"))
    lanes.append(lane("net ↓", "received_bytes_per_s", None, rate_text(last.received_bytes_per_s)))
    lanes.append(lane("net ↑", "sent_bytes_per_s", None, rate_text(last.sent_bytes_per_s)))
    return lanes


def _has(rows: Sequence[HostRow], field: str) -> bool:
    return any(getattr(row, field) is not None for row in rows)


def _lanes(host: HostView, *, width: int, now_s: float) -> list[Line]:
    return [_lane_line(lane, width=width, now_s=now_s) for lane in _lane_values(host)]


def _lane_line(lane: _Lane, *, width: int, now_s: float) -> Line:
    cells = max(1, width - 18)
    drawn = time_strip(lane.points, cells, end_s=now_s, span_s=HISTORY_S, top=lane.top)
    return line(Span(f" {fit(lane.title, 6)} ", "title"), Span(drawn, "bar"), f" {lane.last:>8}")
