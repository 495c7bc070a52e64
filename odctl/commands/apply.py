"""`odctl apply plan.toml`: make the cluster match a plan."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odctl.result import Result, run_command

if TYPE_CHECKING:
    import asyncio

    from agent.planner.interval import Interval
    from agent.wire.agent import ApplyEvent, ApplyPhase
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
    from odctl.session import confirm, visit_fleet

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
            return Result(kind="apply", data=data | {"state": "unchanged"}, prose=prose)
        if dry_run:
            return Result(
                kind="apply", data=data | {"state": "dry_run"}, prose=f"{shown}\ndry run: nothing changed"
            )
        sys.stderr.write(shown + "\n")
        confirm(f"apply to {len(plan.hosts)} hosts?", is_sure=yes)
        last = await _apply_interruptibly(fleet, preview, detach=detach, stop_after=phase)
        if last is None:
            prose = f"{plan.name}: the controller {plan.controllers[0]} goes on; odctl status shows how far it is"
            return Result(kind="apply", data=data | {"state": "detached"}, prose=prose)
        data |= {"state": "applied", "generation": last.generation, "checked": msgspec.to_builtins(last.checked)}
        return Result(kind="apply", data=data, prose=_summary(plan.name, last, plan.predicted.time_per_token))

    return visit_fleet(inventory_path, perform)


async def _apply_interruptibly(
    fleet: Fleet, preview: ApplyPreview, *, detach: bool, stop_after: ApplyPhase | None
) -> ApplyEvent | None:
    """Follow the apply to its end. Ctrl-C once: roll back; twice: let go. None when detached."""
    import asyncio
    import signal

    from agent.errors import FleetError
    from odctl.apply import abort_apply, apply_plan, operator_name

    holder = operator_name()
    show = ProgressLines()
    presses: asyncio.Queue[None] = asyncio.Queue()
    is_handed_over = asyncio.Event()
    was_aborted = False

    async def on_event(event: ApplyEvent) -> None:
        show(event)
        if event.phase not in ("prepare", "roll_back") and event.state != "failed":
            is_handed_over.set()

    async def follow() -> ApplyEvent | FleetError:
        try:
            return await apply_plan(fleet, preview, on_event=on_event, holder=holder, stop_after=stop_after)
        except FleetError as error:
            return error

    async with asyncio.TaskGroup() as group:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, presses.put_nowait, None)
        following = group.create_task(follow())
        waiting = {following, group.create_task(presses.get())}
        if detach:
            waiting.add(group.create_task(_wait(is_handed_over)))
        while not following.done():
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if following.done() or (detach and is_handed_over.is_set()) or was_aborted:
                break
            was_aborted = True
            sys.stderr.write("interrupted: asking the controller to roll back (again: let go)\n")
            sys.stderr.write(await abort_apply(fleet, preview.plan, holder=holder) + "\n")
            waiting = {following, group.create_task(presses.get())}
        for task in waiting:
            task.cancel()
        loop.remove_signal_handler(signal.SIGINT)
    if following.cancelled():
        if detach and not was_aborted:
            return None
        raise FleetError(
            "E901", "let go: the controller goes on by itself", hint="odctl status shows where it stands"
        )
    outcome = following.result()
    if isinstance(outcome, FleetError):
        if was_aborted:
            raise KeyboardInterrupt
        raise outcome
    return outcome


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


class ProgressLines:
    """Phases and hosts on stderr, a line per change, with seconds since the start."""

    def __init__(self) -> None:
        self._started_at = time.monotonic()

    def __call__(self, event: ApplyEvent) -> None:
        at = time.monotonic() - self._started_at
        host = f" {event.host}" if event.host else ""
        message = f": {event.message}" if event.message else ""
        if event.state in {"progress", "failed"} or event.phase == "roll_back":
            amount = f" {event.done}/{event.total}" if event.total and event.done != event.total else ""
            sys.stderr.write(f"{at:6.1f}s  {event.phase:<9}{host} {event.state}{amount}{message}\n")
        elif event.state == "started":
            sys.stderr.write(f"{at:6.1f}s  {event.phase}\n")
        sys.stderr.flush()


def _summary(name: str, last: ApplyEvent, predicted: Interval) -> str:
    from agent.planner.words import seconds_interval_words, seconds_words

    measured = ""
    if last.checked is not None:
        measured = (
            f"\ntime per token: predicted {seconds_interval_words(predicted)}, "
            f"measured {seconds_words(last.checked.time_per_token_s)}"
        )
    return f"{name} serves under generation {last.generation}{measured}"
