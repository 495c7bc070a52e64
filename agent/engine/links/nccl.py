"""NCCL as a carrier: between CUDA devices only, in plaintext. Not more than one rank on a device."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import AllreduceOptions, Store, Work

from agent.engine.links.carrier import STEP_TIMEOUT_S, Group, Pending, wide

# A broken communicator must raise in the engine thread, not take the process down from NCCL's watchdog: the
# rank's weights survive and it links again. Both are read when a group is built.
_ENVIRONMENT = {"TORCH_NCCL_BLOCKING_WAIT": "1", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0"}


class NcclCarrier:
    """A standalone NCCL group on this rank's device."""

    def __init__(self, *, store: Store, index: int, size: int, timeout_s: float, device: torch.device) -> None:
        if device.type != "cuda" or not dist.is_nccl_available():
            raise RuntimeError(f"NCCL cannot link a rank on {device}: it needs CUDA devices and torch with NCCL")
        os.environ.update(_ENVIRONMENT)
        self._index = index
        self._size = size
        self._device = device
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timedelta(seconds=max(timeout_s, STEP_TIMEOUT_S))
        self._group: Group | None = cast("Group", dist.ProcessGroupNCCL(store, index, size, options))
        # communicators are made at first use: make them now, so that linking fails here and not in a step
        self.all_reduce(torch.zeros(1, device=device))

    def send(self, tensor: Tensor, to_index: int, *, is_followed: bool = False) -> Pending:  # noqa: ARG002 - no use here
        tensor = tensor.to(self._device).contiguous()
        return _NcclSend(self._live().send([tensor], to_index, 0), tensor)

    def receive(self, shape: tuple[int, ...], kind: torch.dtype, from_index: int) -> Tensor:
        buffer = torch.empty(shape, dtype=kind, device=self._device)
        self._live().recv([buffer], from_index, 0).wait()
        return buffer

    def all_reduce(self, tensor: Tensor) -> Tensor:
        # a ring rounds at every member: wide, unless there is one addition only
        kind = wide(tensor.dtype) if self._size > 2 else tensor.dtype
        total = tensor.detach().to(kind, copy=True)
        self._live().allreduce([total], AllreduceOptions()).wait()  # sums by default
        return total.to(tensor.dtype)

    def round_trip_s(self) -> float | None:
        return None  # NCCL keeps its connections to itself

    def abort(self) -> None:
        group = self._group
        if group is not None:
            group.abort()

    def close(self) -> None:
        self.abort()
        self._group = None

    def _live(self) -> Group:
        if self._group is None:
            raise RuntimeError("the group is closed")
        return self._group


class _NcclSend:
    def __init__(self, work: Work, tensor: Tensor) -> None:
        self._work = work
        self._tensor = tensor

    def wait(self) -> None:
        self._work.wait()
