"""`make bench-slow-link`: a lab serves over a link that becomes slow, and after some runs the plan leaves it.

Root only: the whole lab lives in a network namespace of its own. Hosts and links are probed once, before anything
is served. Every turn plans, applies a new layout, and puts the same load on the deployment; nothing else tells the
planner of the link. Writes docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from odctl.lab import Lab
from tests.benchmarks.output import say, write_between
from tests.benchmarks.shaped_network import UNSHAPED, ShapedLink, network_namespace, run_inside
from tests.benchmarks.table import commit_now

DOCUMENT = Path(__file__).parents[2] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- slow link: begin -->", "<!-- slow link: end -->"
NAME = "speaker"
LISTEN = "127.0.0.1:11491"
RATE = "1mbit"
FAST_RUNS, MOST_SLOW_RUNS, RUNS_AFTER = 3, 6, 2
REQUESTS, PROMPT, OUTPUT = 32, 128, 8
PLAN = ("--name", NAME, "--context", "256", "--batch", "1", "--min-hosts", "2", "--max-hosts", "2",
        "--controller", "h1", "--objective", "ttft", "--listen", LISTEN)  # fmt: skip
COMMAND_LIMIT_S = 300.0
RECORDED_LIMIT_S = 30.0
PARTIAL = 5
"""Exit code of a probe of which a larger group failed: it happens beside other load, and pairs are enough."""
SAID_CHARACTERS = 3000


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One turn: what was planned, what it promised, and what the load then measured. Seconds to the first token."""

    link: str
    """Rate of the link that is made slow."""
    arm: str
    layout: tuple[str, ...]
    """Hosts of the ranks, in order."""
    predicted_s: float
    bounds_s: tuple[float, float]
    """Four in five runs should lie between."""
    measured_s: float
    predicted_token_s: float
    measured_token_s: float


class Story(msgspec.Struct, frozen=True, kw_only=True):
    pair: tuple[str, str]
    runs: tuple[Run, ...]

    @property
    def runs_until_change(self) -> int | None:
        """Measured runs over the slow link before a plan left it; None where it never did."""
        slow = [run for run in self.runs if run.link != UNSHAPED]
        stayed = [index for index, run in enumerate(slow) if set(run.layout) != set(self.pair)]
        return stayed[0] if stayed else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", default=RATE, help="of the slow link, as tc writes it")
    parser.add_argument("--dry-run", action="store_true", help="print the table, leave the document alone")
    parser.add_argument("--json", action="store_true", help="print the runs instead")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        sys.stdout.buffer.write(msgspec.json.encode(tell_story(options.rate)))
        return 0
    if os.geteuid() != 0:
        say("a network namespace needs root: run this as root")
        return 1
    # A stop from outside is to clean up as an interrupt does: the lab inside ends before its namespace.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with network_namespace(f"odctl-slow-{secrets.token_hex(3)}") as inside:
        command = [*inside, sys.executable, "-m", __spec__.name, "--inside", "--rate", options.rate]
        status, told = run_inside(command, stdout=subprocess.PIPE)
    if status:
        say(f"the lab's part ended with {status}")
        return 1
    if options.json:
        sys.stdout.buffer.write(told)
        return 0
    story = msgspec.json.decode(told, type=Story)
    text = table(story, options.rate)
    print(text)
    if not options.dry_run:
        _write(text)
    return 0 if story.runs_until_change is not None else 1


def tell_story(rate: str) -> Story:
    """The lab from its beginning to its end, in the namespace that this process is in."""
    runs: list[Run] = []
    with Lab(name=f"slow{secrets.token_hex(2)}", num_hosts=3) as lab, _own_home(lab):
        addresses = {host.name: host.address for host in lab.hosts}
        model = lab.directory / "speaker"
        odctl(lab, "bootstrap")
        odctl(lab, "models", "make-demo", str(model))
        say("probing hosts and links, once")
        probed = odctl(lab, "probe", "--quick", allowed=(0, PARTIAL))
        assert probed["num_links_measured"] == 6, f"every direction of three links is needed: {probed['troubles']}"
        for _ in range(FAST_RUNS):
            runs.append(take_run(lab, model, UNSHAPED, runs[-1] if runs else None))
        pair = tuple(sorted(set(runs[-1].layout)))
        assert len(pair) == 2, f"the plan is on {pair}, not on two hosts"
        link = ShapedLink(*(addresses[host] for host in pair))
        say(f"the link {' - '.join(pair)} is {rate} from now on")
        link.set_rate(rate)
        after = 0
        for _ in range(MOST_SLOW_RUNS + RUNS_AFTER):
            runs.append(take_run(lab, model, rate, runs[-1]))
            after += set(runs[-1].layout) != set(pair)
            if after == RUNS_AFTER:
                break
    return Story(pair=(pair[0], pair[1]), runs=tuple(runs))


def take_run(lab: Lab, model: Path, link: str, running: Run | None) -> Run:
    """Plan, apply a layout that is not running, and load it; over when the agents have kept what they measured."""
    plan = plan_for(lab, model)
    predicted = plan["predicted"]
    if running is None or (running.arm, running.layout) != (_arm(plan), _layout(plan)):
        odctl(lab, "apply", str(lab.directory / "plan.toml"), "--yes")
    before = _recorded_requests(lab)
    measured = odctl(
        lab, "bench", NAME, "--requests", str(REQUESTS), "--prompt", str(PROMPT), "--output", str(OUTPUT), "--seed",
        str(secrets.randbelow(2**31)),
    )["servers"][0]["figures"]  # fmt: skip
    _until_recorded(lab, before + REQUESTS)
    run = Run(
        link=link,
        arm=_arm(plan),
        layout=_layout(plan),
        predicted_s=predicted["ttft_s"],
        bounds_s=tuple(predicted["ttft_bounds_s"]),
        measured_s=measured["ttft_s"]["p50"],
        predicted_token_s=predicted["time_per_token_s"],
        measured_token_s=measured["tpot_s"]["p50"],
    )
    say(
        f"{link}: {run.arm} on {', '.join(run.layout)}, first token predicted after {run.predicted_s * 1e3:.0f} "
        f"ms, measured after {run.measured_s * 1e3:.0f}"
    )
    return run


def plan_for(lab: Lab, model: Path) -> Any:
    return odctl(lab, "plan", str(model), *PLAN, "-o", str(lab.directory / "plan.toml"))["plan"]


def _layout(plan: Any) -> tuple[str, ...]:
    return tuple(shard["host"] for stage in plan["replicas"][0]["stages"] for shard in stage["shards"])


def _arm(plan: Any) -> str:
    from agent.planner.learning.records import arm_of

    return arm_of([len(stage["shards"]) for stage in plan["replicas"][0]["stages"]])


def _recorded_requests(lab: Lab) -> int:
    found: int = sum(row["executions"] for row in odctl(lab, "strategies")["strategies"])
    return found


def _until_recorded(lab: Lab, wanted: int) -> None:
    deadline = time.monotonic() + RECORDED_LIMIT_S
    while (found := _recorded_requests(lab)) < wanted:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{found} requests are recorded, not {wanted}, after {RECORDED_LIMIT_S:.0f} s")
        time.sleep(0.5)


@contextmanager
def _own_home(lab: Lab) -> Iterator[None]:
    """The lab's authority and known hosts lie in its directory, not in the operator's home."""
    before = os.environ.get("ODCTL_HOME")
    os.environ["ODCTL_HOME"] = str(lab.directory / "operator")
    try:
        yield
    finally:
        if before is None:
            del os.environ["ODCTL_HOME"]
        else:
            os.environ["ODCTL_HOME"] = before


def odctl(lab: Lab, *arguments: str, allowed: tuple[int, ...] = (0,)) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "odctl", "-i", str(lab.inventory_path), *arguments, "--json"],
        capture_output=True,
        text=True,
        timeout=COMMAND_LIMIT_S,
        check=False,
    )
    if done.returncode not in allowed:
        said = f"{done.stdout}\n{done.stderr}"[-SAID_CHARACTERS:]
        raise RuntimeError(f"odctl {' '.join(arguments)}: {done.returncode}\n{said}")
    return json.loads(done.stdout)["data"]


def table(story: Story, rate: str) -> str:
    changed = story.runs_until_change
    said = (
        f"The plan left the link after {changed} measured runs over it."
        if changed is not None
        else f"The plan kept to the link through {MOST_SLOW_RUNS} runs."
    )
    lines = [
        f"Commit {commit_now()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}. Three lab hosts, the demo "
        f"model on two of them, planned for the first token; one stream, {REQUESTS} requests of {PROMPT} + "
        f"{OUTPUT} tokens a run, medians. The link {' - '.join(story.pair)} is at full speed first and {rate} "
        f"then; links were probed once, before. {said}",
        "",
        "| run | link | planned | first token predicted (four in five) | measured | of predicted | per token |",
        "|---|---|---|---|---|---|---|",
    ]
    for number, run in enumerate(story.runs, start=1):
        low, high = run.bounds_s
        lines.append(
            f"| {number} | {'full' if run.link == UNSHAPED else run.link} | {run.arm}: {', '.join(run.layout)} | "
            f"{run.predicted_s * 1e3:.0f} ms ({low * 1e3:.0f}..{high * 1e3:.0f}) | {run.measured_s * 1e3:.0f} ms | "
            f"{run.measured_s / run.predicted_s:.2f} | {run.measured_token_s * 1e3:.1f} ms |"
        )
    return "\n".join(lines)


def _write(text: str) -> None:
    write_between(DOCUMENT, BEGIN, END, text)
    say(f"written to {DOCUMENT}")


if __name__ == "__main__":
    sys.exit(main())
