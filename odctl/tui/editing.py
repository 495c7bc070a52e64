"""What a plan's editor works over, as the screens ask for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from agent.planner.plan import Plan
from odctl.fleet import Fleet
from odctl.tui.feed import Feed

if TYPE_CHECKING:
    from odctl.editing import BasisRead


class BasisReader(Protocol):
    """Raises FleetError where the model or every host is out of reach."""

    async def read(self, feed: Feed, plan: Plan) -> BasisRead: ...


class FleetBasisReader:
    """Asks the fleet."""

    async def read(self, feed: Feed, plan: Plan) -> BasisRead:
        from odctl.editing import read_basis  # planning, with its numpy, only where something is edited

        async def work(fleet: Fleet) -> BasisRead:
            return await read_basis(fleet, plan, cluster=feed.cluster)

        return await feed.call(work)
