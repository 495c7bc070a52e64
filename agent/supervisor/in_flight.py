"""The controller's way to the requests of its deployments: through the agent of the gateway's host."""

from __future__ import annotations

from agent.journal import Journal
from agent.planner.plan import Plan
from agent.supervisor.deployment import Controlled
from agent.supervisor.reach import Reach
from agent.wire.agent import EndRequest, ListRequests
from agent.wire.gateway import CancelRequest, RequestReport, RequestView


async def list_requests(reach: Reach, plan: Plan) -> RequestReport:
    order = ListRequests(listen=plan.serving.listen, deployment=plan.name)
    reply = await reach.instruct(plan.gateway_host, order)
    return RequestReport(deployment=plan.name, requests=reply.requests)


async def cancel_request(
    reach: Reach, journal: Journal, plan: Plan, controlled: Controlled, order: CancelRequest
) -> RequestView:
    """How the request stood when it ended. The journal keeps who wanted it."""
    reply = await reach.instruct(plan.gateway_host, EndRequest(listen=plan.serving.listen, cancel=order))
    [ended] = reply.requests
    journal.append(
        "RequestCancelled",
        deployment=plan.name,
        generation=controlled.generation,
        plan_hash=controlled.plan_hash,
        body={
            "request_id": ended.request_id,
            "by": order.by,
            "client": ended.client,
            "state": ended.state,
            "prompt_tokens": ended.prompt_tokens,
            "generated_tokens": ended.generated_tokens,
        },
    )
    return ended
