"""The rendezvous store of the deployments that this agent controls: what torch.distributed's links meet on.

Gloo needs only set, get and wait; a TCPStore would hang past its own timeouts when its master is lost.
"""

from __future__ import annotations

import asyncio

from agent.errors import FleetError
from agent.wire.agent import StoreReply, StoreRequest

MAX_KEYS = 100_000


class RendezvousStore:
    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._changed = asyncio.Condition()

    async def perform(self, request: StoreRequest) -> StoreReply:
        """Raises E807 when a `get` or `wait` runs out of time, naming the keys that are missing."""
        match request.op:
            case "set":
                await self._set(request.keys[0], request.value)
                return StoreReply()
            case "get":
                await self._wait(request.keys, request.timeout_s)
                return StoreReply(value=self._values[request.keys[0]], is_set=True)
            case "wait":
                await self._wait(request.keys, request.timeout_s)
                return StoreReply(is_set=True)
            case "check":
                return StoreReply(is_set=all(key in self._values for key in request.keys))
            case "add":
                number = int(self._values.get(request.keys[0], b"0")) + request.amount
                await self._set(request.keys[0], str(number).encode())
                return StoreReply(number=number)
            case "delete":
                is_set = self._values.pop(request.keys[0], None) is not None
                return StoreReply(is_set=is_set)

    def forget(self, prefix: str) -> None:
        """Drop the keys of a generation that is over."""
        for key in [key for key in self._values if key.startswith(prefix)]:
            del self._values[key]

    async def _set(self, key: str, value: bytes) -> None:
        if len(self._values) >= MAX_KEYS:
            raise FleetError("E807", f"the rendezvous store holds {MAX_KEYS} keys already")
        async with self._changed:
            self._values[key] = value
            self._changed.notify_all()

    async def _wait(self, keys: tuple[str, ...], timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: all(key in self._values for key in keys))
        except TimeoutError as error:
            missing = [key for key in keys if key not in self._values]
            raise FleetError(
                "E807", f"rendezvous: {', '.join(missing)} not set within {timeout_s:.1f} s"
            ) from error
