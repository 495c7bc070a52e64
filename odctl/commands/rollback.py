"""`odctl rollback DEPLOYMENT`: apply a plan out of the history, as `odctl apply` would."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from odctl.result import Result, run_command

if TYPE_CHECKING:
    from odctl.history import Entry


@click.command("rollback")
@click.argument("deployment")
@click.option(
    "--to", "generation", type=click.IntRange(min=1), default=None, help="Generation whose plan to apply."
)
@click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--detach", is_flag=True, help="Return once the controller has it; it goes on by itself.")
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def command(inventory_path: str, /, as_json: bool, **options: Any) -> None:
    """Apply the plan that DEPLOYMENT had before its current one, or that of a generation of `odctl history`.

    It is an apply like any other: previewed, checked against the cluster as it is, under the same locks. A
    deployment that was destroyed comes back with its last plan.
    """
    run_command(lambda: rollback(inventory_path, **options), as_json=as_json)


def rollback(
    inventory_path: str, deployment: str, *, generation: int | None, dry_run: bool, yes: bool, detach: bool
) -> Result:
    """Raises E110 for what no history knows, E105 for a plan that is lost, and what apply raises."""
    import msgspec

    from odctl.apply import preview_apply
    from odctl.commands.apply import apply_previewed
    from odctl.fleet import Fleet
    from odctl.history import plan_before, plan_of_generation, read_history
    from odctl.inventory import Inventory
    from odctl.session import visit_fleet, warn_unreachable

    async def perform(fleet: Fleet, inventory: Inventory) -> Result:
        found = await read_history(fleet)
        warn_unreachable(found.unreachable)
        entries = found.of(deployment)
        entry = (
            plan_before(entries, deployment=deployment)
            if generation is None
            else plan_of_generation(entries, generation, deployment=deployment)
        )
        assert entry.plan is not None, "entries without their plan are refused"
        preview = await preview_apply(fleet, entry.plan, cluster=inventory.cluster)
        told = _told(entry)
        sys.stderr.write(f"{told}\n")
        result = await apply_previewed(
            fleet,
            preview,
            dry_run=dry_run,
            yes=yes,
            detach=detach,
            cause="rollback",
            reason=f"to generation {entry.served.generation}",
            kind="rollback",
        )
        data = result.data | {"to_generation": entry.served.generation, "served_at_s": entry.served.served_at_s}
        return msgspec.structs.replace(result, data=data)

    return visit_fleet(inventory_path, perform)


def _told(entry: Entry) -> str:
    from agent.planner.compare import shape_words
    from agent.planner.words import moment_words

    assert entry.plan is not None
    served = entry.served
    return (
        f"back to generation {served.generation} of {moment_words(served.served_at_s)}: plan "
        f"{served.plan_hash[:12]}, {shape_words(entry.plan)}"
    )
