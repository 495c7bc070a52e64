"""`odctl hosts`: the fleet view's table, for terminals and scripts."""

from __future__ import annotations

import click

from odctl.commands.options import ViewOptions, view_options
from odctl.result import Result, run_command


@click.command("hosts")
@click.argument("selector", default="all")
@view_options
@click.pass_obj
def command(inventory_path: str, selector: str, view: ViewOptions) -> None:
    """Show hosts (all, a name, a glob, group:NAME or label=value): state, load, memory, devices, network."""
    run_command(lambda: hosts(inventory_path, selector, view), as_json=view.as_json)


def hosts(inventory_path: str, selector: str, view: ViewOptions) -> Result:
    """Raises FleetError E108 for a selector that matches nothing, E109 for an option that means nothing."""
    from odctl.commands.fleet_tables import show_table
    from odctl.tui.model.host_rows import HostRows
    from odctl.tui.model.records import host_records

    return show_table(inventory_path, selector, view, kind="hosts", rows_of=HostRows, records_of=host_records)
