"""One rank process: wires the channels to the engine thread, and ends it cleanly. Never calls torch."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, assert_never

import msgspec

from agent.engine.control import serve_control
from agent.engine.inbox import Inbox, LinkOrder
from agent.engine.status_board import StatusBoard
from agent.engine.step_channel import StepChannel
from agent.errors import ErrorDetail, FleetError
from agent.wire.rank import (
    GetStatus,
    LinkRank,
    RankConfig,
    RankRequest,
    RankStatus,
    StepFailed,
    StopRank,
    UnlinkRank,
)

if TYPE_CHECKING:
    from agent.engine.executor import Executor

log = logging.getLogger(__name__)

LINK_GRACE_S = 2.0
"""Beyond a LinkRank's own limit: the engine thread gives its reason within it."""
UNLINK_LIMIT_S = 2.0
STOP_LIMIT_S = 5.0


class RankProcess:
    """Made and run inside one event loop. `run` returns the exit code."""

    def __init__(self, config: RankConfig) -> None:
        self._config = config
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._inbox = Inbox(on_room=lambda: self._loop.call_soon_threadsafe(self._channel.wake))
        self._board = StatusBoard(config, count_queued=self._inbox.__len__)
        self._channel = StepChannel(tls=config.tls, inbox=self._inbox, read_status=self._board.snapshot)
        self._engine = EngineThread(
            config, self._board, self._inbox, on_crash=lambda: self._loop.call_soon_threadsafe(self._stop.set)
        )

    async def run(self) -> int:
        """Serve until told to stop. 0; 1 when the shard could not be loaded or the engine thread died."""
        self._loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        async with serve_control(self._config.socket, self._answer, on_stop=self._stop.set):
            try:
                async with self._channel.serve(self._config.cluster_address) as port:
                    self._board.step_port = port
                    self._engine.start()
                    await self._stop.wait()
                    await self._end_engine()
            except (OSError, FleetError) as error:
                self._board.error = _listen_error(self._config, error).detail
                self._board.state = "failed"
                self._inbox.close()
                await self._stop.wait()
        return 1 if self._board.state == "failed" or self._engine.has_crashed else 0

    async def _answer(self, request: RankRequest) -> RankStatus:
        match request:
            case LinkRank():
                return await self._link(request)
            case UnlinkRank():
                return await self._unlink()
            case GetStatus() | StopRank():
                return self._board.snapshot()
            case _:
                assert_never(request)

    async def _link(self, request: LinkRank) -> RankStatus:
        status = self._board.snapshot()
        if request.generation < status.generation:
            return _with_error(
                status, "E801", f"generation {request.generation} is over: the rank is at {status.generation}"
            )
        if not await self._reorder_links(request, limit_s=request.timeout_s, grace_s=LINK_GRACE_S):
            return _with_error(
                self._board.snapshot(),
                "E802",
                f"rank {self._config.rank_id} did not come to linking within {request.timeout_s:g} s",
            )
        status = self._board.snapshot()
        if status.error is None and (status.state, status.generation) != ("linked", request.generation):
            return _with_error(status, "E802", "linking was called off by a later request")
        return status

    async def _unlink(self) -> RankStatus:
        await self._reorder_links(None, limit_s=UNLINK_LIMIT_S, grace_s=0.0)
        return self._board.snapshot()

    async def _reorder_links(self, request: LinkRank | None, *, limit_s: float, grace_s: float) -> bool:
        """Abort what is, and have the engine thread do this next. False when it did not within the limit."""
        done = asyncio.Event()
        self._channel.retire_session()  # else its next steps would run under the new generation
        self._engine.abort_links()
        dropped = self._inbox.put_link(
            LinkOrder(
                request=request,
                deadline=time.monotonic() + limit_s,
                on_done=lambda: self._loop.call_soon_threadsafe(done.set),
            )
        )
        error = ErrorDetail(code="E802", message=f"rank {self._config.rank_id} was unlinked")
        for order in dropped:
            order.replies.post(StepFailed(step_id=order.step.step_id, error=error))
        try:
            async with asyncio.timeout(limit_s + grace_s):
                await done.wait()
        except TimeoutError:
            return False
        finally:
            # of the generation before: gateways attach to the next one when every rank has linked
            self._channel.close_session()
        return True

    async def _end_engine(self) -> None:
        self._engine.abort_links()
        self._inbox.close()
        await asyncio.to_thread(self._engine.join, STOP_LIMIT_S)


class EngineThread(threading.Thread):
    """Runs an `Executor`; the process answers its supervisor meanwhile.

    A daemon: a thread that is stuck in a kernel must not keep the process from leaving.
    """

    def __init__(
        self, config: RankConfig, board: StatusBoard, inbox: Inbox, *, on_crash: Callable[[], object]
    ) -> None:
        super().__init__(name="engine", daemon=True)
        self.has_crashed = False
        self._config = config
        self._board = board
        self._inbox = inbox
        self._on_crash = on_crash
        self._executor: Executor | None = None

    def run(self) -> None:
        is_done = False
        try:
            from agent.engine.executor import Executor

            self._executor = Executor(self._config, self._board, self._inbox)
            self._executor.run()
            is_done = True
        finally:
            if not is_done:  # a fault of ours: its traceback is on stderr, the process leaves with 1
                self.has_crashed = True
                self._on_crash()

    def abort_links(self) -> None:
        if self._executor is not None:
            self._executor.abort_links()


def _with_error(status: RankStatus, code: str, message: str) -> RankStatus:
    return msgspec.structs.replace(status, error=ErrorDetail(code=code, message=message))


def _listen_error(config: RankConfig, error: OSError | FleetError) -> FleetError:
    if isinstance(error, FleetError):
        return error
    return FleetError(
        "E808",
        f"rank {config.rank_id} cannot listen on {config.cluster_address}: {error.strerror or error}",
        hint="is cluster_address an address of this host?",
        host=config.host,
    )
