"""`odctl apply plan.toml`: make the cluster match a plan."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odctl.result import Result, run_command

if TYPE_CHECKING:
    from agent.planner.interval import Interval
    from agent.wire.agent import ApplyEvent, ApplyPhase
    from agent.wire.history import Cause
    from odctl.apply import ApplyPreview
    from odctl.fleet import Fleet


@click.command("apply")
@click.argument("plan_path", metavar="PLAN")
@click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--detach", is_flag=True, help="Return once the controller has it; it goes on by itself.")
@click.option("--stop-after", default=None, hidden=True, help="For tests: hold after this phase until aborted.")
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def command(inventory_path: str, /, plan_path: str, as_json: bool, **options: Any) -> None:
    """Make the cluster match PLAN, as one transaction: all of it serves, or the old deployment still does.

    The first Ctrl-C rolls back unless the switch is done; the second lets go of the connection, and the
    controller finishes by itself.
    """
    run_command(lambda: apply(inventory_path, plan_path, **options), as_json=as_json)


def apply(
    inventory_path: str, plan_path: str, *, dry_run: bool, yes: bool, detach: bool, stop_after: str | None = None
) -> Result:
    """Raises E401 and E402 for a stale plan, E501 when locked, E6xx when it does not fit, E2xx out of reach."""
    import msgspec

    from agent.errors import FleetError
    from agent.planner.file import plan_from_toml
    from agent.wire.agent import ApplyPhase
    from odctl.apply import preview_apply
    from odctl.inventory import Inventory
    from odctl.session import visit_fleet

    try:
        text = Path(plan_path).read_text()
    except OSError as error:
        raise FleetError(
            "E101", f"{plan_path}: {error.strerror}", hint="odctl plan MODEL -o plan.toml writes one"
        ) from error
    plan = plan_from_toml(text, file=plan_path)
    phase = msgspec.convert(stop_after, ApplyPhase) if stop_after else None

    async def perform(fleet: Fleet, inventory: Inventory) -> Result:
        preview = await preview_apply(fleet, plan, cluster=inventory.cluster)
        return await apply_previewed(fleet, preview, dry_run=dry_run, yes=yes, detach=detach, stop_after=phase)

    return visit_fleet(inventory_path, perform)


async def apply_previewed(
    fleet: Fleet,
    preview: ApplyPreview,
    *,
    dry_run: bool,
    yes: bool,
    detach: bool,
    stop_after: ApplyPhase | None = None,
    cause: Cause = "apply",
    reason: str = "",
    kind: str = "apply",
) -> Result:
    """Show what would change, ask, apply, and say how it went: all but where the plan is from."""
    import msgspec

    from odctl.following import apply_interruptibly, ctrl_c
    from odctl.session import confirm

    plan = preview.plan
    data = {
        "deployment": plan.name,
        "plan_hash": preview.plan_hash,
        "running_hash": preview.running_hash,
        "generation": preview.running_generation,
        "changes": list(preview.lines),
    }
    shown = "\n".join([f"deployment {plan.name}:", *preview.lines])
    if preview.is_noop:
        prose = f"{shown}\nno changes: generation {preview.running_generation} serves this plan"
        return Result(kind=kind, data=data | {"state": "unchanged"}, prose=prose)
    if dry_run:
        return Result(kind=kind, data=data | {"state": "dry_run"}, prose=f"{shown}\ndry run: nothing changed")
    sys.stderr.write(shown + "\n")
    confirm(f"apply to {len(plan.hosts)} hosts?", is_sure=yes)
    with ctrl_c() as presses:
        last = await apply_interruptibly(
            fleet, preview, presses=presses, detach=detach, stop_after=stop_after, cause=cause, reason=reason
        )
    if last is None:
        prose = f"{plan.name}: the controller {plan.controllers[0]} goes on; odctl status shows how far it is"
        return Result(kind=kind, data=data | {"state": "detached"}, prose=prose)
    data |= {"state": "applied", "generation": last.generation, "checked": msgspec.to_builtins(last.checked)}
    return Result(kind=kind, data=data, prose=_summary(plan.name, last, plan.predicted.time_per_token))


def _summary(name: str, last: ApplyEvent, predicted: Interval) -> str:
    from agent.planner.words import seconds_interval_words, seconds_words

    measured = ""
    if last.checked is not None:
        measured = (
            f"\ntime per token: predicted {seconds_interval_words(predicted)}, "
            f"measured {seconds_words(last.checked.time_per_token_s)}"
        )
    return f"{name} serves under generation {last.generation}{measured}"
