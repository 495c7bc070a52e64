"""What every route of the agent's API needs: messages in and out, streams of frames, and query parameters."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from agent.errors import FleetError

MSGPACK = "application/msgpack"
FRAMES = "application/x-msgpack-frames"
MAX_BODY_BYTES = 64 * 1024 * 1024
"""Of a message; uploads are streamed and have no such limit."""


async def body(request: Request, kind: Any) -> Any:
    """The request's message. Raises FleetError E102 for one that is too long or is no `kind`."""
    received = bytearray()
    async for chunk in request.stream():
        received += chunk
        if len(received) > MAX_BODY_BYTES:
            raise FleetError("E102", f"message over the limit of {MAX_BODY_BYTES} bytes")
    try:
        return msgspec.msgpack.decode(received, type=kind)
    except msgspec.DecodeError as error:
        raise FleetError("E102", f"{request.url.path} does not take this message: {error}") from error


def encoded(request: Request, message: Any, *, status: int = 200) -> Response:
    if "application/json" in request.headers.get("accept", ""):
        # For people with curl; programs ask for msgpack.
        return Response(msgspec.json.encode(message), status_code=status, media_type="application/json")
    return Response(msgspec.msgpack.encode(message), status_code=status, media_type=MSGPACK)


def frames(stream: AsyncIterator[bytes]) -> Response:
    return StreamingResponse(stream, media_type=FRAMES)


def number(request: Request, name: str, *, default: int, most: int = 2**53) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not text.isdecimal():
        raise FleetError("E102", f"`{name}` must be a whole number, not `{text}`")
    return min(int(text), most)


def flag(request: Request, name: str) -> bool:
    return request.query_params.get(name, "0") not in ("", "0", "false")
