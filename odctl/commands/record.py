"""`odctl record FILE`: what the screens would show, kept for `odctl replay`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from odctl.result import ExitCode, Result, run_command

if TYPE_CHECKING:
    from odctl.fleet import FleetSnapshot
    from odctl.recording import RecordingWriter

SETTLE_S = 5.0
"""So long at most the first moment waits until every host has answered."""
TOLD_EVERY_S = 10.0
"""Without a terminal, progress is a line this often."""


@click.command("record")
@click.argument("path", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--for", "span", metavar="TIME", default="", help="Stop after 30s, 10m, 2h …")
@click.option(
    "--every",
    metavar="TIME",
    default="1s",
    show_default=True,
    help="A moment this often; hosts are sampled once a second.",
)
@click.option(
    "--max-size",
    metavar="SIZE",
    default="1GB",
    show_default=True,
    help="Stop before the file is larger.",
)
@click.option("--hosts", "selector", metavar="SELECTOR", default="all", show_default=True, help="Which hosts.")
@click.option("--force", is_flag=True, help="Replace FILE if there is one.")
@click.option("--json", "as_json", is_flag=True, help="Print what was recorded as JSON.")
@click.pass_obj
def command(  # noqa: PLR0917 - click calls it by name
    inventory_path: str,
    path: Path,
    span: str,
    every: str,
    max_size: str,
    selector: str,
    force: bool,
    as_json: bool,
) -> None:
    """Record the fleet into FILE until Ctrl-C: hosts, devices, deployments, faults, histories.

    `odctl replay FILE` shows it in the terminal UI. After a crash the file is good up to its last moment.
    """
    run_command(
        lambda: record(
            inventory_path,
            path,
            span=span,
            every=every,
            max_size=max_size,
            selector=selector,
            is_forced=force,
        ),
        as_json=as_json,
    )


def record(
    inventory_path: str,
    path: Path,
    *,
    span: str = "",
    every: str = "1s",
    max_size: str = "1GB",
    selector: str = "all",
    is_forced: bool = False,
) -> Result:
    """Raises E108 for a selector that matches nothing, E109 for an option that means nothing, E119 for a file that
    is there, E101 where it cannot be written.
    """
    import asyncio
    from contextlib import aclosing

    from odctl.commands.options import bytes_of, seconds_of
    from odctl.fleet import Fleet, watch_fleet
    from odctl.fleet.clock import SystemClock
    from odctl.following import ctrl_c, until_pressed
    from odctl.inventory import Inventory, select
    from odctl.recording import RecordingWriter
    from odctl.session import visit_fleet

    clock = SystemClock()
    for_s = seconds_of("--for", span) if span else None
    is_live = False
    every_s, max_bytes = seconds_of("--every", every), bytes_of("--max-size", max_size)

    async def keep(fleet: Fleet, writer: RecordingWriter) -> str:
        """Why it ended by itself."""
        nonlocal is_live
        progress = _Progress(writer)
        try:
            async with aclosing(watch_fleet(fleet, clock, settles_s=SETTLE_S)) as snapshots:
                async for snapshot in snapshots:
                    first_at_s = writer.first_at_s or snapshot.taken_at_s
                    # One written at the very end of the time still belongs to it.
                    if for_s is not None and snapshot.taken_at_s - first_at_s > for_s + 0.5:
                        return f"{for_s:g} s are over"
                    if not writer.wants(snapshot.taken_at_s):
                        continue
                    if not await asyncio.to_thread(writer.write, snapshot):
                        return f"a further moment would make it larger than {max_bytes:,} bytes"
                    progress.show(snapshot)
                    is_live = any(host.state in {"live", "stale"} for host in snapshot.hosts)
        finally:
            progress.end()
        raise AssertionError("a watch has no end")

    async def visit(fleet: Fleet, inventory: Inventory) -> Result:
        writer = RecordingWriter(
            path,
            cluster=inventory.cluster,
            started_at_s=clock.now_s(),
            every_s=every_s,
            max_bytes=max_bytes,
            is_forced=is_forced,
        )
        try:
            with ctrl_c(and_sigterm=True) as presses:
                reason = await until_pressed(keep(fleet, writer), presses)
        except KeyboardInterrupt:
            reason = "stopped by hand"
        finally:
            writer.close()
        code = ExitCode.OK if is_live else ExitCode.UNREACHABLE
        return _result(writer, reason, num_hosts=len(fleet.hosts), exit_code=code)

    return visit_fleet(
        inventory_path, visit, hosts=lambda inventory: [host.name for host in select(inventory, selector)]
    )


class _Progress:
    """One line on stderr that is written over; without a terminal, a line from time to time."""

    def __init__(self, writer: RecordingWriter) -> None:
        self._writer = writer
        self._is_terminal = sys.stderr.isatty()
        self._told_at = float("-inf")
        self._is_shown = False

    def show(self, snapshot: FleetSnapshot) -> None:
        now = time.monotonic()
        if not self._is_terminal and now - self._told_at < TOLD_EVERY_S:
            return
        self._told_at = now
        live = sum(host.state == "live" for host in snapshot.hosts)
        open_faults = sum(fault.healed_at_s is None for fault in snapshot.faults)
        text = (
            f"◉ recording  {_summary(self._writer)}  {live} of {len(snapshot.hosts)} hosts live"
            f"{f'  ✗ {open_faults} open' if open_faults else ''}  ^c ends"
        )
        if self._is_terminal:
            sys.stderr.write(f"\r{text}\x1b[K")
            self._is_shown = True
        else:
            sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def end(self) -> None:
        if self._is_shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _summary(writer: RecordingWriter) -> str:
    from agent.planner.words import bytes_words
    from odctl.tui.model.units import plural, seconds_text

    span_s = (writer.last_at_s or 0.0) - (writer.first_at_s or 0.0)
    span = seconds_text(span_s) if span_s >= 1 else "0 s"
    return f"{plural(writer.num_frames, 'moment')} over {span}, {bytes_words(writer.num_bytes)}"


def _result(writer: RecordingWriter, reason: str, *, num_hosts: int, exit_code: ExitCode) -> Result:
    """4 when at its end no host answered: it is a recording of nothing, then."""
    data = {
        "path": str(writer.path),
        "num_moments": writer.num_frames,
        "first_at_s": writer.first_at_s,
        "last_at_s": writer.last_at_s,
        "size_bytes": writer.num_bytes,
        "num_hosts": num_hosts,
        "ended": reason,
    }
    prose = f"{writer.path}: {_summary(writer)} ({reason})\nshow it:  odctl replay {writer.path}"
    return Result(kind="recording", data=data, prose=prose, exit_code=exit_code)
