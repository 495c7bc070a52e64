"""Talks to a deployment's gateway over its unix socket on its host: one question as Ollama's clients ask it, a
conversation as OpenAI's do.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

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
    import httpx

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


# --- several turns, as OpenAI's clients ask ------------------------------------------------------------

TEMPERATURE = 0.8
"""Of a chat's answers, said in each request: OpenAI's API and Ollama's have different ones of their own."""
COMPLETIONS = "/v1/chat/completions"
LOOPBACK = ("127.", "localhost", "[::1]")
ANYWHERE = ("0.0.0.0", "[::]")


class ChatPiece(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of an answer, or of the thoughts before it. The last has `done_reason`, and what was counted."""

    text: str = ""
    thinking: str = ""
    done_reason: str = ""
    prompt_tokens: int = 0
    answer_tokens: int = 0
    """Thoughts included."""


def chat_body(
    model: str, question: str, *, history: Sequence[tuple[str, str]] = (), system: str = ""
) -> dict[str, Any]:
    """The request of one turn for OpenAI's API; `history` are earlier (role, text) messages."""
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": role, "content": text} for role, text in history]
    messages.append({"role": "user", "content": question})
    return {
        "model": model,
        "messages": messages,
        "temperature": TEMPERATURE,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def curl_command(body: dict[str, Any], listen: str, *, host: str, address: str = "") -> str:
    """The same request for a shell. `listen` is the gateway's on `host`, `address` where others reach that host.

    Our own way is the gateway's unix socket: a shell goes to the port, and needs a key where keys are asked for.
    """
    where, _, port = listen.rpartition(":")
    if where in ANYWHERE:
        where = address or host
    is_local = where.startswith(LOOPBACK)
    lines = [f"# on {host}, for it listens on loopback only"] if is_local else []
    lines.append(f"curl -sN http://{where}:{port}{COMPLETIONS} \\")
    lines.append("  -H 'Content-Type: application/json' \\")
    if not is_local:
        lines.append('  -H "Authorization: Bearer $ODCTL_API_KEY" \\')
    lines.append(f"  -d {shlex.quote(json.dumps(body, ensure_ascii=False))}")
    return "\n".join(lines)


async def stream_chat(
    fleet: Fleet, status: DeploymentStatus, body: dict[str, Any]
) -> AsyncGenerator[ChatPiece, None]:
    """Pieces as they come; the last one has `done_reason`.

    Raises E808 with the gateway's own words, also for an error in the middle of the stream and for a stream that
    ends without saying so.
    """
    import httpx

    done_reason = ""
    usage: dict[str, int] = {}
    try:
        async with (
            fleet.own_client_of(status.gateway_host, status.gateway_socket) as client,
            client.stream("POST", COMPLETIONS, json=body, timeout=FIRST_TOKEN_TIMEOUT_S) as response,
        ):
            if response.is_error:
                await response.aread()
                raise _gateway_error(status, response.text)
            async for line in response.aiter_lines():
                if not line.startswith("data:"):
                    continue
                data = line[5:].strip()
                if data == "[DONE]":
                    break
                event = json.loads(data)
                if "error" in event:
                    raise _gateway_error(status, data)
                usage = event.get("usage") or usage
                for choice in event.get("choices", ()):
                    done_reason = choice.get("finish_reason") or done_reason
                    delta = choice.get("delta", {})
                    text, thinking = delta.get("content") or "", delta.get("reasoning") or ""
                    if text or thinking:
                        yield ChatPiece(text=text, thinking=thinking)
    except (httpx.HTTPError, json.JSONDecodeError) as error:
        raise _broken_off(status, str(error) or type(error).__name__) from error
    if not done_reason:
        raise _broken_off(status, "it ended without saying so")
    yield ChatPiece(
        done_reason=done_reason,
        prompt_tokens=usage.get("prompt_tokens", 0),
        answer_tokens=usage.get("completion_tokens", 0),
    )


def _broken_off(status: DeploymentStatus, why: str) -> FleetError:
    return FleetError(
        "E808",
        f"the gateway's stream broke off: {why}",
        hint=f"odctl status {status.name} shows whether it is being repaired; then ask again",
        host=status.gateway_host,
    )
