"""`odctl compare A B [C D]`: plans side by side. Reads the files and nothing else, but for `--running`."""

from __future__ import annotations

from pathlib import Path

import click

from agent.planner.compare import Comparison, Metric, PlanChange, compare_plans
from agent.planner.words import (
    bytes_words,
    layers_words,
    list_words,
    rate_interval_words,
    rate_words,
    seconds_interval_words,
    seconds_words,
)
from odctl.commands.show import load_plan
from odctl.result import ExitCode, Result, run_command

SHOWN_HOSTS = 24
COLUMN = 14


@click.command("compare")
@click.argument("plan_paths", metavar="A B [C] [D]", nargs=-1, required=True, type=click.Path(dir_okay=False))
@click.option("--running", is_flag=True, help="Compare one plan with what the deployment of its name runs now.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def command(inventory_path: str, /, plan_paths: tuple[str, ...], running: bool, as_json: bool) -> None:
    """Compare two to four plans: predictions, memory, what moves, and which wins for what.

    Exits with 0 when they are the same and with 2 when they differ.
    """
    paths = [Path(path) for path in plan_paths]
    if running:
        from odctl.commands.compare_running import compare_with_running

        run_command(lambda: compare_with_running(inventory_path, paths), as_json=as_json)
        return
    run_command(lambda: compare_files(paths), as_json=as_json)


def compare_files(paths: list[Path]) -> Result:
    """The plans in these files, compared. Raises FleetError for a file that is no plan, or a wrong count."""
    comparison = compare_plans([load_plan(path) for path in paths], [str(path) for path in paths])
    return Result(
        kind="comparison",
        data=comparison,
        prose="\n".join(comparison_lines(comparison)),
        exit_code=ExitCode.OK if comparison.is_same else ExitCode.CHANGES,
    )


def comparison_lines(comparison: Comparison) -> list[str]:
    """A comparison as people read it."""
    letters = [chr(ord("A") + index) for index in range(len(comparison.names))]
    lines = [
        f"{letter}  {name}  {digest[:12]}  {shape}"
        for letter, name, digest, shape in zip(
            letters, comparison.names, comparison.hashes, comparison.shapes, strict=True
        )
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
    lines += ["", *(_change_line(change, letters) for change in comparison.changes)]
    lines += ["", *(f"{verdict.objective:<12}{verdict.reason}" for verdict in comparison.verdicts)]
    return lines


def _metric_line(metric: Metric, letters: list[str]) -> str:
    cells: list[str] = []
    for value, delta in zip(metric.values, metric.deltas, strict=True):
        sign = "pt" if metric.unit == "fraction" else "%"
        change = f" {delta * 100:+.0f}{sign}" if cells and delta is not None and abs(delta) >= 0.005 else ""
        cells.append(f"{_figure(metric, value)}{change}")
    best = letters[metric.best] if metric.best is not None else "="
    return f"{metric.name:<20}" + "".join(f"{cell:>{COLUMN}}" for cell in cells) + f"   {best}"


def _bounds_line(metric: Metric) -> list[str]:
    """`  4 in 5 runs   (8.9..12.1)   (20..31)` beneath a predicted figure, where a plan has bounds."""
    if all(bounds.low == bounds.high for bounds in metric.bounds):
        return []
    words = seconds_interval_words if metric.unit == "s" else rate_interval_words
    cells = (f"({words(bounds).partition('(')[2]}" if bounds.low < bounds.high else "" for bounds in metric.bounds)
    return [f"{'  4 in 5 runs':<20}" + "".join(f"{cell:>{COLUMN}}" for cell in cells)]


def _figure(metric: Metric, value: float) -> str:
    match metric.unit:
        case "s":
            return seconds_words(value)
        case "bytes":
            return bytes_words(value)
        case "tokens/s":
            return rate_words(value).removesuffix(" tok/s") + "/s"
        case _:
            return f"{value:.0%}" if metric.unit == "fraction" else f"{value:.0f}"


def _change_line(change: PlanChange, letters: list[str]) -> str:
    parts = [f"A to {letters[change.plan]}: {len(change.layers_moved)} layers change hosts or shares"]
    parts.append(f"{bytes_words(change.bytes_to_move)} of weights to load")
    if change.hosts_added:
        parts.append(f"adds {list_words(change.hosts_added)}")
    if change.hosts_removed:
        parts.append(f"drops {list_words(change.hosts_removed)}")
    return ", ".join(parts)
