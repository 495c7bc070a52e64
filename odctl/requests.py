"""Requests in flight of a deployment, and the end of one of them, asked of its controller."""

from __future__ import annotations

from agent.wire.gateway import CancelRequest, RequestReport, RequestView
from odctl.fleet import Fleet

ASK_TIMEOUT_S = 10.0


async def read_requests(fleet: Fleet, controller: str, deployment: str) -> RequestReport:
    """What its gateway has in flight. Raises FleetError E2xx without the controller, E808 without the gateway."""
    return await fleet.get(controller, f"/v1/requests/{deployment}", RequestReport, timeout_s=ASK_TIMEOUT_S)


async def cancel_request(
    fleet: Fleet, controller: str, deployment: str, request_id: str, *, by: str
) -> RequestView:
    """Cancel one by its id or the beginning of it; how it stood. Its client gets an error.

    Raises FleetError E125 for a request that is not in flight or is not the only one of that beginning, else as
    `read_requests`.
    """
    order = CancelRequest(deployment=deployment, request_id=request_id, by=by)
    return await fleet.post(controller, "/v1/requests/cancel", order, RequestView, timeout_s=ASK_TIMEOUT_S)
