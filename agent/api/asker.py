"""Who asks, and how urgently: what the scheduler shares slots by."""

from __future__ import annotations

import hashlib

import msgspec
from starlette.requests import Request as HttpRequest

from agent.api.fields import Fields

MOST_URGENT, LEAST_URGENT = -10, 10
PRIORITY_HEADER = "x-odctl-priority"
ON_THE_HOST = "local"
"""Whoever comes by the unix socket."""


class Asker(msgspec.Struct, frozen=True, kw_only=True):
    client: str = ""
    priority: int = 0
    """Smaller comes first."""


def asker_of(request: HttpRequest, fields: Fields) -> Asker:
    """An API key is one client, else an address is. The field `priority` goes before the header. Raises Refusal."""
    name, header = "priority", request.headers.get(PRIORITY_HEADER)
    if header is not None and not fields.has(name):
        name, fields = PRIORITY_HEADER, Fields({PRIORITY_HEADER: _number(header)})
    return Asker(
        client=_client(request), priority=fields.integer(name, 0, at_least=MOST_URGENT, at_most=LEAST_URGENT)
    )


def _client(request: HttpRequest) -> str:
    _, _, key = request.headers.get("authorization", "").partition(" ")
    # Without keys in force the header is whatever a client likes: it must not make many clients of one.
    if key and request.app.state.gateway.config.api_keys:
        return "key " + hashlib.sha256(key.strip().encode()).hexdigest()[:12]
    return request.client.host if request.client is not None and request.client.host else ON_THE_HOST


def _number(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text
