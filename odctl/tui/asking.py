"""A deployment's answer as pieces, on the fleet's own loop."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from agent.wire.agent import DeploymentStatus
from odctl.chat import stream_chat
from odctl.fleet import Fleet
from odctl.tui.model.conversation import Piece


async def ask(fleet: Fleet, status: DeploymentStatus, body: dict[str, Any]) -> AsyncGenerator[Piece, None]:
    """The answer as it is made; `body` is what `odctl.chat.chat_body` makes. Raises FleetError E808 in the
    gateway's own words.
    """
    async with aclosing(stream_chat(fleet, status, body)) as pieces:
        async for piece in pieces:
            yield Piece(
                text=piece.text,
                thinking=piece.thinking,
                is_done=bool(piece.done_reason),
                done_reason=piece.done_reason,
                num_tokens=piece.answer_tokens,
                prompt_tokens=piece.prompt_tokens,
            )
