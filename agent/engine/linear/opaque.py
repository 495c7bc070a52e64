"""oneDNN's own tensors as bytes, and bytes in place as such a tensor: what lets a packed weight be mapped.

Written for torch 2.13: the layout is `mkldnn::_get_mkldnn_serialized_md`, and a tensor over foreign memory comes
from the C interface that compiled models use (`aoti_torch_create_tensor_from_blob_v2`). `can_wrap` tries the whole
way before anything relies on it.
"""

from __future__ import annotations

import ctypes
import logging
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

log = logging.getLogger(__name__)

_DTYPE_NAMES = {torch.bfloat16: "bfloat16", torch.int8: "int8"}


def layout_of(tensor: Tensor) -> bytes:
    """How an opaque tensor's bytes are to be read; empty for one that is not opaque."""
    if not tensor.is_mkldnn:
        return b""
    layout: Tensor = torch.ops.mkldnn._get_mkldnn_serialized_md(tensor)
    return bytes(layout.numpy())


def bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's memory, in place; the tensor must outlive it."""
    if tensor.is_mkldnn:
        length = int(torch.ops.mkldnn._nbytes(tensor))
        address = int(torch.ops.mkldnn.data_ptr(tensor))
        return memoryview((ctypes.c_uint8 * length).from_address(address)).cast("B")
    in_place: memoryview = tensor.contiguous().view(-1).view(torch.uint8).numpy().data
    return in_place


def wrap(address: int, *, shape: tuple[int, ...], dtype: torch.dtype, layout: bytes) -> Tensor:
    """An opaque tensor over memory that outlives it. Raises RuntimeError where torch refuses."""
    library = _library()
    handle = ctypes.c_void_p()
    dims = len(shape)
    error = library.aoti_torch_create_tensor_from_blob_v2(
        ctypes.c_void_p(address),
        ctypes.c_int64(dims),
        (ctypes.c_int64 * dims)(*shape),
        (ctypes.c_int64 * dims)(),
        ctypes.c_int64(0),
        ctypes.c_int32(getattr(library, f"aoti_torch_dtype_{_DTYPE_NAMES[dtype]}")()),
        ctypes.c_int32(library.aoti_torch_device_type_cpu()),
        ctypes.c_int32(0),
        ctypes.byref(handle),
        ctypes.c_int32(library.aoti_torch_layout__mkldnn()),
        (ctypes.c_uint8 * len(layout)).from_buffer_copy(layout),
        ctypes.c_int64(len(layout)),
    )
    if error:
        raise RuntimeError(f"torch makes no opaque tensor over mapped memory (error {error})")
    new_capsule = ctypes.pythonapi.PyCapsule_New
    new_capsule.restype = ctypes.py_object
    new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    capsule = new_capsule(handle, None, None)
    tensor: Tensor = torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr(capsule)
    return tensor


@cache
def can_wrap() -> bool:
    """Whether this build wraps a packed weight so that it multiplies as the original does."""
    try:
        weight = torch.linspace(-1, 1, 96 * 80).view(96, 80).bfloat16()
        rows = torch.linspace(-2, 1, 3 * 80).view(3, 80).bfloat16()
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
        copy = torch.frombuffer(bytearray(bytes_of(packed)), dtype=torch.uint8)
        wrapped = wrap(copy.data_ptr(), shape=tuple(packed.shape), dtype=torch.bfloat16, layout=layout_of(packed))
        first, second = (
            torch.ops.mkldnn._linear_pointwise(rows, weight, None, "none", [], "") for weight in (packed, wrapped)
        )
    except (RuntimeError, AttributeError, OSError, TypeError) as error:
        log.warning("packed weights cannot be mapped", extra={"why": str(error)})
        return False
    return torch.equal(first, second)


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
