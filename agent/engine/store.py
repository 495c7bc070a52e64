"""torch.distributed's rendezvous over our own control plane: a Store that asks the agent on its unix socket.

No TCPStore: it hangs past its timeouts when its master is stopped or partitioned. Here a deadline is kept whatever
the agent does, and `abort` unblocks a rank that waits for another one that will not come.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Literal

import msgspec
from torch._C._distributed_c10d import Store

from agent.errors import ErrorDetail, FleetError
from agent.wire.agent import StoreReply, StoreRequest

_ANSWER_GRACE_S = 1.0
"""Beyond the time that the agent was given: it answers late rather than never when it is busy."""
_MIME = "application/msgpack"


class AgentStore(Store):
    """Keys live under `prefix` (`deployment/generation/link`). Every call ends by `deadline` (monotonic seconds).

    Raises FleetError E802; torch passes it through to whoever builds the process group.
    """

    def __init__(self, *, agent_socket: str, controller: str, prefix: str, deadline: float) -> None:
        super().__init__()
        self._agent_socket = agent_socket
        self._controller = controller
        self.prefix = prefix
        self._deadline = deadline
        self._connection: _UnixConnection | None = None
        self._is_aborted = False

    def set(self, key: str, value: str | bytes) -> None:
        self._ask("set", (key,), value=value.encode() if isinstance(value, str) else bytes(value))

    def get(self, key: str) -> bytes:
        reply = self._ask("get", (key,))
        if not reply.is_set:
            raise self._not_set((key,))
        return reply.value

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        limit_s = timeout.total_seconds() if timeout is not None else None
        if not self._ask("wait", tuple(keys), limit_s=limit_s).is_set:
            raise self._not_set(tuple(keys))

    def check(self, keys: Sequence[str]) -> bool:
        return self._ask("check", tuple(keys)).is_set

    def add(self, key: str, value: int) -> int:
        return self._ask("add", (key,), amount=value).number

    def delete_key(self, key: str) -> bool:
        return self._ask("delete", (key,)).is_set

    def has_extended_api(self) -> bool:
        return False  # append, multi_get and multi_set are not offered: gloo then does with get and set

    def abort(self) -> None:
        """Make the call that waits for the agent raise, and every later one. From any thread."""
        self._is_aborted = True
        connection = self._connection
        if connection is not None:
            connection.shut_down()

    def _ask(
        self,
        op: Literal["set", "get", "wait", "check", "add", "delete"],
        keys: tuple[str, ...],
        *,
        value: bytes = b"",
        amount: int = 0,
        limit_s: float | None = None,
    ) -> StoreReply:
        left_s = self._deadline - time.monotonic()
        if limit_s is not None:
            left_s = min(left_s, limit_s)
        if self._is_aborted or left_s <= 0:
            raise self._not_set(keys)
        request = StoreRequest(
            op=op,
            controller=self._controller,
            keys=tuple(f"{self.prefix}/{key}" for key in keys),
            value=value,
            amount=amount,
            timeout_s=left_s,
        )
        return self._post(request, keys)

    def _post(self, request: StoreRequest, keys: tuple[str, ...]) -> StoreReply:
        connection = _UnixConnection(self._agent_socket, timeout_s=request.timeout_s + _ANSWER_GRACE_S)
        self._connection = connection
        try:
            if self._is_aborted:
                raise self._not_set(keys)
            connection.request("POST", "/v1/store", msgspec.msgpack.encode(request), {"Content-Type": _MIME})
            response = connection.getresponse()
            body = response.read()
            if response.status >= 400:
                raise _refusal(response.status, body)
            return msgspec.msgpack.decode(body, type=StoreReply)
        except TimeoutError as error:
            raise self._not_set(keys) from error
        except (OSError, http.client.HTTPException, msgspec.DecodeError) as error:
            if self._is_aborted:
                raise self._not_set(keys) from error
            raise FleetError(
                "E802",
                f"rendezvous store: no answer on {self._agent_socket}: {error or type(error).__name__}",
                hint="the agent may be restarting; the ranks are linked again",
            ) from error
        finally:
            self._connection = None
            connection.close()

    def _not_set(self, keys: tuple[str, ...]) -> FleetError:
        if self._is_aborted:
            return FleetError("E802", f"rendezvous of {self.prefix} was aborted")
        return FleetError(
            "E802",
            f"rendezvous of {self.prefix}: nobody set {', '.join(keys)} in time",
            hint="the other rank did not come; see its own status",
        )


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, *, timeout_s: float) -> None:
        super().__init__("agent", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)

    def shut_down(self) -> None:
        # http.client drops `sock` once the response has its own reference: nothing blocks on it then
        if self.sock is not None:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)


def _refusal(status: int, body: bytes) -> FleetError:
    for decoder in (msgspec.msgpack, msgspec.json):
        try:
            detail = decoder.decode(body, type=ErrorDetail)
        except msgspec.DecodeError:
            continue
        return FleetError("E802", f"rendezvous store: {detail.message}", hint=detail.hint, host=detail.host)
    return FleetError("E802", f"rendezvous store: the agent answered {status}")
