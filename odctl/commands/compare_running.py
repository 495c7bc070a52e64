"""`odctl compare --running PLAN`: a plan file against what the deployment of its name runs now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from odctl.result import ExitCode, Result

if TYPE_CHECKING:
    from agent.planner.plan import Plan
    from odctl.deployments import DeploymentSight, FleetDeployments
    from odctl.fleet import Fleet
    from odctl.inventory import Inventory


def compare_with_running(inventory_path: str, paths: Sequence[Path]) -> Result:
    """Raises E106 for more files than one, E2xx when nobody can say what runs."""
    from agent.errors import FleetError
    from odctl.commands.show import load_plan
    from odctl.deployments import read_deployments
    from odctl.session import visit_fleet, warn_unreachable

    if len(paths) != 1:
        raise FleetError(
            "E106",
            f"{len(paths)} plans given: --running compares one with what runs",
            hint="leave --running out to compare files",
        )
    plan = load_plan(paths[0])

    async def look(fleet: Fleet, inventory: Inventory) -> FleetDeployments:  # noqa: ARG001 - visit_fleet's
        return await read_deployments(fleet)

    deployments = visit_fleet(inventory_path, look)
    sight = deployments.get(plan.name)
    if sight is None and deployments.unreachable:
        # Whoever runs it may be among those: "not deployed" would be a guess.
        raise next(iter(deployments.unreachable.values()))
    warn_unreachable(deployments.unreachable)
    return running_result(plan, sight, path=paths[0])


def running_result(plan: Plan, sight: DeploymentSight | None, *, path: Path) -> Result:
    """What applying the plan would move. Exit code 2 unless it is what runs. Raises E210 without the controller."""
    import msgspec

    from agent.planner.compare import compare_plans
    from agent.planner.file import plan_from_toml, plan_hash
    from agent.planner.plan import rank_places
    from agent.planner.words import bytes_words
    from odctl.commands.compare import comparison_lines

    data: dict[str, object] = {"deployment": plan.name, "file": str(path), "hash": plan_hash(plan)}
    if sight is None:
        weights = sum(place.shard.bytes.weights for place in rank_places(plan))
        data |= {"is_running": False, "bytes_to_move": weights, "comparison": None}
        prose = f"{plan.name} is not deployed: all of it is new, {bytes_words(weights)} of weights to load"
        return Result(kind="running_comparison", data=data, prose=prose, exit_code=ExitCode.CHANGES)
    status = sight.reachable_status()
    running = plan_from_toml(status.plan_toml, file=f"the running plan of {plan.name}")
    name = f"running generation {status.generation}"
    comparison = compare_plans([running, plan], [name, str(path)])
    (change,) = comparison.changes
    data |= {
        "is_running": True,
        "generation": status.generation,
        "state": status.state,
        "running_hash": status.plan_hash,
        "layers_moved": change.layers_moved,
        "bytes_to_move": change.bytes_to_move,
        "comparison": msgspec.to_builtins(comparison),
    }
    return Result(
        kind="running_comparison",
        data=data,
        prose="\n".join(comparison_lines(comparison)),
        exit_code=ExitCode.OK if comparison.is_same else ExitCode.CHANGES,
    )
