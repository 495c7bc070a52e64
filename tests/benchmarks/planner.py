"""`make bench-planner`: how long planning takes as clusters grow, and what it makes of a public cluster.

The cluster is `helix_single24.json` (24 machines; derived from Thesys-lab/Helix-ASPLOS25); its rows are left out
where it is not found. Times are medians on the wall; the first run of each is to warm up and does not count. CPU
time stands beside it: the difference is what else the machine did.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from agent.facts.cluster import ClusterFacts
from agent.planner.bound import Curve, counting_bound
from agent.planner.fleet import Fleet, FleetPlan, fleet_bound, fleet_of, plan_fleet, without_host
from agent.planner.machine_types import TypePlan, best_served, serve_types, stage_pareto
from agent.planner.make import make_plan
from agent.planner.plan import Objective, ObjectiveKind, Serving
from agent.planner.problem import PlanRequest
from agent.planner.replicas import EXACT_DEVICES
from agent.planner.split import Minimise, OptionTable, split_layers
from tests.agent.planner.clusters import LLAMA_70B, request
from tests.agent.planner.fleets import HELIX_TRAFFIC, fleet_facts, fleet_problem, helix_types, unequal_facts
from tests.benchmarks.output import say, write_between
from tests.shared_data import find_shared_data

DOCUMENT = Path(__file__).parents[2] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- planner: begin -->", "<!-- planner: end -->"
SPLITS = ((16, 80, 5e-3), (64, 126, 50e-3), (256, 126, None))
"""Devices, layers, and the goal in seconds."""
FLEETS = (100, 1_000, 10_000, 50_000)
COLD_GOAL_S, REPLAN_GOAL_S = 1.0, 50e-3
UNEQUAL_GOAL_S = 0.5
WAYS: tuple[Minimise, ...] = ("sum", "max")
HELIX_LAYERS = 80
SIMULATED = {11: 263.7, 13: 270.5, 14: 268.5, 24: 220.6}
"""Tokens per second that Helix's own event simulator gave plans of so many stages with the same flow."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--dry-run", action="store_true", help="print the tables, leave the document alone")
    options = parser.parse_args()
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    lines = [
        f"{machine}, Python {platform.python_version()}, numpy {np.__version__}; load before "
        f"{os.getloadavg()[0]:.1f}; medians of {options.repeats}, one to warm up.",
        "",
        *split_lines(options.repeats),
        "",
        *fleet_lines(options.repeats),
        "",
        *plan_lines(options.repeats),
    ]
    data = find_shared_data("planner/helix_single24.json")
    if data is not None:
        lines += ["", *helix_lines(data, options.repeats)]
    else:
        say("no planner/helix_single24.json among the shared data: its table is left out")
    table = "\n".join(lines)
    sys.stdout.write(table + "\n")
    if not options.dry_run:
        write_between(DOCUMENT, BEGIN, END, table)
    return 0


def split_lines(repeats: int) -> list[str]:
    """The exact programme on random devices: all of unequal speed, memory and links."""
    lines = ["| exact split | sum | slowest stage | goal | |", "|---|---|---|---|---|"]
    for num_devices, num_layers, goal_s in SPLITS:
        say(f"{num_devices} devices x {num_layers} layers")
        table = random_devices(num_devices, num_layers)
        total, slowest = (_times(partial(split_layers, table, num_layers, minimise=way), repeats) for way in WAYS)
        goal = "" if goal_s is None else f"<= {goal_s * 1e3:.0f} ms"
        verdict = "" if goal_s is None else _verdict(max(total.wall_s, slowest.wall_s) <= goal_s)
        lines.append(f"| {num_devices} devices x {num_layers} layers | {total} | {slowest} | {goal} | {verdict} |")
    return lines


def fleet_lines(repeats: int) -> list[str]:
    """Copies of a 70B model over a fleet: cold from the facts, again with all signatures known, and a lost host."""
    lines = [
        "| hosts | copies | devices used | of the counting bound | cold | all signatures known | one host lost | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for num_hosts in FLEETS:
        say(f"{num_hosts} hosts")
        facts = fleet_facts(num_hosts)
        cold = _times(partial(_plan_cold, facts), repeats if num_hosts <= 10_000 else 3)
        fleet = fleet_of(fleet_problem(facts))
        plan = plan_fleet(fleet)
        known = _times(partial(plan_fleet, fleet, known=plan.known), repeats)
        step = num_hosts // (repeats + 1)
        lost = _times(_Losses(fleet, plan, iter(range(0, num_hosts, step))), repeats)
        used = sum(len(group.seats) for group in plan.groups)
        verdict = ""
        if num_hosts == 10_000:
            is_met = cold.wall_s <= COLD_GOAL_S and lost.wall_s <= REPLAN_GOAL_S
            verdict = f"<= {COLD_GOAL_S:.0f} s cold, <= {REPLAN_GOAL_S * 1e3:.0f} ms: {_verdict(is_met)}"
        lines.append(
            f"| {num_hosts:,} | {len(plan.groups):,} | {used / num_hosts:.0%} | "
            f"{plan.passes_per_s / fleet_bound(fleet):.1%} | {cold} | {known} | {lost} | {verdict} |"
        )
    return lines


def plan_lines(repeats: int) -> list[str]:
    """Whole plans, `make_plan` from facts to a plan with its bytes, predictions and reasons."""
    lines = [
        "| whole plan of a 70B model | replicas | time | goal | |",
        "|---|---|---|---|---|",
    ]
    cases: list[tuple[str, PlanRequest, float | None, int]] = [
        (f"16 hosts with unequal links, {kind}", _asked(unequal_facts(16), kind, 1), UNEQUAL_GOAL_S, repeats)
        for kind in ("latency", "throughput")
    ]
    cases += [
        (f"{num_hosts:,} hosts, exact search, {kind}", _asked(fleet_facts(num_hosts), kind, 1), None, repeats)
        for num_hosts in (32, EXACT_DEVICES)
        for kind in ("latency", "throughput")
    ]
    cases += [
        (
            f"{num_hosts:,} hosts, packed, throughput",
            _asked(fleet_facts(num_hosts), "throughput", "max"),
            COLD_GOAL_S if num_hosts == 10_000 else None,
            min(3, repeats),
        )
        for num_hosts in (1_000, 10_000)
    ]
    for words, asked, goal_s, times in cases:
        say(words)
        plan = make_plan(asked)
        taken = _times(partial(make_plan, asked), times)
        goal = "" if goal_s is None else f"<= {goal_s * 1e3:.0f} ms"
        verdict = "" if goal_s is None else _verdict(taken.wall_s <= goal_s)
        lines.append(f"| {words} | {len(plan.replicas):,} | {taken} | {goal} | {verdict} |")
    return lines


def _asked(facts: ClusterFacts, kind: ObjectiveKind, replicas: int | Literal["max"]) -> PlanRequest:
    return request(
        LLAMA_70B,
        facts,
        objective=Objective(kind=kind),
        serving=Serving(trusted_network=True),
        replicas=replicas,
    )


def helix_lines(path: Path, repeats: int) -> list[str]:
    """The most flow for every number of stages, and what of it is served."""
    types = helix_types(path)
    bound = counting_bound(
        [Curve(tokens_per_s=kind.tokens_per_s, count=kind.count) for kind in types], HELIX_LAYERS
    )
    say("24 machines of three types")
    times = _times(partial(stage_pareto, types, HELIX_LAYERS), min(3, repeats))
    plans = stage_pareto(types, HELIX_LAYERS)
    best, _ = best_served(plans, types, HELIX_TRAFFIC)
    most = plans[-1].tokens_per_s
    lines = [
        f"Helix's 24 machines, 70B: most flow {most:.2f} tok/s, counting bound {bound:.2f} tok/s "
        f"({most / bound:.2%} of it; Helix publishes 1289.56). All {len(plans)} plans took {times}.",
        "",
        "| stages | flow | of the bound | round trip | predicted served | limited by | in Helix's simulator |",
        "|---|---|---|---|---|---|---|",
    ]
    for plan in plans:
        each, simulated = serve_types(plan, types, HELIX_TRAFFIC), SIMULATED.get(len(plan.stages))
        mark = "**" if plan == best else ""
        lines.append(
            f"| {mark}{len(plan.stages)}{mark} | {plan.tokens_per_s:.1f} tok/s | {plan.tokens_per_s / bound:.0%} | "
            f"{each.round_trip_s:.2f} s | {mark}{each.tokens_per_s:.1f} tok/s{mark} | {each.limit} | "
            f"{'' if simulated is None else f'{simulated} tok/s'} |"
        )
    return [*lines, "", f"Recommended for throughput: {len(best.stages)} stages, {_stages_words(best)}."]


def _plan_cold(facts: ClusterFacts) -> FleetPlan:
    return plan_fleet(fleet_of(fleet_problem(facts)))


class _Losses:
    """Each call loses another host of the whole fleet."""

    def __init__(self, fleet: Fleet, plan: FleetPlan, victims: Iterator[int]) -> None:
        self._fleet, self._plan, self._victims = fleet, plan, victims

    def __call__(self) -> FleetPlan:
        return without_host(self._fleet, self._plan, self._fleet.seats[next(self._victims)][0].host)


def random_devices(num_devices: int, num_layers: int) -> OptionTable:
    """Devices that hold about twice the model together, of unequal speed and links; seeded."""
    rng = np.random.default_rng(num_devices)
    index = np.arange(num_devices)
    cap = rng.integers(1, max(3, 4 * num_layers // num_devices), num_devices)
    return OptionTable(
        start=index,
        end=index,
        layer_s=rng.uniform(0.5, 4, num_devices) * 1e-3,
        first_s=rng.uniform(0, 1e-3, num_devices),
        last_s=rng.uniform(0, 3e-3, num_devices),
        cap_first=np.maximum(0, cap - 1),
        cap_middle=cap,
        cap_last=np.maximum(0, cap - 1),
        cap_only=np.maximum(0, cap - 2),
        size=np.ones(num_devices, dtype=np.int64),
        first_host=index,
        last_host=index,
        hop_s=rng.uniform(0.1e-3, 3e-3, (num_devices, num_devices)),
    )


def _stages_words(plan: TypePlan) -> str:
    kinds = list(dict.fromkeys((stage.machine, stage.machines, stage.layers) for stage in plan.stages))
    counts = [sum((s.machine, s.machines, s.layers) == kind for s in plan.stages) for kind in kinds]
    return ", ".join(
        f"{count} of {machines} {name} with {layers} layers"
        for count, (name, machines, layers) in zip(counts, kinds, strict=True)
    )


class Times(NamedTuple):
    """Medians in seconds."""

    wall_s: float
    cpu_s: float

    def __str__(self) -> str:
        if self.wall_s < 0.1:
            return f"{self.wall_s * 1e3:.2f} ms ({self.cpu_s * 1e3:.2f} CPU)"
        return f"{self.wall_s:.2f} s ({self.cpu_s:.2f} CPU)"


def _times(act: Callable[[], object], repeats: int) -> Times:
    act()
    walls, cpus = [], []
    for _ in range(repeats):
        begun, spent = time.perf_counter(), time.process_time()
        act()
        walls.append(time.perf_counter() - begun)
        cpus.append(time.process_time() - spent)
    return Times(statistics.median(walls), statistics.median(cpus))


def _verdict(is_met: bool) -> str:
    return "met" if is_met else "**missed**"


if __name__ == "__main__":
    raise SystemExit(main())
