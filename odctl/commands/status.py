"""`odctl status`: deployments, ranks, hosts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from odctl.result import ExitCode, Result, run_command

if TYPE_CHECKING:
    from odctl.deployments import DeploymentSight


@click.command("status")
@click.argument("name", default="")
@click.option("--watch", is_flag=True, help="Show it again and again until Ctrl-C.")
@click.option("--every", metavar="TIME", default="2s", show_default=True, help="With --watch: how often.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON; with --watch, an object a line.")
@click.pass_obj
def command(inventory_path: str, name: str, watch: bool, every: str, as_json: bool) -> None:
    """Show deployments (or the one NAMEd): state, ranks, speed, predicted beside measured."""
    run_command(
        lambda: status(inventory_path, name, every=every if watch else "", as_json=as_json), as_json=as_json
    )


def status(inventory_path: str, name: str, *, every: str = "", as_json: bool = False) -> Result:
    """With `every`, again and again. Raises E110 for a NAME that is not deployed, E109 for no span of time."""
    import asyncio
    from collections.abc import AsyncGenerator

    import msgspec

    from agent.errors import FleetError
    from agent.facts.cluster import HostFacts
    from agent.planner.words import bytes_words
    from odctl.commands.options import seconds_of
    from odctl.deployments import read_deployments
    from odctl.fleet import Fleet
    from odctl.inventory import Inventory
    from odctl.session import visit_fleet
    from odctl.viewing import Following, follow

    every_s = seconds_of("--every", every) if every else 0.0

    async def look(fleet: Fleet, inventory: Inventory) -> Result:
        facts = await fleet.get_all("/v1/facts", HostFacts)
        found = await read_deployments(fleet)
        if name:
            found = msgspec.structs.replace(found, deployments=(found.one(name),))
        lines = []
        for sight in found.deployments:
            lines += _deployment_lines(sight)
        for record in found.pending:
            lines.append(f"↻ {record.name}  first apply under way, by {record.lock_holder}")
        if not found.deployments and not found.pending:
            lines.append("nothing is deployed")
        lines.append("")
        hosts = {}
        for host in sorted(facts):
            answer = facts[host]
            if isinstance(answer, FleetError):
                lines.append(f"✗ {host:<16} unreachable: {answer.message}")
                hosts[host] = {"state": "unreachable", "reason": answer.message}
            else:
                devices = ", ".join(
                    f"{device.id} {bytes_words(device.usable_bytes)} usable" for device in answer.devices
                )
                lines.append(f"● {host:<16} {answer.cluster_address}  {devices}")
                hosts[host] = {"state": "up", "facts": msgspec.to_builtins(answer)}
        data = {
            "cluster": inventory.cluster,
            "deployments": [
                {
                    "name": sight.record.name,
                    "generation": sight.record.generation,
                    "plan_hash": sight.record.plan_hash,
                    "controller": sight.record.controller,
                    "trouble": sight.trouble,
                    "status": msgspec.to_builtins(sight.status) if sight.status else None,
                }
                for sight in found.deployments
            ],
            "pending": msgspec.to_builtins(found.pending),
            "hosts": hosts,
        }
        code = ExitCode.OK if not found.unreachable else ExitCode.UNREACHABLE
        return Result(kind="status", data=data, prose="\n".join(lines), exit_code=code)

    async def look_on(fleet: Fleet, inventory: Inventory) -> Result:
        async def results() -> AsyncGenerator[Result, None]:
            while True:
                yield await look(fleet, inventory)
                await asyncio.sleep(every_s)

        return await follow(results(), Following(every_s=every_s, as_json=as_json))

    return visit_fleet(inventory_path, look_on if every else look)


def _deployment_lines(sight: DeploymentSight) -> list[str]:
    from agent.planner.words import bytes_words, seconds_interval_words

    record, status = sight.record, sight.status
    if status is None:
        return [f"✗ {record.name}  generation {record.generation}  {sight.trouble}"]
    glyph = {"serving": "●", "healing": "↻", "degraded": "✗"}.get(status.state, "○")
    lines = [
        f"{glyph} {status.name}  {status.state}  generation {status.generation}  "
        f"plan {status.plan_hash[:12]}  controller {status.controller}",
        f"  http://{status.listen} on {status.gateway_host}",
    ]
    if status.reason:
        lines.append(f"  {status.reason}")
    if status.way_out:
        lines.append(f"  way out: {status.way_out}")
    if status.apply_phase:
        lines.append(f"  an apply is under way: {status.apply_phase}")
    for rank in status.ranks:
        held = f"{bytes_words(rank.status.weight_bytes)} weights" if rank.status else "no answer"
        state = rank.status.state if rank.status else "?"
        trouble = f"  {rank.trouble}" if rank.trouble else ""
        again = f"  restarts {rank.restarts}" if rank.restarts else ""
        lines.append(f"  {rank.rank_id:<8} {rank.host}/{rank.device:<8} {state:<8} {held}{again}{trouble}")
    measured = ""
    if status.backend is not None and status.backend.time_per_token_s_p50 > 0:
        measured = f", last requests p50 {status.backend.time_per_token_s_p50 * 1000:.2f} ms"
    checked = f", at apply {status.checked.time_per_token_s * 1000:.2f} ms" if status.checked else ""
    lines.append(
        f"  time per token: predicted {seconds_interval_words(status.predicted.time_per_token)}{checked}{measured}"
    )
    if status.backend is not None:
        backend = status.backend
        lines.append(
            f"  requests: {backend.running} running, {backend.queued} queued, {backend.finished} finished, "
            f"{backend.failed} failed; {backend.tokens_per_s:.1f} tok/s"
        )
    return lines
