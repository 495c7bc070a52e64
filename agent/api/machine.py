"""Routes about the host as a machine: its kernel's log, ending a foreign process, restarting the agent."""

from __future__ import annotations

import asyncio
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agent.api.replies import body, encoded, number
from agent.errors import FleetError
from agent.facts.sample import HostSample
from agent.telemetry.history import SampleHistory
from agent.telemetry.kernel_log import read_kernel_log
from agent.wire.agent import Done
from agent.wire.host import MAX_KERNEL_LINES, EndProcess, RestartAgent


class MachineControl(Protocol):
    """What these routes need of the supervisor. Trouble is raised as FleetError."""

    def end_process(self, order: EndProcess, sample: HostSample) -> Done:
        """End a process that the sample has on one of its devices, and that is not ours."""
        ...

    def restart(self, order: RestartAgent) -> Done:
        """End this agent, soon, where something starts it again."""
        ...


def machine_routes(control: MachineControl, history: SampleHistory) -> list[Route]:
    async def kernel(request: Request) -> Response:
        tail = number(request, "tail", default=100, most=MAX_KERNEL_LINES)
        return encoded(request, await asyncio.to_thread(read_kernel_log, tail))

    async def end_process(request: Request) -> Response:
        order: EndProcess = await body(request, EndProcess)
        if history.latest is None:
            raise FleetError("E208", "no sample was taken yet", hint="ask again in a second")
        return encoded(request, control.end_process(order, history.latest))

    async def restart(request: Request) -> Response:
        return encoded(request, control.restart(await body(request, RestartAgent)))

    return [
        Route("/v1/kernel", kernel),
        Route("/v1/end_process", end_process, methods=["POST"]),
        Route("/v1/restart", restart, methods=["POST"]),
    ]
