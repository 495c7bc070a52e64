"""How a controller gives instructions to members, itself among them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from agent.errors import FleetError
from agent.wire.agent import Heartbeat, HostAddress, Instruction, InstructionReply, StoreReply, StoreRequest

INSTRUCT_TIMEOUT_S = 15.0


class MemberCalls(Protocol):
    """Calls to other agents over the cluster plane (`agent.api.cluster_client`). Raises FleetError E206."""

    async def instruct(
        self, address: HostAddress, instruction: Instruction, *, timeout_s: float
    ) -> InstructionReply: ...

    async def heartbeat(self, address: HostAddress, *, controller: str, timeout_s: float) -> Heartbeat: ...

    async def store(self, address: HostAddress, request: StoreRequest, *, timeout_s: float) -> StoreReply: ...


class Reach:
    """Instructions to hosts by name. This host's own go straight to `perform`, without a socket."""

    def __init__(
        self,
        host: str,
        perform: Callable[[Instruction], Awaitable[InstructionReply]],
        calls: MemberCalls,
    ) -> None:
        self._host = host
        self._perform = perform
        self._calls = calls
        self._addresses: dict[str, HostAddress] = {}

    def learn(self, addresses: Iterable[HostAddress]) -> None:
        for address in addresses:
            self._addresses[address.host] = address

    def address(self, host: str) -> HostAddress:
        """Raises E206 for a host that nobody has told us of."""
        try:
            return self._addresses[host]
        except KeyError:
            raise FleetError("E206", "its cluster address is not known here", host=host) from None

    async def instruct(
        self, host: str, instruction: Instruction, *, timeout_s: float = INSTRUCT_TIMEOUT_S
    ) -> InstructionReply:
        if host == self._host:
            return await self._perform(instruction)
        return await self._calls.instruct(self.address(host), instruction, timeout_s=timeout_s)

    async def instruct_all(
        self, instructions: dict[str, Instruction], *, timeout_s: float = INSTRUCT_TIMEOUT_S
    ) -> dict[str, InstructionReply]:
        """All at once; when some fail, the first failure by host name is raised after all have ended."""
        outcomes = await self.try_all(instructions, timeout_s=timeout_s)
        for host in sorted(outcomes):
            outcome = outcomes[host]
            if isinstance(outcome, FleetError):
                raise outcome
        return {host: reply for host, reply in outcomes.items() if isinstance(reply, InstructionReply)}

    async def try_all(
        self, instructions: dict[str, Instruction], *, timeout_s: float = INSTRUCT_TIMEOUT_S
    ) -> dict[str, InstructionReply | FleetError]:
        """All at once; each host's reply, or what went wrong there."""
        outcomes: dict[str, InstructionReply | FleetError] = {}

        async def instruct_one(host: str, instruction: Instruction) -> None:
            try:
                outcomes[host] = await self.instruct(host, instruction, timeout_s=timeout_s)
            except FleetError as error:
                outcomes[host] = error if error.host else FleetError.from_detail(error.detail, host=host)

        async with asyncio.TaskGroup() as group:
            for host, instruction in instructions.items():
                group.create_task(instruct_one(host, instruction))
        return outcomes

    async def heartbeat(self, host: str, *, timeout_s: float) -> Heartbeat:
        return await self._calls.heartbeat(self.address(host), controller=self._host, timeout_s=timeout_s)

    async def store(self, host: str, request: StoreRequest) -> StoreReply:
        return await self._calls.store(self.address(host), request, timeout_s=request.timeout_s + 2.0)
