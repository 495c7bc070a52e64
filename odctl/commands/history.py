"""`odctl history [DEPLOYMENT]`: generations, their plans, who and why, predicted beside measured."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from odctl.result import ExitCode, Result, run_command

if TYPE_CHECKING:
    from agent.planner.measured import HeldFigure
    from odctl.history import Entry

SHOWN_GENERATIONS = 20
"""Of each deployment, on a terminal."""


@click.command("history")
@click.argument("deployment", default="")
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def command(inventory_path: str, deployment: str, as_json: bool) -> None:
    """Show the generations of DEPLOYMENT (or of all), newest first: when, plan, layout, who and why.

    Figures are predicted -> measured, where runs were recorded: time to first token and time per token of
    requests alone, throughput of requests that filled at least half the batch.
    """
    run_command(lambda: history(inventory_path, deployment), as_json=as_json)


def history(inventory_path: str, deployment: str) -> Result:
    """Raises E110 for a deployment that no journal knows, E2xx when no host answers."""
    from agent.errors import FleetError
    from agent.planner.words import list_words
    from odctl.fleet import Fleet
    from odctl.history import read_history
    from odctl.inventory import Inventory
    from odctl.session import visit_fleet, warn_unreachable

    async def look(fleet: Fleet, _inventory: Inventory) -> Result:
        found = await read_history(fleet)
        warn_unreachable(found.unreachable)
        if found.unreachable and len(found.unreachable) == len(fleet.hosts):
            raise next(iter(found.unreachable.values()))
        if deployment and not found.of(deployment):
            known = ", ".join(found.deployments) or "none was ever applied"
            raise FleetError("E110", f"no deployment `{deployment}` in any journal", hint=f"known: {known}")
        names = (deployment,) if deployment else found.deployments
        lines: list[str] = []
        passing = [] if deployment else [name for name in names if _was_passing(found.of(name))]
        for name in names:
            if name not in passing:
                lines += [*([""] if lines else []), *_lines(name, found.of(name))]
        if passing:
            lines += ["", f"measured and taken away again: {list_words(passing)} (odctl history NAME shows it)"]
        return Result(
            kind="history",
            data={"deployments": {name: [_data(entry) for entry in found.of(name)] for name in names}},
            prose="\n".join(lines or ["nothing was applied yet"]),
            exit_code=ExitCode.UNREACHABLE if found.unreachable else ExitCode.OK,
        )

    return visit_fleet(inventory_path, look)


def _was_passing(entries: tuple[Entry, ...]) -> bool:
    """It stood for `compare --measure` alone."""
    return all(entry.served.cause == "measure" and entry.state == "destroyed" for entry in entries)


def _lines(name: str, entries: tuple[Entry, ...]) -> list[str]:
    lines = [name, f"    {'GEN':>4}  {'SERVED':<20} {'PLAN':<13} {'WHY':<9} {'WHO':<24} LAYOUT"]
    for entry in entries[: -SHOWN_GENERATIONS - 1 : -1]:
        lines += _entry_lines(entry)
    if len(entries) > SHOWN_GENERATIONS:
        lines.append(f"  and {len(entries) - SHOWN_GENERATIONS} earlier ones (--json has them all)")
    return lines


def _entry_lines(entry: Entry) -> list[str]:
    from agent.planner.compare import shape_words
    from odctl.history import held_figures

    served = entry.served
    glyph = {"current": "●", "replaced": " ", "destroyed": "✗"}[entry.state]
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(served.served_at_s))
    layout = shape_words(entry.plan) if entry.plan is not None else "its plan is lost"
    lines = [
        f"  {glyph} {served.generation:>4}  {when:<20} {served.plan_hash[:12]:<13} {served.cause:<9} "
        f"{served.by or '-':<24} {layout}"
    ]
    pad = " " * 10
    if served.reason:
        lines.append(f"{pad}{served.reason}")
    if served.apply_s is not None:
        lines.append(f"{pad}switched {served.apply_s:.1f} s after its apply began")
    if entry.state == "destroyed":
        lines.append(f"{pad}destroyed by {entry.ended_by or '?'}")
    if entry.plan is not None:
        lines.append(pad + _figures_words(held_figures(entry)))
    return lines


def _figures_words(held: dict[str, HeldFigure]) -> str:
    from agent.planner.words import rate_words, seconds_words

    def cell(name: str, title: str) -> str:
        each, words = held[name], rate_words if name == "throughput" else seconds_words
        measured = "not measured" if each.measured is None else f"{words(each.measured)} ({each.ratio:.2f}x)"
        return f"{title} {words(each.predicted.expected)} -> {measured}"

    return " · ".join(
        (
            cell("ttft", "first token"),
            cell("time_per_token", "per token"),
            cell("throughput", "throughput"),
        )
    )


def _data(entry: Entry) -> dict[str, Any]:
    import msgspec

    from agent.planner.compare import shape_words
    from odctl.history import held_figures

    served: dict[str, Any] = msgspec.to_builtins(entry.served)
    held = held_figures(entry) if entry.plan is not None else {}
    return served | {
        "state": entry.state,
        "is_current": entry.state == "current",
        "ended_by": entry.ended_by,
        "layout": shape_words(entry.plan) if entry.plan is not None else "",
        "plan_toml": entry.plan_toml,
        "figures": msgspec.to_builtins(held),
    }
