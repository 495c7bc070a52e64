"""`odctl compare A B [C D]`: plans side by side, by their files alone or measured on the cluster."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from agent.errors import FleetError
from agent.facts.cluster import ClusterFacts
from agent.planner.compare import Comparison, Metric, PlanChange, compare_plans
from agent.planner.interval import Interval
from agent.planner.risk import risk_words
from agent.planner.words import (
    bytes_interval_words,
    bytes_words,
    figure_words,
    joules_interval_words,
    layers_words,
    list_words,
    rate_interval_words,
    runs_words,
    seconds_interval_words,
    seconds_words,
)
from odctl.commands.show import load_plan
from odctl.result import ExitCode, Result, run_command

if TYPE_CHECKING:
    from odctl.history import Entry

SHOWN_HOSTS = 24
COLUMN = 14


@click.command("compare")
@click.argument("plan_paths", metavar="A B [C] [D]", nargs=-1, required=True, type=click.Path(dir_okay=False))
@click.option(
    "--measure", is_flag=True, help="Apply each in turn, put the same load on it, and take it away again."
)
@click.option("--live", is_flag=True, help="Ask the cluster too: memory left, fault domains, measured links.")
@click.option("--running", is_flag=True, help="Compare one plan with what the deployment of its name runs now.")
@click.option("--hosts", default="", metavar="SELECTOR", help="Measure on these even where something serves.")
@click.option("--requests", type=int, default=None, help="Of each of the two loads. Default: 40.")
@click.option(
    "--concurrency", type=int, default=None, help="Clients of the second load. Default: the least full batch."
)
@click.option(
    "--prompt-tokens", type=int, default=None, help="Default: what the first plan is predicted for, if it fits."
)
@click.option(
    "--max-tokens",
    type=int,
    default=None,
    help="Of each answer. Default: what the first plan is predicted for, or 64.",
)
@click.option("--yes", is_flag=True, help="Do not ask before measuring.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def command(
    inventory_path: str,
    /,
    plan_paths: tuple[str, ...],
    *,
    as_json: bool,
    measure: bool,
    live: bool,
    running: bool,
    **options: Any,
) -> None:
    """Compare two to four plans: predictions, memory, what moves, and which wins for what.

    With --measure each plan is applied, asked one request at a time and then many, and taken away again; what
    serves meanwhile is not touched. Exits with 0 when the plans are the same and with 2 when they differ.
    """
    paths = [Path(path) for path in plan_paths]

    def body() -> Result:
        if running:
            from odctl.commands.compare_running import compare_with_running

            check_options(options)
            return compare_with_running(inventory_path, paths)
        if measure:
            return measure_files(inventory_path, paths, **options)
        return compare_files(paths, live_inventory=inventory_path if live else "", **options)

    run_command(body, as_json=as_json)


def compare_files(paths: list[Path], *, live_inventory: str = "", **options: Any) -> Result:
    """The plans in these files, compared. Raises FleetError for a file that is no plan, or a wrong count.

    Raises E118 for options that only a measurement has.
    """
    check_options(options)
    plans = [load_plan(path) for path in paths]
    names = [str(path) for path in paths]
    if live_inventory:
        from odctl.history import last_apply_s

        facts, entries = _look(live_inventory)
        comparison = compare_plans(plans, names, facts=facts)
        took = last_apply_s(entries, comparison.hashes)
    else:
        comparison = compare_plans(plans, names)
        took = ()
    return Result(
        kind="comparison",
        data=msgspec.to_builtins(comparison) | {"last_apply_s": took},
        prose="\n".join(comparison_lines(comparison, took)),
        exit_code=ExitCode.OK if comparison.is_same else ExitCode.CHANGES,
    )


def check_options(options: Mapping[str, object]) -> None:
    """Raises E118 for what only a measurement asks for, where nothing is measured."""
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value not in (None, "", False)]
    if given:
        raise FleetError("E118", f"{', '.join(given)} without --measure", hint="add --measure, or leave them out")


def measure_files(
    inventory_path: str,
    paths: list[Path],
    *,
    hosts: str,
    requests: int | None,
    concurrency: int | None,
    prompt_tokens: int | None,
    max_tokens: int | None,
    yes: bool,
) -> Result:
    """Compare, and measure each. Raises what compare and apply raise before anything is applied; E501, E601.

    What goes wrong later ends the measurement and not the report: its exit code, with what was measured so far.
    """
    from odctl.apply import add_runs
    from odctl.commands.compare_measured import measured_result
    from odctl.fleet import Fleet
    from odctl.following import ctrl_c
    from odctl.inventory import Inventory, select
    from odctl.measuring import (
        load_prediction,
        measure_trials,
        predicted_load_s,
        ready_trials,
        standing,
        trial_loads,
    )
    from odctl.session import confirm, visit_fleet

    plans = [load_plan(path) for path in paths]
    names = [str(path) for path in paths]
    loads = trial_loads(
        plans, requests=requests, concurrency=concurrency, prompt_tokens=prompt_tokens, max_tokens=max_tokens
    )

    async def perform(fleet: Fleet, inventory: Inventory) -> Result:
        named = {host.name for host in select(inventory, hosts)} if hosts else set()
        trials = await ready_trials(fleet, plans, names, cluster=inventory.cluster, named_hosts=named)
        before = await standing(fleet)
        needed = sorted({host for plan in plans for host in plan.hosts})
        load_s = sum(predicted_load_s(plan, loads) for plan in plans)
        confirm(
            f"apply {len(trials)} plans one after the other on {list_words(needed)}, and take each away again "
            f"(about {max(1, round(load_s / 60))} min of load by their predictions)?",
            is_sure=yes,
        )
        facts = await add_runs(fleet, trials[0].preview.facts)
        for_load = [load_prediction(trial, facts, loads) for trial in trials]
        with ctrl_c(and_sigterm=True) as presses:
            outcomes = await measure_trials(fleet, trials, loads, presses=presses, tell=_tell)
        after = await standing(fleet)
        comparison = compare_plans(plans, names, facts=trials[0].preview.facts)
        return measured_result(
            comparison,
            plans,
            outcomes,
            loads,
            for_load=for_load,
            before=before,
            after=after,
            prose=comparison_lines(comparison),
        )

    return visit_fleet(inventory_path, perform)


def _look(inventory_path: str) -> tuple[ClusterFacts, tuple[Entry, ...]]:
    """Facts of the hosts that answer, and what they had applied. Raises E2xx when none does."""
    from odctl.apply import read_facts
    from odctl.fleet import Fleet
    from odctl.history import read_history
    from odctl.inventory import Inventory
    from odctl.session import visit_fleet, warn_unreachable

    async def look(fleet: Fleet, inventory: Inventory) -> tuple[ClusterFacts, tuple[Entry, ...]]:
        facts, missing = await read_facts(fleet, inventory.cluster)
        warn_unreachable(missing)
        if missing and not facts.hosts:
            raise next(iter(missing.values()))
        return facts, (await read_history(fleet)).entries

    return visit_fleet(inventory_path, look)


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def comparison_lines(comparison: Comparison, took: Sequence[float | None] = ()) -> list[str]:
    """A comparison as people read it. `took` are seconds that the plans' last applies took, where it was asked."""
    letters = [chr(ord("A") + index) for index in range(len(comparison.names))]
    lines = [
        f"{letter}  {name}  {digest[:12]}  {shape}"
        for letter, name, digest, shape in zip(
            letters, comparison.names, comparison.hashes, comparison.shapes, strict=True
        )
    ]
    lines += [
        f"{letter}  asked for {', '.join(words)}"
        for letter, words in zip(letters, comparison.asked, strict=True)
        if words
    ]
    if comparison.is_same:
        return [*lines, "", "the plans are the same"]
    lines += [f"warning: {warning}" for warning in comparison.warnings]
    lines += ["", f"{'METRIC':<20}" + "".join(f"{letter:>{COLUMN}}" for letter in letters) + "   BEST"]
    for metric in comparison.metrics:
        lines += [_metric_line(metric, letters), *_bounds_line(metric)]
    lines += ["", f"{'HOST':<20}" + "".join(f"{letter:>{COLUMN}}" for letter in letters)]
    for move in comparison.hosts[:SHOWN_HOSTS]:
        cells = (", ".join(layers_words(layers).split()[-1] for layers in held) or "-" for held in move.layers)
        changed = "   moves" if move.changes else ""
        lines.append(f"{move.host:<20}" + "".join(f"{cell:>{COLUMN}}" for cell in cells) + changed)
    if len(comparison.hosts) > SHOWN_HOSTS:
        lines.append(f"and {len(comparison.hosts) - SHOWN_HOSTS} more hosts (--json has them all)")
    for change in comparison.changes:
        lines += ["", *_change_lines(change, letters)]
    known = [f"{letter} {seconds:.1f} s" for letter, seconds in zip(letters, took, strict=False) if seconds]
    if known:
        lines.append(f"        applied before: {', '.join(known)}")
    lines += ["", *(f"{letter} {risk_words(risk)}" for letter, risk in zip(letters, comparison.risks, strict=True))]
    lines += ["", *(f"{verdict.objective:<12}{verdict.reason}" for verdict in comparison.verdicts)]
    return lines


def _metric_line(metric: Metric, letters: list[str]) -> str:
    cells: list[str] = []
    for value, delta in zip(metric.values, metric.deltas, strict=True):
        sign = "pt" if metric.unit == "fraction" else "%"
        change = f" {delta * 100:+.0f}{sign}" if cells and delta is not None and abs(delta) >= 0.005 else ""
        cells.append(f"{figure_words(value, metric.unit)}{change}")
    best = letters[metric.best] if metric.best is not None else "="
    return f"{metric.name:<20}" + "".join(f"{cell:>{COLUMN}}" for cell in cells) + f"   {best}"


_INTERVAL_WORDS: dict[str, Callable[[Interval], str]] = {
    "s": seconds_interval_words,
    "tokens/s": rate_interval_words,
    "J": joules_interval_words,
    "bytes": bytes_interval_words,
}


def _bounds_line(metric: Metric) -> list[str]:
    """`  4 in 5 runs   (8.9..12.1)   (20..31)` beneath a predicted figure, where a plan has bounds.

    Of memory they are the least and the most.
    """
    if all(bounds.low == bounds.high for bounds in metric.bounds):
        return []
    words = _INTERVAL_WORDS[metric.unit]
    cells = (f"({words(bounds).partition('(')[2]}" if bounds.low < bounds.high else "" for bounds in metric.bounds)
    title = "  least to most" if metric.unit == "bytes" else "  4 in 5 runs"
    return [f"{title:<20}" + "".join(f"{cell:>{COLUMN}}" for cell in cells)]


def _change_lines(change: PlanChange, letters: list[str]) -> list[str]:
    moved = change.layers_moved
    which = f" ({', '.join(runs_words(moved))})" if moved else ""
    parts = [f"A to {letters[change.plan]}: {len(moved)} layers change hosts or shares{which}"]
    parts.append(f"{bytes_words(change.bytes_to_move)} of weights to load")
    if change.hosts_added:
        parts.append(f"adds {list_words(change.hosts_added)}")
    if change.hosts_removed:
        parts.append(f"drops {list_words(change.hosts_removed)}")
    if not change.bytes_to_move:
        return [", ".join(parts)]
    by_host = [f"{host} {bytes_words(num_bytes)}" for host, num_bytes in change.bytes_by_host.items()]
    links = "measured links" if change.is_link_measured else "links not measured"
    return [
        ", ".join(parts),
        f"        {list_words(by_host, most=8)}; up to {seconds_words(change.fetch_s)} to bring them ({links}), "
        "then ranks start",
    ]
