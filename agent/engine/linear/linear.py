"""One matrix of the model, ready to multiply."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from agent.engine.linear.choose import make_kernel
from agent.engine.linear.exact import ExactRows
from agent.engine.linear.kernel import Kernel
from agent.facts.model import Quantisation


class Linear:
    """`y = x W^T + b` for rows of inputs, R x K to R x N.

    `is_exact`: a row's product does not depend, to the bit, on how many rows share the call. The caller must let go
    of a weight that is not `is_shared`, or it is held twice: the kernel may lay it out anew.
    """

    def __init__(
        self,
        weight_NK: Tensor,
        bias_N: Tensor | None = None,
        *,
        quantisation: Quantisation = "none",
        is_exact: bool = False,
        is_shared: bool = False,
    ) -> None:
        kernel = make_kernel(weight_NK, bias_N, quantisation=quantisation, is_shared=is_shared)
        self._set(kernel, is_exact)

    @classmethod
    def over(cls, kernel: Kernel, *, is_exact: bool = False) -> Linear:
        """Of a kernel that was made before."""
        linear = cls.__new__(cls)
        linear._set(kernel, is_exact)
        return linear

    def __call__(self, rows_RK: Tensor) -> Tensor:
        return self._multiply(rows_RK)

    def _set(self, kernel: Kernel, is_exact: bool) -> None:
        self.kernel = kernel
        self._multiply: Callable[[Tensor], Tensor] = ExactRows(kernel) if is_exact else kernel
