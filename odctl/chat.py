"""Talks to a deployment's gateway as an Ollama client would, over the gateway's unix socket on its host."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec

from agent.errors import FleetError
from agent.wire.agent import DeploymentStatus
from odctl.fleet import Fleet

FIRST_TOKEN_TIMEOUT_S = 600.0


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`is_raw` completes the prompt without the model's chat template; `history` are earlier (role, text) turns."""

    model: str
    prompt: str
    system: str = ""
    is_raw: bool = False
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    history: tuple[tuple[str, str], ...] = ()


async def stream_answer(
    fleet: Fleet, status: DeploymentStatus, request: ChatRequest
) -> AsyncIterator[tuple[str, dict[str, Any] | None]]:
    """Pieces of the answer as they come; the last one brings Ollama's final counts and durations.

    Raises E808 with the gateway's own words, also for an error in the middle of the stream.
    """
    client = await fleet.client_of(status.gateway_host, status.gateway_socket)
    route, body = _body(request)
    try:
        async with client.stream("POST", route, json=body, timeout=FIRST_TOKEN_TIMEOUT_S) as response:
            if response.is_error:
                await response.aread()
                raise _gateway_error(status, response.text)
            async for line in response.aiter_lines():
                if not line:
                    continue
                message = json.loads(line)
                if "error" in message:
                    raise _gateway_error(status, line)
                piece = message["response"] if request.is_raw else message["message"]["content"]
                yield piece, message if message.get("done") else None
    except httpx.HTTPError as error:
        why = str(error) or type(error).__name__
        raise FleetError(
            "E808",
            f"the gateway's stream broke off: {why}",
            hint="odctl status shows the deployment's state",
            host=status.gateway_host,
        ) from error


def _body(request: ChatRequest) -> tuple[str, dict[str, Any]]:
    options: dict[str, Any] = {}
    if request.max_tokens is not None:
        options["num_predict"] = request.max_tokens
    if request.temperature is not None:
        options["temperature"] = request.temperature
    if request.seed is not None:
        options["seed"] = request.seed
    if request.is_raw:
        return "/api/generate", {
            "model": request.model,
            "prompt": request.prompt,
            "raw": True,
            "stream": True,
            "options": options,
        }
    messages = [{"role": "system", "content": request.system}] if request.system else []
    messages += [{"role": role, "content": text} for role, text in request.history]
    messages.append({"role": "user", "content": request.prompt})
    return "/api/chat", {"model": request.model, "messages": messages, "stream": True, "options": options}


def _gateway_error(status: DeploymentStatus, text: str) -> FleetError:
    try:
        message = json.loads(text)["error"]
    except (json.JSONDecodeError, KeyError, TypeError):
        message = text[:300]
    if isinstance(message, dict):
        message = message.get("message", str(message))
    hint = status.way_out or "odctl status shows the deployment's state"
    return FleetError("E808", str(message), hint=hint, host=status.gateway_host)
