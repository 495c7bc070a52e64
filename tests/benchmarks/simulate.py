"""`make bench-simulate`: one Poisson trace on a real deployment and in the simulator; the table goes into docs.

Each layout of the demo model is applied on a lab. Two short recorded loads, right before and after the trace, fit
the simulator's engine; the trace is asked twice, so that the machine's own noise stands beside the error.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from agent.simulation.trace import parse_trace, trace_text
from tests.benchmarks.output import write_between
from tests.integration.cluster import Cluster, free_listen, open_cluster

LAYOUTS = {
    "one device": (("--max-hosts", "1"), 6.0),
    "pipeline 2": (("--strategy", "pipeline", "--stages", "2"), 4.0),
}
"""Options of the plan, and requests a second: about half of what the layout can do."""
LENGTHS = ("--prompt", "32..160", "--output", "8..48", "--api", "openai")
WARM_UP, REQUESTS = 40, 90
NAME = "bench"
GOAL = 0.15
DOCUMENT = Path(__file__).parents[2] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- simulate: begin -->", "<!-- simulate: end -->"
FIGURES: dict[str, tuple[str, Callable[[Any], float]]] = {
    "time to first token, p50": ("ms", lambda found: found["ttft_s"]["p50"] * 1e3),
    "time to first token, p95": ("ms", lambda found: found["ttft_s"]["p95"] * 1e3),
    "time per token, p50": ("ms", lambda found: found["tpot_s"]["p50"] * 1e3),
    "throughput": ("tokens/s", lambda found: found["output_tokens_per_s"]),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="print the table, leave the document alone")
    options = parser.parse_args()
    lines = _head()
    with tempfile.TemporaryDirectory(prefix="ods-") as folder, open_cluster(num_hosts=2) as cluster:
        model = Path(folder) / "speaker"
        cluster.must("models", "make-demo", str(model))
        for layout, (choices, rate) in LAYOUTS.items():
            sys.stderr.write(f"{layout}\n")
            lines += _measure(cluster, model, Path(folder), layout, choices, rate=rate)
    table = "\n".join(lines)
    sys.stdout.write(table + "\n")
    if not options.dry_run:
        write_between(DOCUMENT, BEGIN, END, table)
    return 0


def _head() -> list[str]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return [
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start; commit "
        f"{commit.stdout.strip() or 'unknown'}. {REQUESTS} requests, prompts of 32 to 160 tokens, answers of 8 to "
        f"48, Poisson. The engine is fitted to {WARM_UP} other requests, half of them right before the trace and "
        f"half right after it. 'again' is the same trace measured a second time. Goal: within {GOAL:.0%}.",
        "",
        "| layout, rate | figure | measured | simulated | error | again | unfitted cost model |",
        "|---|---|---|---|---|---|---|",
    ]


def _measure(
    cluster: Cluster, model: Path, folder: Path, layout: str, choices: tuple[str, ...], *, rate: float
) -> list[str]:
    listen = free_listen()
    plan = cluster.plan(
        model, folder / "plan.toml", "--name", NAME, "--listen", listen, "--context", "512", *choices
    )
    cluster.apply(plan)
    asked = (f"http://{listen}", *LENGTHS, "--rate", str(rate))

    def ask(name: str, requests: int, seed: int) -> Path:
        path = folder / f"{name}.jsonl"
        counted = ("--requests", str(requests), "--seed", str(seed), "--record", str(path))
        cluster.must("bench", *asked, *counted)
        return path

    before = ask("before", WARM_UP // 2, 1)
    first = ask("first", REQUESTS, 2)
    after = ask("after", WARM_UP // 2, 3)
    again = ask("again", REQUESTS, 2)
    warm_up = _join(before, after, folder / "warm-up.jsonl")
    fitted = cluster.must("simulate", str(plan), "--trace", str(first), "--calibrate", str(warm_up))
    unfitted = cluster.must("simulate", str(plan), "--trace", str(first))
    repeated = cluster.must("simulate", str(plan), "--trace", str(again))["measured"]
    sys.stderr.write(f"{fitted['calibration']}\n")
    cluster.must("destroy", NAME, "--yes")
    return [
        _row(f"{layout}, {rate:g}/s", name, fitted=fitted, unfitted=unfitted["figures"], repeated=repeated)
        for name in FIGURES
    ]


def _join(before: Path, after: Path, target: Path) -> Path:
    """Two recorded loads, far enough apart that neither sees the other."""
    earlier, later = (parse_trace(path.read_text(), file=str(path)) for path in (before, after))
    shift_s = earlier[-1].arrival_s + 60.0
    shifted = [msgspec.structs.replace(each, arrival_s=each.arrival_s + shift_s) for each in later]
    target.write_text(trace_text([*earlier, *shifted]))
    return target


def _row(layout: str, name: str, *, fitted: Any, unfitted: Any, repeated: Any) -> str:
    unit, of = FIGURES[name]
    measured, simulated = of(fitted["measured"]), of(fitted["figures"])
    error = simulated / measured - 1
    verdict = "" if abs(error) <= GOAL else " **missed**"
    return (
        f"| {layout} | {name} | {measured:.1f} {unit} | {simulated:.1f} | {error:+.1%}{verdict} | "
        f"{of(repeated) / measured - 1:+.1%} | {of(unfitted) / measured - 1:+.1%} |"
    )


if __name__ == "__main__":
    sys.exit(main())
