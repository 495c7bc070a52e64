"""`odctl faults`: what went wrong, when, who saw it, with its evidence."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from odctl.result import ExitCode, Result, run_command

if TYPE_CHECKING:
    from agent.facts.fault import Fault


@click.command("faults")
@click.option("--open", "only_open", is_flag=True, help="Only those that are not healed.")
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def command(inventory_path: str, only_open: bool, as_json: bool) -> None:
    """List faults that agents observed, open ones first, with their evidence."""
    run_command(lambda: faults(inventory_path, only_open=only_open), as_json=as_json)


def faults(inventory_path: str, *, only_open: bool) -> Result:
    import msgspec

    from agent.errors import FleetError
    from agent.wire.agent import FaultReport
    from odctl.fleet import Fleet
    from odctl.inventory import Inventory
    from odctl.session import visit_fleet, warn_unreachable

    async def look(fleet: Fleet, _inventory: Inventory) -> Result:
        answers = await fleet.get_all("/v1/faults", FaultReport)
        missing = {host: answer for host, answer in answers.items() if isinstance(answer, FleetError)}
        warn_unreachable(missing)
        found = [
            fault
            for answer in answers.values()
            if not isinstance(answer, FleetError)
            for fault in answer.faults
            if not only_open or fault.healed_at_s is None
        ]
        found.sort(key=lambda fault: (fault.healed_at_s is not None, -fault.observed_at_s, fault.fault_id))
        lines = [line for fault in found for line in _lines(fault)] or ["no faults"]
        return Result(
            kind="faults",
            data={"faults": msgspec.to_builtins(found)},
            prose="\n".join(lines),
            exit_code=ExitCode.UNREACHABLE if missing else ExitCode.OK,
        )

    return visit_fleet(inventory_path, look)


def _lines(fault: Fault) -> list[str]:
    glyph = "✓" if fault.healed_at_s is not None else "▲" if fault.severity == "warning" else "✗"
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(fault.observed_at_s))
    healed = (
        f", healed after {fault.healed_at_s - fault.observed_at_s:.1f} s" if fault.healed_at_s is not None else ""
    )
    evidence = ", ".join(f"{key} {value}" for key, value in fault.evidence.items())
    where = f"{fault.deployment} generation {fault.generation}" if fault.deployment else fault.host
    lines = [f"{glyph} {when}  {fault.kind:<12} {where}: {fault.message}{healed}"]
    lines.append(f"    seen by {fault.observed_by}; {evidence}")
    if fault.way_out and fault.healed_at_s is None:
        lines.append(f"    way out: {fault.way_out}")
    return lines
