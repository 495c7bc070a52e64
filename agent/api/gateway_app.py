"""The gateway's HTTP applications: clients' one for TCP, the same with `/control/*` for the unix socket."""

from __future__ import annotations

import hmac
import ipaddress
import socket
from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from agent.api import gateway_control, ollama, openai
from agent.api.gateway import Gateway
from agent.api.refusal import Refusal
from agent.errors import FleetError

LOCAL_ORIGINS = (
    r"https?://(localhost|127\.0\.0\.1|0\.0\.0\.0|\[::1\])(:\d+)?"
    r"|(app|file|tauri|vscode-webview|vscode-file)://.*"
)
"""Ollama's own list: without keys, pages from elsewhere must not use a visitor's loopback."""
_LOCAL_SUFFIXES = (".localhost", ".local", ".internal")


def client_app(gateway: Gateway) -> Starlette:
    """For TCP: API keys when there are any, otherwise only names that lead to a machine one can trust."""
    keys = gateway.config.api_keys
    return _app(
        gateway,
        [
            Middleware(
                CORSMiddleware,
                allow_origins=["*"] if keys else [],
                allow_origin_regex=None if keys else LOCAL_ORIGINS,
                allow_methods=["*"],
                allow_headers=["*"],
                expose_headers=["x-request-id", "retry-after"],
            ),
            Middleware(KeyCheck, keys=keys) if keys else Middleware(HostCheck),
        ],
        with_control=False,
    )


def socket_app(gateway: Gateway) -> Starlette:
    """For the unix socket: whoever can open it owns the agent's files anyway."""
    return _app(gateway, [], with_control=True)


class KeyCheck:
    """Lets requests pass that carry one of the keys as `Authorization: Bearer`; the bare liveness page is free."""

    def __init__(self, app: ASGIApp, *, keys: tuple[str, ...]) -> None:
        self._app = app
        self._keys = tuple(key.encode() for key in keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == "/":
            await self._app(scope, receive, send)
            return
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        given_key = given.strip().encode()
        # Every key is compared, so that time tells nothing about them.
        matches = [hmac.compare_digest(given_key, key) for key in self._keys]
        if scheme.lower() == "bearer" and any(matches):
            await self._app(scope, receive, send)
            return
        refusal = Refusal(
            401, "an API key is required: send it as `Authorization: Bearer KEY`", code="invalid_api_key"
        )
        await _refuse(scope["path"], refusal)(scope, receive, send)


class HostCheck:
    """Refuses foreign Host headers: a web page that rebinds its name to loopback does not reach us."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_local_name(Headers(scope=scope).get("host", "")):
            refusal = Refusal(403, "this Host is not served without API keys", code="host_not_allowed")
            await _refuse(scope["path"], refusal)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _app(gateway: Gateway, middleware: Sequence[Middleware], *, with_control: bool) -> Starlette:
    app = Starlette(
        routes=[*ollama.ROUTES, *openai.ROUTES, *(gateway_control.ROUTES if with_control else ())],
        middleware=middleware,
        exception_handlers={
            Refusal: _on_refusal,
            HTTPException: _on_http_exception,
            FleetError: _on_fleet_error,
            500: _on_bug,
        },
    )
    app.state.gateway = gateway
    return app


def _on_refusal(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return _refuse(request.url.path, error)


def _on_http_exception(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = {404: f"{request.url.path} does not exist here", 405: f"{request.method} is not allowed here"}
    return _refuse(request.url.path, Refusal(error.status_code, what.get(error.status_code, error.detail)))


def _on_fleet_error(_request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, FleetError)
    return gateway_control.refuse(error)


def _on_bug(request: HttpRequest, _error: Exception) -> Response:
    """The server logs the traceback; clients still get an error in their protocol's form."""
    return _refuse(request.url.path, Refusal(500, "internal error, see the gateway's log"))


def _refuse(path: str, refusal: Refusal) -> Response:
    return openai.refuse(refusal) if path.startswith("/v1/") else ollama.refuse(refusal)


def _is_local_name(host: str) -> bool:
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    name = name.strip("[]").lower()
    if name in ("", "localhost", socket.gethostname().lower()) or name.endswith(_LOCAL_SUFFIXES):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
