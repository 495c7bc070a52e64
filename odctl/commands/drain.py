"""`odctl drain HOST`: have every deployment serve without a host, so that it can be taken away."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from odctl.result import Result, run_command

if TYPE_CHECKING:
    from agent.wire.agent import ApplyEvent


@click.command("drain")
@click.argument("host")
@click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def command(inventory_path: str, host: str, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Plan every deployment on HOST anew without it, and apply those plans.

    All of them are made before the first is applied: where one does not fit on the other hosts, nothing changes.
    """
    run_command(lambda: drain(inventory_path, host, dry_run=dry_run, yes=yes), as_json=as_json)


def drain(inventory_path: str, host: str, *, dry_run: bool, yes: bool) -> Result:
    """Raises E108 for an unknown host, E210 for a silent controller, E5xx when locked, E6xx without room."""
    from odctl.draining import perform_drain, plan_drain
    from odctl.fleet import Fleet
    from odctl.inventory import Inventory
    from odctl.session import confirm, visit_fleet

    async def perform(fleet: Fleet, inventory: Inventory) -> Result:
        found = await plan_drain(fleet, host, cluster=inventory.cluster)
        names = [preview.plan.name for preview in found.previews]
        data = {
            "host": host,
            "deployments": [
                {"name": preview.plan.name, "plan_hash": preview.plan_hash, "changes": list(preview.lines)}
                for preview in found.previews
            ],
        }
        if not names:
            return Result(kind="drain", data=data | {"state": "unchanged"}, prose=f"nothing is served from {host}")
        shown = "\n".join(found.lines)
        if dry_run:
            return Result(
                kind="drain", data=data | {"state": "dry_run"}, prose=f"{shown}\ndry run: nothing changed"
            )
        sys.stderr.write(shown + "\n")
        confirm(f"move {', '.join(names)} away from {host}?", is_sure=yes)

        async def on_event(name: str, event: ApplyEvent) -> None:
            if event.state in ("started", "failed"):
                sys.stderr.write(f"{name}: {event.phase} {event.message}".rstrip() + "\n")

        moved = await perform_drain(fleet, found, cluster=inventory.cluster, on_event=on_event)
        prose = f"{', '.join(moved)} served without {host}: nothing is served from it any more"
        return Result(kind="drain", data=data | {"state": "drained"}, prose=prose)

    return visit_fleet(inventory_path, perform)
