"""Root mean square norms, in float32 inside, in as few operations as the device needs.

Shapes: any leading dimensions, and the D elements that are normed together.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


class RmsNorm:
    """`x / rms(x)` times a gain, rounded where transformers rounds.

    With `adds_one` the gain is 1 + weight, multiplied in float32 before the one rounding (Gemma); otherwise the
    normed value is rounded first, and its product with the weight again (Llama). The weight may have more
    dimensions than D: heads, say, that differ in their gain.
    """

    def __init__(self, weight_D: Tensor, eps: float, *, adds_one: bool) -> None:
        self._size = weight_D.shape[-1]
        self._eps = eps
        self._kind = weight_D.dtype
        self._is_wide = adds_one
        self._gain_D = 1 + weight_D.float() if adds_one else weight_D
        self._is_fused = weight_D.device.type == "cuda"
        self._eps_1 = torch.full((1,), eps)

    def __call__(self, x: Tensor) -> Tensor:
        if self._is_fused:
            return self._norm_fused(x)
        # On a CPU torch makes a dozen operations of rms_norm, but the length of float32 vectors is one. The others
        # round as one does, so that a row's bits do not depend on where it stands among others.
        wide = x.float()
        length = torch.linalg.vector_norm(wide, 2, -1, True)
        scale = torch.addcmul(self._eps_1, length, length, value=1 / self._size).rsqrt_()
        if self._is_wide:
            return (wide * scale).mul_(self._gain_D).to(self._kind)
        return (wide * scale).to(self._kind).mul_(self._gain_D)

    def _norm_fused(self, x: Tensor) -> Tensor:
        if self._is_wide:
            return functional.rms_norm(x.float(), (self._size,), None, self._eps).mul_(self._gain_D).to(self._kind)
        return functional.rms_norm(x, (self._size,), None, self._eps).mul_(self._gain_D)
