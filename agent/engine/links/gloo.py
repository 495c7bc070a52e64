"""Gloo as a carrier: works on every device and network, in plaintext. CUDA tensors travel through host memory."""

from __future__ import annotations

from datetime import timedelta
from typing import cast

import torch
from torch import Tensor
from torch._C._distributed_c10d import AllreduceOptions, ProcessGroupGloo, Store, Work

from agent.engine.links.carrier import STEP_TIMEOUT_S, Group, Pending, wide
from agent.engine.links.round_trip import slowest_round_trip_s
from agent.engine.links.sockets import connections_since, shut_down, socket_inodes


class GlooCarrier:
    """A standalone gloo group. Building it blocks until every member does the same, or raises at the deadline."""

    def __init__(
        self,
        *,
        store: Store,
        index: int,
        size: int,
        address: str,
        timeout_s: float,
        device: torch.device,
        except_port: int,
        step_timeout_s: float = STEP_TIMEOUT_S,
    ) -> None:
        self._index = index
        self._size = size
        self._device = device
        self._timeout = timedelta(seconds=step_timeout_s)
        before = socket_inodes()
        options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._devices = [ProcessGroupGloo.create_device(hostname=address)]
        options._timeout = timedelta(seconds=timeout_s)
        options._threads = 1
        self._group: Group | None = cast("Group", ProcessGroupGloo(store, index, size, options))
        self._connections = connections_since(before, except_port=except_port)

    def send(self, tensor: Tensor, to_index: int, *, is_followed: bool = False) -> Pending:  # noqa: ARG002 - no use here
        host_tensor = tensor.contiguous().cpu()
        return _GlooSend(self._live().send([host_tensor], to_index, 0), host_tensor, self._timeout)

    def receive(self, shape: tuple[int, ...], kind: torch.dtype, from_index: int) -> Tensor:
        # pages of an untouched buffer would be faulted in by gloo's thread anyway: empty is enough
        buffer = torch.empty(shape, dtype=kind)
        self._live().recv([buffer], from_index, 0).wait(self._timeout)
        return buffer.to(self._device)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        if self._size == 2:
            return self._exchange_sum(tensor)
        # a copy: the caller's tensor stays as it is, as in the exchange
        total = tensor.detach().to("cpu", dtype=wide(tensor.dtype), copy=True)
        options = AllreduceOptions()  # sums by default
        options.timeout = self._timeout
        self._live().allreduce([total], options).wait(self._timeout)
        return total.to(self._device, dtype=tensor.dtype)

    def round_trip_s(self) -> float | None:
        return slowest_round_trip_s(self._connections)

    def abort(self) -> None:
        shut_down(self._connections)

    def close(self) -> None:
        """Abort and release. Only the thread that uses the carrier may call it."""
        self.abort()
        self._group = None
        for connection in self._connections:
            connection.close()
        self._connections = ()

    def _exchange_sum(self, tensor: Tensor) -> Tensor:
        # gloo's own all_reduce takes 2 to 10 times as long between two ranks (FACTS: 4.5 one-way hops for 1);
        # two operands add up to the same bits in either order, 16-bit floats in float32
        other = 1 - self._index
        sending = self.send(tensor, other)
        total = tensor + self.receive(tuple(tensor.shape), tensor.dtype, other)
        sending.wait()
        return total

    def _live(self) -> Group:
        if self._group is None:
            raise RuntimeError("the group is closed")
        return self._group


class _GlooSend:
    """Keeps the tensor alive while gloo reads from it."""

    def __init__(self, work: Work, tensor: Tensor, timeout: timedelta) -> None:
        self._work = work
        self._tensor = tensor
        self._timeout = timeout

    def wait(self) -> None:
        self._work.wait(self._timeout)
