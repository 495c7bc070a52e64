"""A carrier over connected sockets: one connection a direction between any two members, TLS or plain."""

from __future__ import annotations

import ctypes
from itertools import pairwise

import torch
from torch import Tensor

from agent.engine.links.carrier import STEP_TIMEOUT_S, Pending, wide
from agent.engine.links.connection import Incoming, Outgoing, shut_down
from agent.engine.links.meeting import Streams
from agent.engine.links.round_trip import slowest_round_trip_s
from agent.planner.carriers import DIRECT_SUM_BYTES


class StreamCarrier:
    """Members are `index` of `size`. CUDA tensors travel through host memory."""

    def __init__(
        self,
        streams: Streams,
        *,
        index: int,
        size: int,
        device: torch.device,
        timeout_s: float = STEP_TIMEOUT_S,
    ) -> None:
        self._index = index
        self._size = size
        self._device = device
        self._incoming = {i: Incoming(c, timeout_s=timeout_s) for i, c in streams.incoming.items()}
        self._outgoing = {i: Outgoing(c, timeout_s=timeout_s) for i, c in streams.outgoing.items()}
        for i, incoming in self._incoming.items():
            incoming.watch(other.connection for j, other in self._incoming.items() if j != i)
        self._is_aborted = False

    def send(self, tensor: Tensor, to_index: int, *, is_followed: bool = False) -> Pending:
        host_tensor = tensor.detach().contiguous().cpu()
        try:
            return self._outgoing[to_index].send(_bytes_of(host_tensor), host_tensor, is_followed=is_followed)
        except RuntimeError as error:
            raise self._broken(error) from error

    def receive(self, shape: tuple[int, ...], kind: torch.dtype, from_index: int) -> Tensor:
        buffer = torch.empty(shape, dtype=kind)
        self._receive_into(buffer, from_index)
        return buffer.to(self._device)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        host_tensor = tensor.detach().contiguous().cpu()
        if self._size == 2:
            total = self._exchange(host_tensor)
        elif host_tensor.nbytes <= DIRECT_SUM_BYTES:
            total = self._sum_of_all(host_tensor)
        else:
            total = self._sum_by_parts(host_tensor.reshape(-1)).view(tensor.shape)
        return total.to(self._device)

    def round_trip_s(self) -> float | None:
        # those that write: what a connection is only read from, the kernel times at its opening alone
        return slowest_round_trip_s(outgoing.connection for outgoing in self._outgoing.values())

    def abort(self) -> None:
        self._is_aborted = True
        self._shut_down()

    def close(self) -> None:
        """Abort and release. Only the thread that uses the carrier may call it."""
        self.abort()
        for outgoing in self._outgoing.values():
            outgoing.close()
        for incoming in self._incoming.values():
            incoming.close()

    # --- sums: every member adds the same numbers in the same order ---------------------------------------

    def _exchange(self, tensor: Tensor) -> Tensor:
        other = 1 - self._index
        sending = self.send(tensor, other)
        # two operands add up to the same bits in either order; torch adds 16-bit floats in float32
        total = tensor + self.receive(tuple(tensor.shape), tensor.dtype, other)
        sending.wait()
        return total

    def _sum_of_all(self, tensor: Tensor) -> Tensor:
        sending = [self.send(tensor, other) for other in self._others()]
        total = self._sum_with_received(tensor)
        for message in sending:
            message.wait()
        return total

    def _sum_by_parts(self, flat: Tensor) -> Tensor:
        """Reduce-scatter, then all-gather, each straight from member to member: a ring would only add hops."""
        bounds = [len(flat) * i // self._size for i in range(self._size + 1)]
        parts = [flat[begin:end] for begin, end in pairwise(bounds)]
        sending = [self.send(parts[other], other) for other in self._others()]
        own = self._sum_with_received(parts[self._index])
        sending += [self.send(own, other) for other in self._others()]
        total = torch.empty_like(flat)
        totals = [total[begin:end] for begin, end in pairwise(bounds)]
        totals[self._index].copy_(own)
        for other in self._others():
            self._receive_into(totals[other], other)
        for message in sending:
            message.wait()
        return total

    def _sum_with_received(self, own: Tensor) -> Tensor:
        """In the order of the members, in float32 where the dtype has fewer bits, rounded once."""
        kind = own.dtype
        parts: dict[int, Tensor] = {self._index: own}
        for other in self._others():
            parts[other] = torch.empty_like(own)
            self._receive_into(parts[other], other)
        total = parts[0].to(wide(kind), copy=True)
        for index in range(1, self._size):
            total += parts[index]
        return total.to(kind)

    def _others(self) -> list[int]:
        # each begins with another one: nobody is everybody's first
        return [(self._index + step) % self._size for step in range(1, self._size)]

    def _receive_into(self, buffer: Tensor, from_index: int) -> None:
        try:
            self._incoming[from_index].receive_into(_bytes_of(buffer))
        except RuntimeError as error:
            raise self._broken(error) from error

    def _broken(self, error: RuntimeError) -> RuntimeError:
        if self._is_aborted:
            return RuntimeError("the link was aborted")
        self._shut_down()  # the other members learn of it at once, and nothing half sent is read as whole
        return error

    def _shut_down(self) -> None:
        for outgoing in self._outgoing.values():
            shut_down(outgoing.connection)
        for incoming in self._incoming.values():
            shut_down(incoming.connection)


def _bytes_of(tensor: Tensor) -> memoryview:
    """The tensor's own memory, not a copy. It must be contiguous and on the host."""
    if tensor.nbytes == 0:
        return memoryview(bytearray())
    # the way through numpy takes four times as long, which counts for messages of a few microseconds
    return memoryview((ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())).cast("B")
