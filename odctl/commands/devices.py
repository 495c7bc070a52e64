"""`odctl devices`: a row for every GPU and CPU, for terminals and scripts."""

from __future__ import annotations

import click

from odctl.commands.options import ViewOptions, view_options
from odctl.result import Result, run_command


@click.command("devices")
@click.argument("selector", default="all")
@view_options
@click.pass_obj
def command(inventory_path: str, selector: str, view: ViewOptions) -> None:
    """Show the GPUs and CPUs of hosts (all, a name, a glob, group:NAME or label=value) and what each reports."""
    run_command(lambda: devices(inventory_path, selector, view), as_json=view.as_json)


def devices(inventory_path: str, selector: str, view: ViewOptions) -> Result:
    """Raises FleetError E108 for a selector that matches nothing, E109 for an option that means nothing."""
    from odctl.commands.fleet_tables import show_table
    from odctl.tui.model.device_rows import DeviceRows
    from odctl.tui.model.records import device_records

    return show_table(inventory_path, selector, view, kind="devices", rows_of=DeviceRows, records_of=device_records)
