"""The operator's part of editing a plan: what edits are computed over, and the file that is written.

Nothing is written half: a file is replaced whole, or left as it was.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from agent.documents import DocumentError, KeyPath, parse_document
from agent.errors import FleetError
from agent.planner.check import PlanProblem
from agent.planner.edit import Basis
from agent.planner.plan import Plan
from odctl.apply import add_runs, read_facts
from odctl.fleet import Fleet
from odctl.model_source import check_model

_STEP = re.compile(r"([A-Za-z0-9_-]+)|\[(\d+)\]")


class BasisRead(msgspec.Struct, frozen=True, kw_only=True):
    """What edits are computed over, and the hosts that did not answer with their reasons."""

    basis: Basis
    missing: dict[str, FleetError]


async def read_basis(fleet: Fleet, plan: Plan, *, cluster: str) -> BasisRead:
    """The plan's model and the cluster as they are now.

    A host of the plan that does not answer is left out: it can be planned around. Raises E402 when a model is
    another one than was planned, E2xx when the host that has it does not answer.
    """
    facts, missing = await read_facts(fleet, cluster)
    facts = await add_runs(fleet, facts)
    if not facts.hosts:
        raise next(iter(missing.values()), FleetError("E105", "no host is left to plan with"))
    spec = (await check_model(fleet, plan.model)).spec
    draft = (await check_model(fleet, plan.draft)).spec if plan.draft is not None else None
    selected = _selected(fleet, plan.asked.hosts) if plan.asked is not None and plan.asked.hosts else None
    return BasisRead(basis=Basis(spec, facts, draft=draft, selected=selected), missing=missing)


def _selected(fleet: Fleet, selector: str) -> tuple[str, ...] | None:
    """Hosts that the plan was asked for. None when the inventory knows no such ones any more: all are left then."""
    try:
        return fleet.select(selector)
    except FleetError:
        return None


def write_plan_file(path: Path, text: str, *, replaces: bool) -> None:
    """The text in this file, whole. Raises E101 where it cannot be written, E119 where there is one already.

    `replaces` says that its user knows that there is one.
    """
    written, is_new = None, False
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            written = Path(file.name)
            file.write(text)
        if not (replaces and path.exists()):
            path.open("x").close()
            is_new = True
        written.chmod(path.stat().st_mode & 0o777)
        written.replace(path)
    except OSError as error:
        if written is not None:
            written.unlink(missing_ok=True)
        if is_new:
            path.unlink(missing_ok=True)
        if isinstance(error, FileExistsError):
            raise FleetError("E119", f"{path} is there already", hint="name another file") from error
        raise FleetError("E101", f"{path}: {error.strerror or error}", hint="name another file") from error


def located(text: str, problems: Sequence[PlanProblem], *, file: str) -> DocumentError:
    """A plan's problems at their lines of the text that it was read from."""
    document = parse_document(text, file=file)
    return DocumentError(
        tuple(
            document.problem(each.code, each.message, _key_path(each.path), hint=each.way_out) for each in problems
        )
    )


def _key_path(path: str) -> KeyPath:
    """`replica[0].stage[1].layers` as the steps that it means."""
    return tuple(int(index) if index else key for key, index in _STEP.findall(path))
