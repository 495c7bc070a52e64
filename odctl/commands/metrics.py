"""`odctl metrics`: what deployments and hosts do, for terminals and scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from odctl.commands.options import ViewOptions, view_options
from odctl.result import Result, run_command

if TYPE_CHECKING:
    from odctl.fleet import FleetSnapshot
    from odctl.inventory import Inventory


@click.command("metrics")
@click.argument("what", metavar="[DEPLOYMENT|SELECTOR]", default="")
@view_options
@click.pass_obj
def command(inventory_path: str, what: str, view: ViewOptions) -> None:
    """Show rates: tokens per second, times to tokens, queue and KV cache of deployments; load and traffic of hosts.

    With a DEPLOYMENT: it, and the hosts that serve it. With a SELECTOR: those hosts. --filter and --sort are of the
    hosts.
    """
    run_command(lambda: metrics(inventory_path, what, view), as_json=view.as_json)


def metrics(inventory_path: str, what: str, view: ViewOptions) -> Result:
    """Raises FleetError E108 for a word that is neither a deployment nor a selector, E109 for an option that means
    nothing.
    """
    from odctl.commands.fleet_tables import fleet_head, following_of, rows_in_order, table_prose
    from odctl.tui.model.metric_rows import deployment_metrics, host_metrics
    from odctl.viewing import exit_code_for, view_fleet

    def show(inventory: Inventory, snapshot: FleetSnapshot, width: int | None) -> Result:
        shown = _chosen(inventory, snapshot, what)
        deployments, hosts = deployment_metrics(shown), host_metrics(shown)
        order = rows_in_order(hosts, filter_text=view.filter_text, sort=view.sort)
        every_deployment = range(len(deployments.keys))
        parts = [fleet_head(shown, width)]
        if deployments.keys or not what:
            parts.append(table_prose(deployments, every_deployment, width=width, empty="nothing is deployed"))
        parts.append(table_prose(hosts, order, width=width, empty="no host"))
        return Result(
            kind="metrics",
            data={
                "cluster": shown.cluster,
                "taken_at_s": shown.taken_at_s,
                "deployments": list(deployments.records),
                "hosts": [hosts.records[row] for row in order],
            },
            prose="\n\n".join(parts),
            exit_code=exit_code_for(shown),
        )

    return view_fleet(inventory_path, show, following=following_of(view), is_wide=view.is_wide)


def _chosen(inventory: Inventory, snapshot: FleetSnapshot, what: str) -> FleetSnapshot:
    """The snapshot of one deployment with the hosts that serve it, or of the selected hosts alone."""
    import msgspec

    from agent.errors import FleetError
    from odctl.inventory import NO_SUCH_HOST, select

    if not what:
        return snapshot
    found = snapshot.deployment(what)
    if found is not None:
        names = {member.host for member in found.record.members} | {found.record.controller}
    else:
        try:
            names = {host.name for host in select(inventory, what)}
        except FleetError as error:
            known = ", ".join(each.name for each in snapshot.deployments) or "none"
            raise FleetError(
                NO_SUCH_HOST, f"no deployment `{what}`, and {error.message}", hint=f"deployments: {known}"
            ) from error
    hosts = tuple(host for host in snapshot.hosts if host.name in names)
    return msgspec.structs.replace(snapshot, hosts=hosts, deployments=(found,) if found is not None else ())
