"""Making a plan, as the screens ask for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from agent.errors import FleetError
from agent.planner.plan import Plan
from odctl.fleet import Fleet
from odctl.inventory import Inventory
from odctl.tui.feed import Feed

if TYPE_CHECKING:
    from odctl.planning import AskedPlan, PlanAsk


class Planner(Protocol):
    """Raises FleetError; what it returns beside the plan are hosts that did not answer."""

    async def make(self, feed: Feed, ask: PlanAsk) -> tuple[Plan, tuple[str, ...]]: ...


class FleetPlanner:
    """As `odctl plan`. Without an inventory there is nothing to select hosts from."""

    def __init__(self, inventory: Inventory | None = None) -> None:
        self._inventory = inventory

    async def make(self, feed: Feed, ask: PlanAsk) -> tuple[Plan, tuple[str, ...]]:
        from odctl.planning import read_request

        inventory = self._inventory
        if inventory is None:
            raise FleetError("E109", "plans are made over an inventory, and this session has none")

        async def work(fleet: Fleet) -> AskedPlan:
            return await read_request(fleet, inventory, ask)

        found = await feed.call(work)
        made = await asyncio.to_thread(found.make)
        return made, tuple(sorted(found.missing))
