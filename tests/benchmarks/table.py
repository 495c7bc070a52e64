"""Results on disk, one file a row, and the table that is made of them."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import msgspec

from agent.telemetry.cpu import cpu_name
from tests.benchmarks.alternate import Measured
from tests.benchmarks.output import write_between
from tests.benchmarks.peers import VERSION
from tests.benchmarks.rows import Row

DOCUMENT = Path(__file__).parents[2] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- engine: begin -->", "<!-- engine: end -->"


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One row's, or why there is none (`trouble`)."""

    row: str
    commit: str
    at: str
    took_s: float
    load: float
    """Of the machine before it began: what else wanted its cores."""
    measured: Measured | None = None
    trouble: str = ""


class Results:
    """Kept as they come: an interrupted run goes on where it was."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, row: Row) -> Result | None:
        try:
            return msgspec.json.decode((self._folder / f"{row.name}.json").read_bytes(), type=Result)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def keep(self, result: Result) -> None:
        (self._folder / f"{result.row}.json").write_bytes(msgspec.json.format(msgspec.json.encode(result)))


def commit_now() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def table(rows: Iterable[Row], results: Results) -> str:
    found = [(row, results.get(row)) for row in rows]
    lines = [
        *_head(),
        "",
        "| work | against | ours | theirs | ratio (least..largest) | goal | |",
        "|---|---|---|---|---|---|---|",
        *(_line(row, result) for row, result in found if result is not None),
    ]
    return "\n".join(lines)


def write_document(text: str) -> None:
    write_between(DOCUMENT, BEGIN, END, text)


def _head() -> list[str]:
    kernel = platform.release().split("-")[0]
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return [
        f"{cpu_name()}, {os.cpu_count()} cores, {memory_gib:.0f} GiB; {platform.system()} {kernel}, Python "
        f"{platform.python_version()}, torch {version('torch')}, transformers {version('transformers')}, llama.cpp "
        f"of llama-cpp-python {VERSION}, compiled natively. One thread a process. Medians of the rounds of one "
        "pair, measured in alternation after one to warm up; at the end of a row its commit, the time it took and "
        "the load before it.",
    ]


def _line(row: Row, result: Result) -> str:
    goal = "" if row.goal is None else f"{'<=' if row.less_is_better else '>='} {row.goal:g}"
    end = f"{result.commit}, {result.took_s:.0f} s, load {result.load:.1f}"
    measured = result.measured
    if measured is None:
        return f"| {row.work} | {row.other} | | | not available: {result.trouble} | {goal} | {end} |"
    verdict = "" if row.goal is None else " met" if row.is_met(measured.ratio) else " **missed**"
    note = f"; {measured.note}" if measured.note else ""
    return (
        f"| {row.work} | {row.other} | {_figure(measured.ours, measured.unit)} | "
        f"{_figure(measured.others, measured.unit)} | **{measured.ratio:.2f}** ({min(measured.ratios):.2f}.."
        f"{max(measured.ratios):.2f}) | {goal}{verdict} | {end}{note} |"
    )


def _figure(figures: tuple[float, ...], unit: str) -> str:
    return f"{statistics.median(figures):.3g} {unit}"


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
