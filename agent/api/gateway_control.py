"""What a gateway's supervisor asks of it: `/control/*` on the unix socket, msgpack in and out."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from agent.api.gateway import Gateway
from agent.errors import ErrorDetail, FleetError
from agent.wire.agent import Done
from agent.wire.gateway import AskRequests, AttachBackend, BackendRef, CancelRequest

MEDIA_TYPE = "application/msgpack"


async def attach(request: HttpRequest) -> Response:
    return _reply(await _gateway(request).attach(await _read(request, AttachBackend)))


async def check(request: HttpRequest) -> Response:
    ref = await _read(request, BackendRef)
    return _reply(await _gateway(request).check(ref.deployment, ref.generation))


async def activate(request: HttpRequest) -> Response:
    ref = await _read(request, BackendRef)
    return _reply(_gateway(request).activate(ref.deployment, ref.generation))


async def retire(request: HttpRequest) -> Response:
    ref = await _read(request, BackendRef)
    await _gateway(request).retire(ref.deployment, ref.generation, drain_s=ref.drain_s)
    return _reply(Done())


async def detach(request: HttpRequest) -> Response:
    ref = await _read(request, BackendRef)
    _gateway(request).detach(ref.deployment, ref.generation)
    return _reply(Done())


async def requests(request: HttpRequest) -> Response:
    asked = await _read(request, AskRequests)
    return _reply(_gateway(request).requests(asked.deployment))


async def cancel(request: HttpRequest) -> Response:
    return _reply(_gateway(request).end_request(await _read(request, CancelRequest)))


async def status(request: HttpRequest) -> Response:
    return _reply(_gateway(request).status())


def refuse(error: FleetError) -> Response:
    """409: nothing about the request itself is wrong, the state does not allow it."""
    return _reply(error.detail, status=409)


ROUTES = [
    Route("/control/attach", attach, methods=["POST"]),
    Route("/control/check", check, methods=["POST"]),
    Route("/control/activate", activate, methods=["POST"]),
    Route("/control/retire", retire, methods=["POST"]),
    Route("/control/detach", detach, methods=["POST"]),
    Route("/control/requests", requests, methods=["POST"]),
    Route("/control/cancel", cancel, methods=["POST"]),
    Route("/control/status", status, methods=["GET"]),
]


async def _read(request: HttpRequest, kind: Any) -> Any:
    try:
        return msgspec.msgpack.decode(await request.body(), type=kind)
    except msgspec.DecodeError as error:
        raise FleetError("E818", f"the body is no {kind.__name__}: {error}") from error


def _reply(body: msgspec.Struct | ErrorDetail, status: int = 200) -> Response:
    return Response(msgspec.msgpack.encode(body), status_code=status, media_type=MEDIA_TYPE)


def _gateway(request: HttpRequest) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway
