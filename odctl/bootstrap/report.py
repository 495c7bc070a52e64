"""How bootstrap and uninstall say where they stand (stderr) and how it ended (a Result)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from odctl.bootstrap.run import HostOutcome, HostProgress, OnProgress
from odctl.result import ExitCode, Result, render_error


def exit_code_for(outcomes: Sequence[HostOutcome]) -> ExitCode:
    """0: all well. 4: every failure is a host that cannot be reached or trusted. 5: something else failed."""
    codes = [outcome.error.code for outcome in outcomes if outcome.error]
    if not codes:
        return ExitCode.OK
    return ExitCode.UNREACHABLE if all(code.startswith("E2") for code in codes) else ExitCode.PARTIAL


def outcome_result(kind: str, outcomes: Sequence[HostOutcome], *, done_word: str) -> Result:
    """A line per host, then what failed where, and the way out. `done_word`: what `changed` means (`updated`)."""
    return Result(
        kind=kind, data=list(outcomes), prose=_prose(outcomes, done_word), exit_code=exit_code_for(outcomes)
    )


def _prose(outcomes: Sequence[HostOutcome], done_word: str) -> str:
    rows = [("HOST", "RESULT", "TOOK", "WHAT")]
    for outcome in outcomes:
        word = done_word if outcome.state == "changed" else outcome.state
        rows.append((outcome.host, word, f"{outcome.seconds:.1f} s", _what(outcome)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) + "  " + row[3]
        for row in rows
    ]
    lines += [f"warning: {outcome.host}: {warning}" for outcome in outcomes for warning in outcome.warnings]
    lines += [render_error(outcome.error).rstrip("\n") for outcome in outcomes if outcome.error]
    return "\n".join(line.rstrip() for line in lines)


def _what(outcome: HostOutcome) -> str:
    match outcome.state:
        case "failed":
            undone = ", undone" if outcome.is_undone else ""
            code = outcome.error.code if outcome.error else ""
            return f"{code} at: {outcome.failed_step}{undone}"
        case "changed":
            return f"{len(outcome.changes)} steps" + (f", release {outcome.release}" if outcome.release else "")
        case "unchanged":
            return f"release {outcome.release}" if outcome.release else "nothing there"


@contextmanager
def show_progress(num_hosts: int, stream: TextIO | None = None) -> Iterator[OnProgress]:
    """A live line per host on a terminal; elsewhere a line per change of step."""
    stream = stream or sys.stderr
    if num_hosts > 0 and stream.isatty() and os.environ.get("TERM") != "dumb":
        with _live_lines(stream) as on_progress:
            yield on_progress
    else:
        yield lambda progress: _print_line(stream, progress)


def _print_line(stream: TextIO, progress: HostProgress) -> None:
    place = f"{progress.index + 1}/{progress.total} " if progress.state == "working" else ""
    word = {"done": "done", "failed": "failed at: "}.get(progress.state, "")
    step = "" if progress.state == "done" else progress.step
    stream.write(f"{progress.host}: {place}{word}{step}\n")
    stream.flush()


@contextmanager
def _live_lines(stream: TextIO) -> Iterator[OnProgress]:
    bars: dict[str, TaskID] = {}
    console = Console(file=stream)
    columns = (
        TextColumn("{task.fields[host]}"),
        BarColumn(bar_width=20),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as lines:

        def show(progress: HostProgress) -> None:
            if progress.host not in bars:
                bars[progress.host] = lines.add_task("", total=None, host=progress.host)
            bar = bars[progress.host]
            match progress.state:
                case "probing" | "working":
                    lines.update(
                        bar,
                        description=progress.step,
                        completed=progress.index,
                        total=progress.total or None,
                    )
                case "done":
                    lines.update(bar, description="done", completed=1, total=1)
                    lines.stop_task(bar)
                case "failed":
                    lines.update(bar, description=f"[red]failed at: {progress.step}")
                    lines.stop_task(bar)
                case "interrupted":
                    lines.update(bar, description=f"[yellow]{progress.step}")
                    lines.stop_task(bar)

        yield show
