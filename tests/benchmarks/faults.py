"""`make bench-faults`: every kind of fault under 8 streams on a lab; the table goes into docs/benchmarks.md.

Two layouts: two replicas of two stages, of which one is struck, and one replica of three stages. Each fault is
repeated on the same deployment, once it has healed from the one before.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from agent.facts.fault import FaultKind
from tests.integration.cluster import Cluster, free_listen, open_cluster, until
from tests.integration.faults import NUM_STREAMS, Struck, strike
from tests.integration.models import write_endless_model

NAME = "bench"
CONTROLLER = "h1"
LAYOUTS = {
    "2 replicas of 2 stages": ("--replicas", "2", "--stages", "2"),
    "1 replica of 3 stages": ("--stages", "3", "--min-hosts", "3"),
}
DOCUMENT = Path(__file__).parents[2] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"


class Fault(msgspec.Struct, frozen=True):
    """What befalls the last rank of the last replica, or its host."""

    name: str
    kind: FaultKind
    blow: Callable[[Cluster, str], object]
    way_back: Callable[[Cluster, str], object] | None = None


def _kill_rank(cluster: Cluster, host: str) -> None:
    os.kill(_rank_on(cluster, host), signal.SIGKILL)


def _stop_rank(cluster: Cluster, host: str) -> None:
    os.kill(_rank_on(cluster, host), signal.SIGSTOP)


def _rank_on(cluster: Cluster, host: str) -> int:
    return cluster.children(host, "rank", NAME)[0].pid


FAULTS = (
    Fault("SIGKILL of a rank", "rank_lost", _kill_rank),
    Fault("SIGSTOP of a rank", "rank_hung", _stop_rank),
    Fault("SIGKILL of an agent", "agent_lost", lambda cluster, host: cluster.kill_agent(host)),
    Fault(
        "SIGKILL of all of a host",
        "host_lost",
        lambda cluster, host: cluster.kill_host(host),
        lambda cluster, host: cluster.bootstrap(host),
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dry-run", action="store_true", help="print the table, leave the document alone")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="odb-") as folder:
        model = write_endless_model(Path(folder) / "endless")
        lines = [*_head(options.repeats), *_measure(model, Path(folder), options.repeats)]
    table = "\n".join(lines)
    sys.stdout.write(table + "\n")
    if not options.dry_run:
        _write(table)
    return 0


def _head(repeats: int) -> list[str]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return [
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start; commit "
        f"{commit.stdout.strip() or 'unknown'}; {repeats} repeats, median (worst). All hosts share this machine.",
        f"{NUM_STREAMS} endless streams were under way. Seconds from the blow.",
        "",
        "| layout | fault | fault event | streams that went on | told by an error | cut off silently "
        "| new request answered | serving again |",
        "|---|---|---|---|---|---|---|---|",
    ]


def _measure(model: Path, folder: Path, repeats: int) -> Iterator[str]:
    with open_cluster(num_hosts=4) as cluster:
        for layout, choices in LAYOUTS.items():
            listen = free_listen()
            plan = cluster.plan(
                model,
                folder / "plan.toml",
                *("--name", NAME, "--listen", listen, "--controller", CONTROLLER, "--strategy", "pipeline"),
                *("--context", "4096", "--batch", str(NUM_STREAMS + 1)),
                *choices,
            )
            # Each fault is repeated at once: what limits a rank that keeps dying is not what is measured here.
            plan.write_text(plan.read_text().replace("max_restarts_per_minute = 3", "max_restarts_per_minute = 60"))
            cluster.apply(plan)
            host = max(cluster.status(CONTROLLER, NAME).ranks, key=lambda rank: rank.rank_id).host
            assert host != CONTROLLER
            for fault in FAULTS:
                sys.stderr.write(f"{layout}: {fault.name}\n")
                struck = [_strike(cluster, fault, host, listen, layout) for _ in range(repeats)]
                yield _row(layout, fault, struck)
            cluster.must("destroy", NAME, "--yes")


def _strike(cluster: Cluster, fault: Fault, host: str, listen: str, layout: str) -> Struck:
    # A fresh keeper: the pause before it starts a dead agent again grows with each death in a minute.
    cluster.restart_keeper(host)
    cluster.wait_serving(CONTROLLER, NAME)
    way_back = fault.way_back
    has_survivor = layout.startswith("2")
    struck = strike(
        cluster,
        lambda: fault.blow(cluster, host),
        kind=fault.kind,
        host=host,
        deployment=NAME,
        listen=listen,
        controller=CONTROLLER,
        heals=way_back is None,
        bring_back=(lambda: way_back(cluster, host)) if way_back is not None and not has_survivor else None,
    )
    if way_back is not None and has_survivor:
        way_back(cluster, host)
    cluster.wait_serving(CONTROLLER, NAME, timeout_s=90.0)
    until(lambda: all(each.healed_at_s for each in cluster.faults(CONTROLLER)), timeout_s=40.0, what=cluster.diary)
    return struck


def _row(layout: str, fault: Fault, struck: list[Struck]) -> str:
    went_on, told = [len(each.went_on) for each in struck], [len(each.told) for each in struck]
    silent = sum(len(each.silent) for each in struck)
    serving_s = [each.serving_s for each in struck if each.serving_s >= 0]
    serving = _seconds(serving_s) if serving_s else "once it is back"
    return (
        f"| {layout} | {fault.name} | {_seconds([each.detected_s for each in struck])} "
        f"| {_range(went_on)} | {_range(told)} | {silent} "
        f"| {_seconds([each.answer_s for each in struck])} | {serving} |"
    )


def _seconds(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({max(values):.2f})"


def _range(counts: list[int]) -> str:
    return str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)}..{max(counts)}"


def _write(table: str) -> None:
    text = DOCUMENT.read_text() if DOCUMENT.exists() else "# Benchmarks\n"
    if BEGIN not in text:
        text = (
            text.rstrip()
            + f"\n\n## Faults\n\n`make bench-faults` measures and writes this table.\n\n{BEGIN}\n{END}\n"
        )
    before, _, rest = text.partition(BEGIN)
    DOCUMENT.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    sys.exit(main())
