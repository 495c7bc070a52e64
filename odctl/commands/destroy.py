"""`odctl destroy NAME`: stop a deployment on all its hosts."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from odctl.result import Result, run_command

if TYPE_CHECKING:
    from agent.wire.agent import ApplyEvent


@click.command("destroy")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask for the name to be typed.")
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def command(inventory_path: str, name: str, yes: bool, as_json: bool) -> None:
    """Stop deployment NAME on all its hosts and free their memory. Requests under way end with an error."""
    run_command(lambda: destroy_deployment(inventory_path, name, yes=yes), as_json=as_json)


def destroy_deployment(inventory_path: str, name: str, *, yes: bool) -> Result:
    """Raises E110 for an unknown name, E301 when a host could not be reached."""
    from odctl.apply import destroy
    from odctl.deployments import read_deployments
    from odctl.fleet import Fleet
    from odctl.inventory import Inventory
    from odctl.session import confirm, visit_fleet

    async def perform(fleet: Fleet, _inventory: Inventory) -> Result:
        found = await read_deployments(fleet)
        record = found.one(name).record
        confirm(f"destroy {record.name} on {len(record.members)} hosts?", is_sure=yes)

        async def on_event(event: ApplyEvent) -> None:
            if event.host:
                sys.stderr.write(f"{event.host}: {event.message}\n")

        last = await destroy(fleet, found, name, on_event=on_event)
        data = {"deployment": record.name, "generation": last.generation, "state": "destroyed"}
        return Result(kind="destroy", data=data, prose=f"{record.name} is destroyed")

    return visit_fleet(inventory_path, perform)
