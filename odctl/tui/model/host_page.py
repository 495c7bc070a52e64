"""One host in full: what it is, what its devices, networks and disks do, what runs there, and what it says."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from agent.facts.sample import DiskSample, HostSample, NicSample
from agent.wire.agent import RankView
from odctl.fleet.snapshot import FleetSnapshot, HostView
from odctl.tui.model.bars import bar
from odctl.tui.model.host_devices import device_lines, held_layers, process_lines
from odctl.tui.model.host_extras import HostExtras
from odctl.tui.model.log_lines import ONE_HOST, Columns, entry_lines
from odctl.tui.model.marks import HOST_MARKS, rank_mark
from odctl.tui.model.probe_rows import probe_rows
from odctl.tui.model.text import BLANK, Line, Span, Tone, dimmed, fit, line, line_width, wrap
from odctl.tui.model.units import age_text, bytes_text, count_text, percent_text, rate_text

KERNEL_SHOWN = 12
LOGS_SHOWN = 12
OLD_STATES = ("stale", "lost")
_BAD_LEVELS = ("emerg", "alert", "crit", "err")


class Doing(msgspec.Struct, frozen=True, kw_only=True):
    """An action on this host: what it says, and whether that is trouble."""

    text: str
    is_trouble: bool = False
    is_over: bool = False


def host_page(
    snapshot: FleetSnapshot,
    name: str,
    *,
    width: int,
    last: HostView | None = None,
    extras: HostExtras | None = None,
    doing: Sequence[Doing] = (),
) -> tuple[Line, ...]:
    """The whole page but for the plots, which stay in sight below it.

    `last` is what was known of the host when it was in a snapshot: the page of one that is gone stays, and says so.
    """
    host = snapshot.host(name)
    if host is None and last is None:
        return (line(Span(f" {name} is not in the inventory", "warn")),)
    gone: tuple[Line, ...] = ()
    if host is None:
        assert last is not None
        host, gone = last, _gone(last, width)
    sections = [gone, _doing(doing, width), _head(host, width), _trouble(snapshot, host, width)]
    if host.sample is not None:
        measured = [
            device_lines(host, width=width),
            process_lines(snapshot, host, width=width),
            _meters(host, host.sample, width),
            _nics(host.sample.nics),
            _disks(host.sample.disks, width),
        ]
        is_old = host.state in OLD_STATES
        sections += [_old(host), *(tuple(map(dimmed, each)) for each in measured)] if is_old else measured
        sections += [
            _ranks(snapshot, host, width),
            _processes(host.sample),
            _probes(host, width, now_s=snapshot.taken_at_s),
        ]
    if extras is not None:
        sections += [_kernel(extras, width), _log_tail(extras, width)]
    lines: list[Line] = []
    for section in sections:
        if section and lines:
            lines.append(BLANK)
        lines += section
    return tuple(lines)


def _old(host: HostView) -> tuple[Line, ...]:
    said = (
        f" ▲ {host.state}: what follows was measured {age_text(host.sample_age_s)} ago, and nothing has come since"
    )
    return (line(Span(said, "warn")),)


def _title(text: str, width: int) -> tuple[Line, ...]:
    rule = "─" * max(0, width - len(text) - 4)
    return (line(Span(f" {text} ", "title"), Span(rule, "dim")),)


def _gone(last: HostView, width: int) -> tuple[Line, ...]:
    said = f"{last.name} is in the fleet no more: below is what was known of it last"
    return tuple(line(Span(f" ✗ {text}", "fault")) for text in wrap(said, width - 4))


def _doing(doing: Sequence[Doing], width: int) -> tuple[Line, ...]:
    lines: list[Line] = []
    for each in doing:
        glyph, tone = _doing_mark(each)
        first, *more = wrap(each.text, width - 4)
        lines += [line(Span(f" {glyph} {first}", tone)), *(line(Span(f"   {text}", tone)) for text in more)]
    return tuple(lines)


def _doing_mark(doing: Doing) -> tuple[str, Tone]:
    if doing.is_trouble:
        return "✗", "fault"
    return ("●", "ok") if doing.is_over else ("↻", "heal")


def _head(host: HostView, width: int) -> tuple[Line, ...]:
    mark = HOST_MARKS[host.state]
    age = f" {age_text(host.sample_age_s)} ago" if host.state in OLD_STATES else ""
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


def _meters(host: HostView, sample: HostSample, width: int) -> tuple[Line, ...]:
    cells = 10 if width < 100 else 24
    ram = sample.memory_used_bytes / sample.memory_total_bytes if sample.memory_total_bytes else 0.0
    swap = (
        f"{bytes_text(sample.swap_used_bytes)}/{bytes_text(sample.swap_total_bytes)}"
        if sample.swap_total_bytes
        else "none"
    )
    cores = f" / {host.facts.cpu_cores} cores" if host.facts else ""
    return _flow(
        [
            (
                Span(" CPU ", "title"),
                Span(bar(sample.cpu, cells), "bar"),
                Span(f" {percent_text(sample.cpu).strip()}"),
            ),
            (Span(f"load {sample.load_1m:.1f}{cores}"),),
            (
                Span("RAM ", "title"),
                Span(bar(ram, cells), "bar"),
                Span(f" {bytes_text(sample.memory_used_bytes)}/{bytes_text(sample.memory_total_bytes)}"),
            ),
            (Span("swap ", "title"), Span(swap)),
        ],
        width,
    )


def _flow(parts: Sequence[Line], width: int, *, gap: str = "  ") -> tuple[Line, ...]:
    """Parts one after another, on further lines where there is no room for them."""
    lines: list[Line] = []
    for part in parts:
        if lines and line_width(lines[-1]) + len(gap) + line_width(part) <= width:
            lines[-1] += (Span(gap), *part)
        else:
            lines.append(part if not lines else (Span("   "), *part))
    return tuple(lines)


def _disks(disks: Sequence[DiskSample], width: int) -> tuple[Line, ...]:
    return tuple(
        flowed
        for disk in disks
        for flowed in _flow(
            [
                (Span(f" {disk.mount:<20}", "title"),),
                (Span(f"{bytes_text(disk.free_bytes):>5} free of {bytes_text(disk.total_bytes):<6}"),),
                (Span("read ", "dim"), Span(f"{rate_text(disk.read_bytes_per_s):<8}")),
                (Span("write ", "dim"), Span(rate_text(disk.written_bytes_per_s))),
            ],
            width,
            gap=" ",
        )
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


def _ranks(snapshot: FleetSnapshot, host: HostView, width: int) -> tuple[Line, ...]:
    """Ranks that the controllers say run here, with the layers that they hold."""
    found: list[tuple[str, RankView]] = [
        (view.name, rank)
        for view in snapshot.deployments
        if view.status is not None
        for rank in view.status.ranks
        if rank.host == host.name
    ]
    if not found:
        return ()
    held = held_layers(snapshot)
    titles = (
        f" {fit('RANK', 7)} {fit('DEPLOYMENT', 11)} {fit('DEVICE', 7)} {fit('LAYERS', 12)} {fit('STATE', 12)}"
        f"WEIGHTS {'KV':>6} {'TOKENS':>6}  ↻"
    )
    lines = [line(Span(titles, "title"))]
    for name, rank in found:
        mark, status = rank_mark(rank), rank.status
        figures = "      —      —      —"
        if status is not None:
            weights, cache = bytes_text(status.weight_bytes), bytes_text(status.kv_cache_bytes)
            figures = f"{weights:>7} {cache:>6} {count_text(status.tokens):>6}"
        lines.append(
            line(
                f" {fit(rank.rank_id, 7)} {fit(name, 11)} {fit(rank.device, 7)} "
                f"{fit(held.get((name, rank.rank_id), '—'), 12)} ",
                Span(fit(f"{mark.glyph} {mark.word}", 12), mark.tone),
                f"{figures} {rank.restarts:>2}",
            )
        )
        lines += [line(Span(f"   ▲ {text}", "warn")) for text in wrap(rank.trouble, width - 6) if text]
    return tuple(lines)


def _processes(sample: HostSample) -> tuple[Line, ...]:
    if not sample.processes:
        return (line(Span(" none of our processes runs here", "dim")),)
    lines = [line(Span(" ROLE     NAME                    PID     CPU     RSS  THREADS   FDS", "title"))]
    for process in sample.processes:
        lines.append(
            line(
                f" {fit(process.role, 8)} {process.name:<20} {process.pid:>7} "
                f"{process.cpu * 100:>6.0f}% {bytes_text(process.rss_bytes):>7} "
                f"{process.num_threads:>8} {process.num_fds:>5}"
            )
        )
    return tuple(lines)


def _kernel(extras: HostExtras, width: int) -> tuple[Line, ...]:
    """The kernel's last messages, or why they cannot be read and what would change that."""
    lines = list(_title("kernel messages (UTC)", width))
    kernel = extras.kernel
    trouble = extras.kernel_trouble or kernel.unavailable
    if trouble:
        lines += [line(Span(f" ○ {text}", "warn")) for text in wrap(trouble, width - 4)]
        lines += [line(Span(f"   → {text}", "dim")) for text in wrap(kernel.way_out, width - 6) if text]
    elif not kernel.messages:
        lines.append(line(Span(" none was read" if not kernel.source else " none", "dim")))
    for message in kernel.messages[-KERNEL_SHOWN:]:
        tone: Tone = "fault" if message.level in _BAD_LEVELS else "warn" if message.level == "warn" else "plain"
        at = datetime.fromtimestamp(message.at_s, UTC).strftime("%m-%d %H:%M:%S")
        head = f" {at} {message.level:<6} "
        first, *more = wrap(message.text, max(20, width - len(head)))
        lines.append(line(Span(head, "dim"), Span(first, tone)))
        lines += [line(" " * len(head), Span(text, tone)) for text in more]
    return tuple(lines)


def _log_tail(extras: HostExtras, width: int) -> tuple[Line, ...]:
    """The last lines of the host's logs and its journal."""
    lines = list(_title("logs (UTC): l follows them", width))
    if extras.entries_trouble:
        lines += [line(Span(f" ○ {text}", "warn")) for text in wrap(extras.entries_trouble, width - 4)]
    elif not extras.entries:
        lines.append(line(Span(" none", "dim")))
    columns = Columns(host=0, source=max([ONE_HOST.source, *(len(entry.source) for entry in extras.entries)]))
    for entry in extras.entries[-LOGS_SHOWN:]:
        lines += entry_lines(entry, columns, width=width, is_wrapped=True)
    return tuple(lines)
