"""Requests in flight as operators see them, and the end of one of them by an operator's hand."""

from __future__ import annotations

from agent.api.backend import Backend, Replica
from agent.api.deployment import Deployment
from agent.api.refusal import CANCELLED
from agent.errors import ErrorDetail, FleetError
from agent.serving.metrics import time_per_token_s
from agent.serving.request import Request
from agent.wire.gateway import CancelRequest, InFlightState, RequestReport, RequestView

CALL_PREFIX = "req_"
UNLIMITED = 1 << 30
"""`max_tokens` of a request that has no limit but the context."""
NO_SUCH_REQUEST = "E125"


def list_requests(deployment: Deployment, *, now_s: float) -> RequestReport:
    """Those that run, those that wait for a slot, those that wait for a generation. Probes are left out."""
    found = _in_flight(deployment, now_s=now_s)
    running = [view for _, view in found if view.state == "running"]
    others = [view for _, view in found if view.state != "running"]
    return RequestReport(deployment=deployment.name, requests=(*running, *others))


def end_request(deployment: Deployment, order: CancelRequest, *, now_s: float) -> RequestView:
    """Free what the request holds, count it as cancelled, and tell its client that it was, not by whom.

    Raises FleetError E125.
    """
    found = _in_flight(deployment, now_s=now_s)
    request, view = _one(found, order.request_id, deployment.name)
    deployment.cancel(request)
    request.tell_cancelled(ErrorDetail(code=CANCELLED, message="an operator cancelled this request"))
    return view


def _in_flight(deployment: Deployment, *, now_s: float) -> list[tuple[Request, RequestView]]:
    found: list[tuple[Request, RequestView]] = []
    for _, backend in sorted(deployment.backends.items()):
        for replica in backend.replicas:
            found += _of_replica(backend, replica, now_s)
    found += [(request, _view(request, "waiting", now_s=now_s)) for request in deployment.waiting]
    return [(request, view) for request, view in found if not request.is_probe]


def _of_replica(backend: Backend, replica: Replica, now_s: float) -> list[tuple[Request, RequestView]]:
    generation, index = backend.generation, replica.index
    running = [
        (each.request, _view(each.request, "running", generation, index, computed=each.computed, now_s=now_s))
        for each in replica.scheduler.running()
    ]
    queued = [
        (request, _view(request, "queued", generation, index, now_s=now_s))
        for request in replica.scheduler.waiting()
    ]
    return running + queued


def _view(
    request: Request,
    state: InFlightState,
    generation: int = 0,
    replica: int | None = None,
    *,
    computed: int = 0,
    now_s: float,
) -> RequestView:
    seconds = time_per_token_s(request)
    return RequestView(
        request_id=request.request_id,
        generation=generation,
        replica=replica,
        state=state,
        client=request.client,
        priority=request.priority,
        prompt_tokens=len(request.prompt),
        computed_tokens=computed,
        generated_tokens=len(request.generated),
        max_tokens=None if request.max_tokens >= UNLIMITED else request.max_tokens,
        age_s=now_s - request.arrived_s,
        ttft_s=None if request.first_token_s is None else request.first_token_s - request.arrived_s,
        tokens_per_s=1 / seconds if seconds else None,
        embeds=request.embeds,
    )


def _one(found: list[tuple[Request, RequestView]], wanted: str, deployment: str) -> tuple[Request, RequestView]:
    """The request of this id, or the only one whose id begins like it."""
    wanted = wanted.removeprefix(CALL_PREFIX)
    by_id = {view.request_id.removeprefix(CALL_PREFIX): (request, view) for request, view in found}
    if wanted in by_id:
        return by_id[wanted]
    matching = [request_id for request_id in by_id if wanted and request_id.startswith(wanted)]
    if len(matching) == 1:
        return by_id[matching[0]]
    if matching:
        raise FleetError(
            NO_SUCH_REQUEST,
            f"{len(matching)} requests of {deployment} begin with `{wanted}`",
            hint=f"say more of it: {', '.join(sorted(matching))}",
        )
    raise FleetError(
        NO_SUCH_REQUEST,
        f"no request `{wanted}` of {deployment} is in flight: it has ended, or never was",
        hint=f"odctl requests {deployment} lists those that are",
    )
