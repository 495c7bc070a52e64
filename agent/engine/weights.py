"""A rank's weights, ready to compute with: matrices as `Linear`s, everything else as tensors of the serving dtype.

Matrices are laid out anew or quantised one by one as they are read, so that no more than one is held twice, and
what is resident in the end is what the planner counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from agent.engine.linear import Linear
from agent.engine.linear.choose import kernel_names, make_kernel
from agent.engine.linear.kernel import Kernel
from agent.engine.linear.opaque import can_wrap
from agent.engine.packed_file import PackedFile, PackedFileWriter
from agent.engine.shard_cache import ShardCache, shard_key
from agent.engine.stored_tensors import TensorKey, expert_role, read_tensors
from agent.facts.model import Dtype, ModelSpec, Quantisation
from agent.planner.shards import ShardExtent, shard_weight_bytes

__all__ = ["ShardWeights", "expert_role", "load_weights"]

_HEAD: TensorKey = ("head", None)
_EMBEDDING: TensorKey = ("embedding", None)
_DTYPES: dict[torch.dtype, Dtype] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}
_KEEPS_DTYPE = ("router",)
"""Matrices that are not quantised: what they decide is not worth the bytes."""


class ShardWeights:
    """Matrices and tensors by role and layer (None outside the layers), fused ones under their fused role."""

    def __init__(
        self,
        kernels: dict[TensorKey, Kernel],
        tensors: dict[TensorKey, Tensor],
        *,
        is_exact: bool,
        looked_up: frozenset[TensorKey] = frozenset(),
    ) -> None:
        self._kernels = kernels
        self._tensors = tensors
        self._is_exact = is_exact
        left_out = set(looked_up)
        if _HEAD in kernels and _EMBEDDING in tensors and kernels[_HEAD].shares(tensors[_EMBEDDING]):
            left_out.add(_EMBEDDING)
        self.num_bytes = sum(kernel.num_bytes for kernel in kernels.values())
        """Of all that is held: once where a head shares the embedding's weight, and nothing of rows that are read
        from a file when they are asked for."""
        self.num_bytes += sum(tensor.nbytes for key, tensor in tensors.items() if key not in left_out)

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
    cache: ShardCache | None = None,
) -> ShardWeights:
    """Read every slice of the shard; `on_read` is told the bytes of each piece read. Raises FleetError E704.

    A shard that is packed or quantised on a CPU is kept in the cache and mapped from there.
    """

    def read() -> Iterator[tuple[TensorKey, Tensor]]:
        return read_tensors(
            spec, extent, shard_file=shard_file, model_dir=model_dir, kind=kind, device=device, on_read=on_read
        )

    kernels: dict[TensorKey, Kernel] = {}
    tensors: dict[TensorKey, Tensor] = {}
    if cache is not None and device.type == "cpu" and spec.digest and _is_worth_keeping(quantisation, kind):
        mapped = _map(spec, extent, cache, read, kind=kind, quantisation=quantisation, on_read=on_read)
        if mapped is not None:
            return ShardWeights(mapped.kernels(), mapped.tensors(), is_exact=is_exact, looked_up=mapped.looked_up())
    for key, made in lay_out_weights(spec, extent, read(), quantisation=quantisation, shares_embedding=True):
        if isinstance(made, Kernel):
            kernels[key] = made
        else:
            tensors[key] = made
    return ShardWeights(kernels, tensors, is_exact=is_exact)


def _is_worth_keeping(quantisation: Quantisation, kind: torch.dtype) -> bool:
    return kernel_names(quantisation, kind) != ("plain",) and can_wrap()


def _map(
    spec: ModelSpec,
    extent: ShardExtent,
    cache: ShardCache,
    read: Callable[[], Iterator[tuple[TensorKey, Tensor]]],
    *,
    kind: torch.dtype,
    quantisation: Quantisation,
    on_read: Callable[[int], None],
) -> PackedFile | None:
    """The shard as it was kept, or as it is kept from now on; None where it cannot be kept."""
    key = shard_key(spec, extent, kind=kind, quantisation=quantisation)
    kept = cache.open(key)
    if kept is not None:
        on_read(kept.num_bytes)
        return kept
    is_embedding_of_head = extent.is_first_stage and extent.is_last_stage and spec.tie_word_embeddings

    def write(writer: PackedFileWriter) -> None:
        for key, made in lay_out_weights(spec, extent, read(), quantisation=quantisation, shares_embedding=False):
            if isinstance(made, Kernel):
                writer.add_kernel(key, made)
            else:
                is_looked_up = key == _EMBEDDING and is_embedding_of_head and quantisation == "none"
                writer.add_tensor(key, made, is_looked_up=is_looked_up)

    dtype: Dtype = _DTYPES[kind]
    return cache.make(key, num_bytes=shard_weight_bytes(spec, extent, dtype, quantisation), write=write)


def lay_out_weights(
    spec: ModelSpec,
    extent: ShardExtent,
    stored: Iterator[tuple[TensorKey, Tensor]],
    *,
    quantisation: Quantisation,
    shares_embedding: bool,
) -> Iterator[tuple[TensorKey, Kernel | Tensor]]:
    """Kernels of the matrices, biases in them, and the tensors that are left; each let go of before the next."""
    biases: dict[TensorKey, Tensor] = {}
    for key, tensor in stored:
        role, layer = key
        if role.endswith("_bias"):
            biases[key] = tensor
        elif tensor.dim() == 1:
            yield key, tensor
        elif key == _EMBEDDING:
            if extent.is_last_stage and spec.tie_word_embeddings:
                is_shared = shares_embedding and extent.is_first_stage
                yield _HEAD, make_kernel(tensor, None, quantisation=quantisation, is_shared=is_shared)
            if extent.is_first_stage:
                yield key, tensor
        else:
            wanted = "none" if role in _KEEPS_DTYPE else quantisation
            yield key, make_kernel(tensor, biases.pop((f"{role}_bias", layer), None), quantisation=wanted)
        del tensor
