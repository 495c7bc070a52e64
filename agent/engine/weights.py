"""A rank's weights, ready to compute with: matrices as `Linear`s, everything else as tensors of the serving dtype.

Matrices are laid out anew or quantised one by one as they are read, so that no more than one is held twice, and
what is resident in the end is what the planner counted.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from agent.engine.linear import Linear
from agent.engine.linear.choose import make_kernel
from agent.engine.linear.kernel import Kernel
from agent.engine.stored_tensors import TensorKey, expert_role, read_tensors
from agent.facts.model import ModelSpec, Quantisation
from agent.planner.shards import ShardExtent

__all__ = ["ShardWeights", "expert_role", "load_weights"]

_HEAD: TensorKey = ("head", None)
_EMBEDDING: TensorKey = ("embedding", None)
_KEEPS_DTYPE = ("router",)
"""Matrices that are not quantised: what they decide is not worth the bytes."""


class ShardWeights:
    """Matrices and tensors by role and layer (None outside the layers), fused ones under their fused role."""

    def __init__(
        self, kernels: dict[TensorKey, Kernel], tensors: dict[TensorKey, Tensor], *, is_exact: bool
    ) -> None:
        self._kernels = kernels
        self._tensors = tensors
        self._is_exact = is_exact
        self.num_bytes = sum(kernel.num_bytes for kernel in kernels.values())
        """Of all that is held, counted once where a head shares the embedding's weight."""
        is_shared = _HEAD in kernels and _EMBEDDING in tensors and kernels[_HEAD].shares(tensors[_EMBEDDING])
        self.num_bytes += sum(
            tensor.nbytes for key, tensor in tensors.items() if not (is_shared and key == _EMBEDDING)
        )

    def __getitem__(self, key: str | TensorKey) -> Tensor:
        return self._tensors[key if isinstance(key, tuple) else (key, None)]

    def get(self, role: str, layer: int | None = None) -> Tensor | None:
        return self._tensors.get((role, layer))

    def linear(self, role: str, layer: int | None = None) -> Linear:
        """The product with a matrix and its bias. `head` is there for a tied model too."""
        return Linear.over(self._kernels[role, layer], is_exact=self._is_exact)


def load_weights(
    spec: ModelSpec,
    extent: ShardExtent,
    *,
    shard_file: str,
    model_dir: str,
    kind: torch.dtype,
    device: torch.device,
    on_read: Callable[[int], None],
    quantisation: Quantisation = "none",
    is_exact: bool = False,
) -> ShardWeights:
    """Read every slice of the shard; `on_read` is told the bytes of each piece read. Raises FleetError E704."""
    stored = read_tensors(
        spec, extent, shard_file=shard_file, model_dir=model_dir, kind=kind, device=device, on_read=on_read
    )
    kernels: dict[TensorKey, Kernel] = {}
    tensors: dict[TensorKey, Tensor] = {}
    for key, tensor in stored:
        role, layer = key
        is_embedding = key == _EMBEDDING
        if tensor.dim() == 1 or (is_embedding and extent.is_first_stage):
            tensors[key] = tensor
        if tensor.dim() == 2 and not is_embedding:
            bias = tensors.pop((f"{role}_bias", layer), None)
            wanted = "none" if role in _KEEPS_DTYPE else quantisation
            kernels[key] = make_kernel(tensor, bias, quantisation=wanted)
        if is_embedding and extent.is_last_stage and spec.tie_word_embeddings:
            kernels[_HEAD] = make_kernel(tensor, None, quantisation=quantisation, is_shared=extent.is_first_stage)
        del tensor
    return ShardWeights(kernels, tensors, is_exact=is_exact)
