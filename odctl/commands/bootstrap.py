"""`odctl bootstrap`: install or update the agent on hosts. Running it twice changes nothing."""

from __future__ import annotations

import asyncio

import click

from odctl.result import Result, run_command


@click.command("bootstrap")
@click.argument("selector", default="all")
@click.option("--accept-new", is_flag=True, help="Trust hosts whose key is not known yet, and remember it.")
@click.option("--json", "as_json", is_flag=True, help="Print outcomes as JSON.")
@click.pass_obj
def command(inventory_path: str, selector: str, accept_new: bool, as_json: bool) -> None:
    """Install or update the agent on hosts (all, a name, a glob, group:NAME or label=value).

    Needs no root there. A host whose new agent does not answer gets its old one back; the others go on.
    """
    run_command(lambda: bootstrap(inventory_path, selector, accept_new=accept_new), as_json=as_json)


def bootstrap(inventory_path: str, selector: str, *, accept_new: bool = False) -> Result:
    """Bootstrap the selected hosts. Raises FleetError E1xx for a bad inventory or selector."""
    from odctl.bootstrap.bundle import make_bundle
    from odctl.bootstrap.report import outcome_result, show_progress
    from odctl.bootstrap.run import bootstrap_hosts
    from odctl.inventory import load_inventory, select
    from odctl.pki import open_authority
    from odctl.ssh.connect import transport_for

    inventory = load_inventory(inventory_path)
    chosen = select(inventory, selector)
    authority = open_authority(inventory.cluster)
    with show_progress(len(chosen)) as on_progress:
        outcomes = asyncio.run(
            bootstrap_hosts(
                inventory,
                chosen,
                bundle=make_bundle(),
                authority=authority,
                transport_of=lambda name: transport_for(inventory, name, accept_new=accept_new),
                on_progress=on_progress,
            )
        )
    return outcome_result("bootstrap", outcomes, done_word="updated")
