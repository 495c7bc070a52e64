"""`odctl uninstall`: remove the agent and everything of ours from hosts."""

from __future__ import annotations

import asyncio
import sys

import click

from agent.errors import FleetError
from odctl.result import Result, run_command


@click.command("uninstall")
@click.argument("selector", default="all")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print outcomes as JSON.")
@click.pass_obj
def command(inventory_path: str, selector: str, yes: bool, as_json: bool) -> None:
    """Stop ranks, gateways and agents, and remove every file of ours, models that we fetched included.

    Succeeds only where nothing is left.
    """
    run_command(lambda: uninstall(inventory_path, selector, yes=yes), as_json=as_json)


def uninstall(inventory_path: str, selector: str, *, yes: bool = False) -> Result:
    """Uninstall from the selected hosts. Raises FleetError E1xx, also where nobody can be asked."""
    from odctl.bootstrap.report import outcome_result, show_progress
    from odctl.bootstrap.uninstall import uninstall_hosts
    from odctl.inventory import load_inventory, select
    from odctl.ssh.connect import transport_for

    inventory = load_inventory(inventory_path)
    chosen = select(inventory, selector)
    if not yes:
        _ask([host.name for host in chosen])
    with show_progress(len(chosen)) as on_progress:
        outcomes = asyncio.run(
            uninstall_hosts(
                chosen,
                transport_of=lambda name: transport_for(inventory, name),
                on_progress=on_progress,
            )
        )
    return outcome_result("uninstall", outcomes, done_word="removed")


def _ask(names: list[str]) -> None:
    if not sys.stdin.isatty():
        raise FleetError("E109", "uninstall asks first, and there is no terminal to ask on", hint="pass --yes")
    question = f"Remove the agent, its models and its journal from {len(names)} hosts ({', '.join(names)})?"
    if not click.confirm(question, err=True):
        raise FleetError("E109", "not confirmed; nothing was changed")
