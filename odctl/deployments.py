"""What is deployed, as the fleet says it: who decides for a deployment, at which generation, in which state."""

from __future__ import annotations

import msgspec

from agent.errors import FleetError
from agent.wire.agent import DeploymentRecord, DeploymentStatus
from odctl.fleet import Fleet


class DeploymentSight(msgspec.Struct, frozen=True, kw_only=True):
    """One deployment: the newest record that any host has, and its controller's word or why there is none."""

    record: DeploymentRecord
    status: DeploymentStatus | None
    trouble: str = ""

    def reachable_status(self) -> DeploymentStatus:
        """The controller's word. Raises E210 when it gives none."""
        if self.status is None:
            raise FleetError(
                "E210",
                f"the controller of {self.record.name} gives no answer: {self.trouble}",
                hint=f"odctl bootstrap {self.record.controller} starts its agent again",
                host=self.record.controller,
            )
        return self.status


class FleetDeployments(msgspec.Struct, frozen=True, kw_only=True):
    """All deployments by name, and the hosts that did not answer with their reasons."""

    deployments: tuple[DeploymentSight, ...]
    unreachable: dict[str, FleetError]
    pending: tuple[DeploymentRecord, ...] = ()
    """First applies under way: reserved on their hosts, and not serving yet."""

    def get(self, name: str) -> DeploymentSight | None:
        return next((sight for sight in self.deployments if sight.record.name == name), None)

    def one(self, name: str) -> DeploymentSight:
        """By name, or the only one when the name is empty. Raises E110 naming what there is."""
        names = [sight.record.name for sight in self.deployments]
        if not name and len(names) == 1:
            return self.deployments[0]
        sight = self.get(name)
        if sight is None:
            known = ", ".join(names) or "nothing is deployed"
            raise FleetError(
                "E110",
                f"no deployment `{name}`" if name else f"{len(names)} deployments: say which",
                hint=f"deployed: {known}" if names else "odctl apply plan.toml deploys one",
            )
        return sight


async def read_deployments(fleet: Fleet) -> FleetDeployments:
    """Ask every host for its records, then each deployment's controller for its status."""
    answers = await fleet.get_all("/v1/deployments", tuple[DeploymentRecord, ...])
    newest: dict[str, DeploymentRecord] = {}
    unreachable: dict[str, FleetError] = {}
    for host, answer in answers.items():
        if isinstance(answer, FleetError):
            unreachable[host] = answer
            continue
        for record in answer:
            if record.name not in newest or record.generation > newest[record.name].generation:
                newest[record.name] = record
    sights, pending = [], []
    for name in sorted(newest):
        record = newest[name]
        if record.generation == 0:
            if record.pending_generation:
                pending.append(record)
            continue
        try:
            status = await fleet.get(record.controller, f"/v1/deployments/{name}", DeploymentStatus)
            sights.append(DeploymentSight(record=record, status=status))
        except FleetError as error:
            sights.append(DeploymentSight(record=record, status=None, trouble=str(error)))
    return FleetDeployments(deployments=tuple(sights), unreachable=unreachable, pending=tuple(pending))
