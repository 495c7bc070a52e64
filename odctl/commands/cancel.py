"""`odctl cancel DEPLOYMENT REQUEST`: end one request in flight."""

from __future__ import annotations

import click

from odctl.result import Result, run_command


@click.command("cancel")
@click.argument("name")
@click.argument("request_id", metavar="REQUEST")
@click.option("--yes", "is_sure", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def command(inventory_path: str, name: str, request_id: str, is_sure: bool, as_json: bool) -> None:
    """Cancel REQUEST of deployment NAME; an unambiguous beginning of its id is enough.

    Its client gets an error that says so; the slot and the KV cache that it held are free at once.
    """
    run_command(lambda: cancel(inventory_path, name, request_id, is_sure=is_sure), as_json=as_json)


def cancel(inventory_path: str, name: str, request_id: str, *, is_sure: bool) -> Result:
    """Raises E125 for a request that is not in flight, E111 or E112 without a yes, else as `odctl requests`."""
    import msgspec

    from odctl.deployments import read_deployments
    from odctl.fleet import Fleet
    from odctl.fleet.operator import operator_name
    from odctl.inventory import Inventory
    from odctl.requests import cancel_request
    from odctl.session import confirm, visit_fleet

    confirm(f"cancel request {request_id} of {name}?", is_sure=is_sure)

    async def end(fleet: Fleet, _inventory: Inventory) -> Result:
        status = (await read_deployments(fleet)).one(name).reachable_status()
        ended = await cancel_request(fleet, status.controller, status.name, request_id, by=operator_name())
        prose = (
            f"cancelled {ended.request_id} of {ended.client}: it was {ended.state}, with "
            f"{ended.generated_tokens} tokens of its answer"
        )
        return Result(kind="cancel", data=msgspec.to_builtins(ended), prose=prose)

    return visit_fleet(inventory_path, end)
