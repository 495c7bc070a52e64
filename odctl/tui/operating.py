"""What the screens of a deployment ask for and do: requests in flight, the end of one, a benchmark."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from agent.errors import FleetError
from agent.wire.agent import DeploymentStatus
from agent.wire.gateway import RequestReport, RequestView
from odctl.fleet import Fleet
from odctl.fleet.guard import READ_ONLY, WAY_OUT
from odctl.fleet.operator import operator_name
from odctl.requests import cancel_request, read_requests
from odctl.tui.feed import Feed

if TYPE_CHECKING:
    from odctl.bench.run import Measurement


class Operator(Protocol):
    """Every method raises FleetError."""

    async def requests(self, feed: Feed, status: DeploymentStatus) -> RequestReport: ...

    async def cancel(self, feed: Feed, status: DeploymentStatus, request_id: str) -> RequestView:
        """E121 while the session is read-only."""
        ...

    async def bench(self, feed: Feed, status: DeploymentStatus, measurement: Measurement) -> None:
        """Returns at its end; cancelled here it breaks off there. E121 while the session is read-only."""
        ...


class FleetOperator:
    """For real. `is_read_only` is asked again here, whatever a screen has asked before."""

    def __init__(self, is_read_only: Callable[[], bool]) -> None:
        self._is_read_only = is_read_only

    async def requests(self, feed: Feed, status: DeploymentStatus) -> RequestReport:
        async def work(fleet: Fleet) -> RequestReport:
            return await read_requests(fleet, status.controller, status.name)

        return await feed.call(work)

    async def cancel(self, feed: Feed, status: DeploymentStatus, request_id: str) -> RequestView:
        self._check(f"request {request_id} was not cancelled")

        async def work(fleet: Fleet) -> RequestView:
            return await cancel_request(fleet, status.controller, status.name, request_id, by=operator_name())

        return await feed.call(work)

    async def bench(self, feed: Feed, status: DeploymentStatus, measurement: Measurement) -> None:
        from odctl.bench.deployment import measure_deployment

        self._check(f"no load was put on {status.name}")

        async def work(fleet: Fleet) -> None:
            await measure_deployment(fleet, status, measurement)

        await feed.call(work)

    def _check(self, what: str) -> None:
        if self._is_read_only():
            raise FleetError(READ_ONLY, f"this session is read-only: {what}", hint=WAY_OUT)
