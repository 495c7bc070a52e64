"""Taking a host out of everything that is served: each deployment on it planned anew without it, then applied.

All plans are made and checked before the first is applied, so that a host which cannot be spared changes nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import msgspec

from agent.errors import FleetError
from agent.planner.beside import memory_beside
from agent.planner.edit import Replan, apply_edit, begin_edit
from agent.planner.file import plan_from_toml
from agent.planner.plan import Plan
from agent.wire.agent import ApplyEvent
from odctl.apply import ApplyPreview, apply_plan, preview_apply
from odctl.deployments import DeploymentSight, FleetDeployments, read_deployments
from odctl.editing import read_basis
from odctl.fleet import Fleet
from odctl.fleet.operator import operator_name

OnDrainEvent = Callable[[str, ApplyEvent], Awaitable[None]]
"""Deployment, and what happens to it."""


class Drain(msgspec.Struct, frozen=True, kw_only=True):
    """What draining a host would do. No previews: nothing is served from it."""

    host: str
    previews: tuple[ApplyPreview, ...]

    @property
    def lines(self) -> tuple[str, ...]:
        """For people: a heading a deployment, and its changes below."""
        lines: list[str] = []
        for preview in self.previews:
            change = _predicted_words(preview)
            lines += [f"{preview.plan.name}{change}", *(f"  {line}" for line in preview.lines)]
        return tuple(lines)


def _predicted_words(preview: ApplyPreview) -> str:
    """The new plan's predicted time per token, for the heading."""
    return f": {preview.plan.predicted.time_per_token_s * 1e3:.3g} ms a token predicted"


async def plan_drain(fleet: Fleet, host: str, *, cluster: str) -> Drain:
    """Plan every deployment of the host without it. Nothing is changed.

    Raises E108 for a host that the inventory lacks, E210 where a deployment's controller does not answer, E5xx
    while an apply is under way, and E6xx naming the deployment that the other hosts have no room for.
    """
    if host not in fleet.hosts:
        raise FleetError("E108", f"`{host}` is not in the inventory", hint=f"known hosts: {', '.join(fleet.hosts)}")
    found = await read_deployments(fleet)
    _refuse_pending(found, host)
    plans = {sight.record.name: _running_plan(sight) for sight in found.deployments if _is_answered(sight, host)}
    previews = []
    for name in sorted(name for name, plan in plans.items() if host in plan.hosts):
        new = await _without(fleet, plans[name], host, cluster=cluster)
        beside = [plan for other, plan in plans.items() if other != name]
        preview = await _previewed(fleet, new, beside, host, cluster=cluster)
        plans[name] = new
        previews.append(preview)
    return Drain(host=host, previews=tuple(previews))


async def perform_drain(fleet: Fleet, drain: Drain, *, cluster: str, on_event: OnDrainEvent) -> tuple[str, ...]:
    """Apply the plans one after another; the deployments that were moved.

    Raises what an apply raised, naming those that have moved already: they serve without the host, and stay so.
    """
    moved: list[str] = []
    for planned in drain.previews:
        name = planned.plan.name

        async def tell(event: ApplyEvent, name: str = name) -> None:
            await on_event(name, event)

        try:
            # The fleet has moved since it was planned, if only by the deployment before this one.
            preview = await preview_apply(fleet, planned.plan, cluster=cluster)
            await apply_plan(
                fleet, preview, on_event=tell, holder=operator_name(), reason=f"host {drain.host} is drained"
            )
        except FleetError as error:
            done = f"; moved already: {', '.join(moved)}" if moved else "; nothing was changed"
            raise FleetError(
                error.code, f"{name}: {error.message}{done}", hint=error.hint, host=error.host
            ) from error
        moved.append(name)
    return tuple(moved)


def _is_answered(sight: DeploymentSight, host: str) -> bool:
    """Whether its plan is known. Raises E210 where it is not, and the host may have a part in it."""
    if sight.status is not None:
        return True
    if any(member.host == host for member in sight.record.members) or sight.record.controller == host:
        sight.reachable_status()
    return False


def _running_plan(sight: DeploymentSight) -> Plan:
    return plan_from_toml(sight.reachable_status().plan_toml, file=f"the running plan of {sight.record.name}")


def _refuse_pending(found: FleetDeployments, host: str) -> None:
    for record in found.pending:
        if any(member.host == host for member in record.members):
            raise FleetError(
                "E501",
                f"{record.name} is being applied on {host} for the first time",
                hint="wait for it to end, or abort it",
                host=host,
            )


async def _without(fleet: Fleet, plan: Plan, host: str, *, cluster: str) -> Plan:
    """The plan made anew, as `odctl plan edit --exclude` does. Raises E6xx naming the deployment."""
    basis = (await read_basis(fleet, plan, cluster=cluster)).basis
    try:
        edited = apply_edit(begin_edit(plan, basis), Replan(excluded=(host,)), basis)
    except FleetError as error:
        raise _cannot_spare(plan.name, host, error.code, error.message, error.hint) from error
    if edited.problems:
        first = edited.problems[0]
        raise _cannot_spare(plan.name, host, first.code, first.message, first.way_out)
    if host in edited.plan.hosts:
        raise _cannot_spare(plan.name, host, "E602", "the planner left it a part", "edit its plan by hand")
    return edited.plan


async def _previewed(fleet: Fleet, plan: Plan, beside: Sequence[Plan], host: str, *, cluster: str) -> ApplyPreview:
    preview = await preview_apply(fleet, plan, cluster=cluster)
    short = memory_beside(plan, beside, preview.facts)
    if short:
        raise _cannot_spare(plan.name, host, short[0].code, short[0].message, short[0].way_out)
    return preview


def _cannot_spare(name: str, host: str, code: str, message: str, hint: str) -> FleetError:
    return FleetError(
        code,
        f"{name} cannot do without {host}: {message}",
        hint=hint or "make room on the other hosts, or `odctl destroy` it",
        host=host,
    )
