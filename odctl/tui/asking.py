"""A deployment's answer as pieces, on the fleet's own loop."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from agent.wire.agent import DeploymentStatus
from odctl.chat import ChatRequest, stream_answer
from odctl.fleet import Fleet
from odctl.tui.model.conversation import Piece


async def ask(
    fleet: Fleet, status: DeploymentStatus, question: str, history: tuple[tuple[str, str], ...]
) -> AsyncGenerator[Piece, None]:
    """The answer as it is made. Raises FleetError E808 in the gateway's own words."""
    request = ChatRequest(model=status.name, prompt=question, history=history)
    async for text, final in stream_answer(fleet, status, request):
        if final is None:
            yield Piece(text=text)
        else:
            yield Piece(
                text=text,
                is_done=True,
                done_reason=str(final.get("done_reason", "")),
                num_tokens=int(final.get("eval_count", 0)),
            )
