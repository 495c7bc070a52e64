"""`make bench`: the engine against llama.cpp and transformers, row by row; the table goes into docs/benchmarks.md.

Rows that were measured at this commit are not measured again, so that an interrupted run goes on; `--rows` measures
what it names in any case. A row that cannot be measured says why and does not stop the others.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from odctl.bench.server import RequestFailed
from tests.benchmarks.alternate import ROUNDS
from tests.benchmarks.ours import open_lab
from tests.benchmarks.output import say
from tests.benchmarks.peers import build_peers, the_peers
from tests.benchmarks.rows import ROWS, NotAvailable, Room, Row
from tests.benchmarks.table import Result, Results, commit_now, now, table, write_document

Trouble = (
    NotAvailable,
    RequestFailed,
    RuntimeError,
    AssertionError,
    OSError,
    httpx.HTTPError,
    subprocess.SubprocessError,
    BaseExceptionGroup,
)
"""A side that does not come up, gives no full answer or dies. Anything else is our mistake and ends the run."""


def main() -> int:
    # As an interrupt: sides are taken down on the way out, and nothing is left running.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="", help="names, separated by commas; begins are enough. Default: all")
    parser.add_argument("--list", action="store_true", help="print the rows' names")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of each pair; fewer only tell whether it works")
    parser.add_argument("--dry-run", action="store_true", help="print the table, leave the document alone")
    options = parser.parse_args()
    if options.list:
        sys.stdout.write("".join(f"{row.name:24} {row.work}; against {row.other}\n" for row in ROWS))
        return 0
    wanted = tuple(each.strip() for each in options.rows.split(",") if each.strip())
    chosen = [row for row in ROWS if not wanted or row.name.startswith(wanted)]
    peers = the_peers()
    build_peers(peers)
    results, commit = Results(peers.results), commit_now()
    due = [row for row in chosen if wanted or not _is_fresh(results.get(row), commit)]
    say(f"{len(due)} of {len(chosen)} rows are to be measured at commit {commit}")
    if due:
        with tempfile.TemporaryDirectory(prefix="odb-") as folder, open_lab(peers.models) as cluster:
            room = Room(peers, cluster, Path(folder), options.rounds)
            for row in due:
                result = _measure(row, room, commit)
                results.keep(result)
                print(f"{row.name}: {_short(result)}", flush=True)
    text = table(ROWS, results)
    sys.stdout.write(text + "\n")
    if not options.dry_run:
        write_document(text)
    return 0


def _is_fresh(result: Result | None, commit: str) -> bool:
    if result is None or result.measured is None:
        return False
    return result.commit == commit and len(result.measured.ours) >= ROUNDS


def _measure(row: Row, room: Room, commit: str) -> Result:
    say(f"{row.name}: {row.work}, against {row.other}")
    begun, load = time.monotonic(), os.getloadavg()[0]
    measured, trouble = None, ""
    try:
        measured = row.measure(room)
    except Trouble as error:
        trouble = " ".join(str(error).split())[:200] or type(error).__name__
        say(f"  not available: {trouble}")
    took_s = time.monotonic() - begun
    return Result(
        row=row.name, commit=commit, at=now(), took_s=took_s, load=load, measured=measured, trouble=trouble
    )


def _short(result: Result) -> str:
    if result.measured is None:
        return f"not available: {result.trouble}"
    return f"{result.measured.ratio:.2f} in {result.took_s:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
