"""The plans that can be looked at: the previewed file, and what runs. No file is read here."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache

import msgspec

from agent.errors import ErrorDetail, FleetError
from agent.facts.cluster import ClusterFacts
from agent.planner.file import plan_from_toml, plan_hash
from agent.planner.plan import Plan
from agent.wire.agent import DeploymentStatus
from odctl.fleet.snapshot import DeploymentView, FleetSnapshot

NEW = "not written yet"
"""The origin of a plan that was made here."""


class PlanChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One plan: from a file (`origin` is its path), or of a deployment that runs (`status`)."""

    origin: str
    plan: Plan
    plan_hash: str
    status: DeploymentStatus | None = None
    error: ErrorDetail | None = None
    """Why the running deployment's plan is of yesterday: its controller does not answer."""


def plan_choices(snapshot: FleetSnapshot | None, preview: PlanChoice | None) -> tuple[PlanChoice, ...]:
    """The previewed plan first, then those of the deployments, by name."""
    running = [choice for view in (snapshot.deployments if snapshot else ()) if (choice := _running(view))]
    return ((preview,) if preview is not None else ()) + tuple(running)


def preview_of(text: str, *, path: str) -> PlanChoice:
    """A plan file's text as a choice. Raises DocumentError."""
    plan = plan_from_toml(text, file=path)
    return PlanChoice(origin=path, plan=plan, plan_hash=plan_hash(plan))


def running_choice(snapshot: FleetSnapshot | None, name: str) -> PlanChoice | None:
    """The plan of the deployment of that name; None where none runs, or this odctl cannot read its plan."""
    view = snapshot.deployment(name) if snapshot is not None else None
    return _running(view) if view is not None else None


def deployed_plan(status: DeploymentStatus) -> Plan | None:
    """The plan of a deployment; None when this odctl cannot read it (an agent of another version wrote it)."""
    return _parsed(status.plan_toml)


def cluster_facts(snapshot: FleetSnapshot, *, hosts: Collection[str]) -> ClusterFacts:
    """The facts of these hosts, of those that have told us their own."""
    wanted = frozenset(hosts)
    known = (host.facts for host in snapshot.hosts if host.facts and host.name in wanted)
    return ClusterFacts(cluster=snapshot.cluster, hosts=tuple(sorted(known, key=lambda facts: facts.name)))


def measured_facts(snapshot: FleetSnapshot, *, hosts: Collection[str]) -> ClusterFacts:
    """The same with what was probed of them, as far as their agents have told."""
    from agent.facts.measured import with_probes  # first paint does without: hashes and statistics come with it

    wanted = frozenset(hosts)
    probes = [host.probes for host in snapshot.hosts if host.name in wanted and host.probes is not None]
    return with_probes(cluster_facts(snapshot, hosts=wanted), probes)


def _running(view: DeploymentView) -> PlanChoice | None:
    if view.status is None or (plan := deployed_plan(view.status)) is None:
        return None
    return PlanChoice(
        origin="running", plan=plan, plan_hash=view.status.plan_hash, status=view.status, error=view.error
    )


@lru_cache(maxsize=32)
def _parsed(text: str) -> Plan | None:
    try:
        return plan_from_toml(text, file="plan.toml")
    except FleetError:
        return None
