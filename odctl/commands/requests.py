"""`odctl requests DEPLOYMENT`: what is in flight at its gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from odctl.result import Result, run_command

if TYPE_CHECKING:
    from agent.wire.gateway import RequestReport, RequestView

GLYPHS = {"running": "●", "queued": "○", "waiting": "↻"}


@click.command("requests")
@click.argument("name", default="")
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def command(inventory_path: str, name: str, as_json: bool) -> None:
    """List the requests in flight of deployment NAME: who asks, how far each is, how fast.

    Those that run come first, then those that wait, in the order of their turn. `odctl cancel` ends one.
    """
    run_command(lambda: requests(inventory_path, name), as_json=as_json)


def requests(inventory_path: str, name: str) -> Result:
    """Raises E110 for a name that is not deployed, E210 or E2xx without its controller, E808 without a gateway."""
    import msgspec

    from odctl.deployments import read_deployments
    from odctl.fleet import Fleet
    from odctl.inventory import Inventory
    from odctl.requests import read_requests
    from odctl.session import visit_fleet

    async def look(fleet: Fleet, _inventory: Inventory) -> Result:
        status = (await read_deployments(fleet)).one(name).reachable_status()
        report = await read_requests(fleet, status.controller, status.name)
        return Result(kind="requests", data=msgspec.to_builtins(report), prose=requests_text(report))

    return visit_fleet(inventory_path, look)


def requests_text(report: RequestReport) -> str:
    """A line for each, and how many there are."""
    if not report.requests:
        return f"{report.deployment}: no request is in flight"
    head = (
        f"  {'id':<30} {'state':<8} {'client':<20} {'replica':>7} {'prompt':>13} {'answer':>11} {'age':>8} "
        f"{'first':>9} {'tok/s':>6}"
    )
    return "\n".join([head, *(_line(view) for view in report.requests), _counts(report)])


def _line(view: RequestView) -> str:
    prompt = f"{min(view.computed_tokens, view.prompt_tokens)}/{view.prompt_tokens}"
    limit = "" if view.max_tokens is None else f"/{view.max_tokens}"
    answer = "embedding" if view.embeds else f"{view.generated_tokens}{limit}"
    replica = "-" if view.replica is None else str(view.replica)
    first = "-" if view.ttft_s is None else f"{view.ttft_s * 1e3:.0f} ms"
    speed = "-" if view.tokens_per_s is None else f"{view.tokens_per_s:.1f}"
    return (
        f"{GLYPHS[view.state]} {view.request_id:<30} {view.state:<8} {view.client:<20} {replica:>7} {prompt:>13} "
        f"{answer:>11} {view.age_s:>6.1f} s {first:>9} {speed:>6}"
    )


def _counts(report: RequestReport) -> str:
    states = [view.state for view in report.requests]
    parts = [f"{states.count(state)} {state}" for state in ("running", "queued", "waiting") if state in states]
    return f"{report.deployment}: {', '.join(parts)}"
