"""`odctl show plan.toml`: a plan as people read it. Reads the file and nothing else."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.errors import FleetError
from agent.planner.explain import Section
from agent.planner.file import is_edited, plan_from_toml, plan_hash
from agent.planner.layout_text import plan_text, section_lines
from agent.planner.plan import Plan
from odctl.result import Result, run_command

if TYPE_CHECKING:
    from odctl.inventory import Inventory

FALLBACK_SIZE = (100, 24)


@click.command("show")
@click.argument("plan_path", metavar="PLAN", type=click.Path(dir_okay=False))
@click.option("--width", type=click.IntRange(min=40), help="Columns to draw in. [default: the terminal's]")
@click.option(
    "--explain",
    is_flag=True,
    help="Also say at length what bounds it and what would help, on the cluster as it is: asks the hosts.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def command(inventory_path: str, plan_path: str, width: int | None, explain: bool, as_json: bool) -> None:
    """Show a plan: who holds which layers, how full memory gets, what is expected, and why."""
    columns = width or shutil.get_terminal_size(FALLBACK_SIZE).columns
    asked = inventory_path if explain else None
    run_command(lambda: show_plan(Path(plan_path), width=columns, explained_by=asked), as_json=as_json)


def show_plan(path: Path, *, width: int, explained_by: str | None = None) -> Result:
    """The plan in a file, drawn; explained on the cluster of the inventory at `explained_by`.

    Raises FleetError E101 to E107 for a file that is not one; to explain it also E2xx when no host answers,
    E7xx for a model that is not there any more, and E106 for a device that is not.
    """
    text = read_plan_text(path)
    plan = plan_from_toml(text, file=str(path))
    edited = is_edited(text, plan)
    footer = f"plan {plan_hash(plan)[:12]}" + (", edited by hand since it was written" if edited else "")
    data: dict[str, Any] = {"file": str(path), "hash": plan_hash(plan), "is_edited": edited, "plan": plan}
    prose = f"{plan_text(plan, width=width)}\n\n{footer}"
    if explained_by is not None:
        sections = _explain(plan, explained_by)
        data["explanation"] = sections
        prose += "\n\n" + "\n".join(section_lines(sections, width=width))
    return Result(kind="plan", data=data, prose=prose)


def _explain(plan: Plan, inventory_path: str) -> tuple[Section, ...]:
    from agent.facts.cluster import ClusterFacts
    from agent.facts.model import ModelSpec
    from agent.planner.make import explain_made, request_of
    from odctl.apply import add_runs, read_facts
    from odctl.fleet import Fleet
    from odctl.model_source import check_model
    from odctl.session import visit_fleet, warn_unreachable

    absent: dict[str, str] = {}

    def chosen_hosts(inventory: Inventory) -> list[str]:
        absent.update(hosts_left_out(plan, inventory))
        return [host.name for host in inventory.hosts if host.name not in absent]

    async def look(fleet: Fleet, inventory: Inventory) -> tuple[ClusterFacts, ModelSpec, ModelSpec | None]:
        facts, missing = await read_facts(fleet, inventory.cluster)
        warn_unreachable(missing)
        absent.update(dict.fromkeys(missing, "did not answer"))
        if not facts.hosts:
            raise next(iter(missing.values()), FleetError("E105", "the inventory has no host"))
        draft = (await check_model(fleet, plan.draft)).spec if plan.draft is not None else None
        return await add_runs(fleet, facts), (await check_model(fleet, plan.model)).spec, draft

    facts, spec, draft = visit_fleet(inventory_path, look, hosts=chosen_hosts)
    return explain_made(plan, request_of(plan, spec, facts, draft=draft), now_s=time.time(), absent=absent)


def hosts_left_out(plan: Plan, inventory: Inventory) -> dict[str, str]:
    """Why hosts were not to be planned with, by name; those that the plan needs all the same are not among them.

    A selector that means nothing any more leaves out nobody, with a warning on stderr.
    """
    from odctl.inventory import select

    asked = plan.asked
    if asked is None:
        return {}
    known = [host.name for host in inventory.hosts]
    selected = set(known)
    try:
        selected = {host.name for host in select(inventory, asked.hosts or "all")}
    except FleetError as error:
        sys.stderr.write(f"warning: the plan was asked for --hosts {asked.hosts}: {error.message}\n")
    models = [plan.model] if plan.draft is None else [plan.model, plan.draft]
    needed = {*plan.hosts, *(model.source_host for model in models)}
    return {
        name: "excluded" if name in asked.excluded else f"not selected by --hosts {asked.hosts}"
        for name in known
        if name not in needed and (name in asked.excluded or name not in selected)
    }


def load_plan(path: Path) -> Plan:
    """The plan in a file. Raises FleetError E101 to E107."""
    return plan_from_toml(read_plan_text(path), file=str(path))


def read_plan_text(path: Path) -> str:
    """A plan file's text. Raises FleetError E101 when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        reason = error.strerror or str(error)
        raise FleetError(
            "E101", f"{path}: {reason}", hint="make one with `odctl plan MODEL -o plan.toml`"
        ) from error
    except UnicodeDecodeError as error:
        raise FleetError("E101", f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
