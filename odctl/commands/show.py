"""`odctl show plan.toml`: a plan as people read it. Reads the file and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from agent.errors import FleetError
from agent.planner.file import is_edited, plan_from_toml, plan_hash
from agent.planner.layout_text import plan_text
from agent.planner.plan import Plan
from odctl.result import Result, run_command

FALLBACK_SIZE = (100, 24)


@click.command("show")
@click.argument("plan_path", metavar="PLAN", type=click.Path(dir_okay=False))
@click.option("--width", type=click.IntRange(min=40), help="Columns to draw in. [default: the terminal's]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(plan_path: str, width: int | None, as_json: bool) -> None:
    """Show a plan: who holds which layers, how full memory gets, what is expected, and why."""
    columns = width or shutil.get_terminal_size(FALLBACK_SIZE).columns
    run_command(lambda: show_plan(Path(plan_path), width=columns), as_json=as_json)


def show_plan(path: Path, *, width: int) -> Result:
    """The plan in a file, drawn. Raises FleetError E101 to E107 for a file that is not one."""
    text = read_plan_text(path)
    plan = plan_from_toml(text, file=str(path))
    edited = is_edited(text, plan)
    footer = f"plan {plan_hash(plan)[:12]}" + (", edited by hand since it was written" if edited else "")
    data = {"file": str(path), "hash": plan_hash(plan), "is_edited": edited, "plan": plan}
    return Result(kind="plan", data=data, prose=f"{plan_text(plan, width=width)}\n\n{footer}")


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
