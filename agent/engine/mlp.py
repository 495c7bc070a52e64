"""The layers' second half: one gated MLP, or experts of which a router picks a few for every token.

Shapes: T tokens, D hidden size, C MLP columns of this rank, E experts, X experts of a token.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from agent.engine.exact import row_by_row
from agent.engine.linear import Linear
from agent.facts.model import FamilySpec

Activation = Callable[[Tensor], Tensor]


def activation_of(family: FamilySpec, *, is_exact: bool) -> Activation:
    activation: Activation = functional.silu if family.activation == "silu" else _gelu_tanh
    return partial(row_by_row, activation) if is_exact else activation


class GatedMlp:
    """`down(act(gate(x)) * up(x))`; `gate_up` makes gate and up at once."""

    def __init__(self, gate_up: Linear, down: Linear, activate: Activation) -> None:
        self._gate_up = gate_up
        self._down = down
        self._activate = activate

    def __call__(self, x_TD: Tensor) -> Tensor:
        gate_TC, up_TC = self._gate_up(x_TD).chunk(2, dim=-1)
        return self._down(self._activate(gate_TC).mul_(up_TC))


class Experts:
    """A token's output is the weighed sum of its experts'. Only experts that some token has chosen are touched.

    Every rank of a tensor-parallel group routes for itself, over whole hidden states and a whole router. A token's
    experts are added in their own order, whatever other tokens there are.
    """

    def __init__(
        self, router: Linear, experts: tuple[GatedMlp, ...], *, experts_per_token: int, normalises: bool
    ) -> None:
        self._router = router
        self._experts = experts
        self._experts_per_token = experts_per_token
        self._normalises = normalises

    def __call__(self, x_TD: Tensor) -> Tensor:
        weights_TX, experts_TX = self._route(x_TD)
        if x_TD.shape[0] == 1:
            return self._run_one(x_TD, weights_TX[0].tolist(), experts_TX[0].tolist())
        order_P = experts_TX.flatten().argsort(stable=True)  # pairs of a token and an expert, by expert
        rows_P = order_P // self._experts_per_token
        weights_P1 = weights_TX.flatten()[order_P][:, None]
        counts = torch.bincount(experts_TX.flatten(), minlength=len(self._experts)).tolist()
        sum_TD = torch.zeros_like(x_TD)
        begin = 0
        for expert, count in zip(self._experts, counts, strict=True):
            if count:
                rows = rows_P.narrow(0, begin, count)
                mixed = expert(x_TD.index_select(0, rows)).mul_(weights_P1.narrow(0, begin, count))
                sum_TD.index_add_(0, rows, mixed)
                begin += count
        return sum_TD

    def _run_one(self, x_1D: Tensor, weights: list[float], chosen: list[int]) -> Tensor:
        sum_1D: Tensor | None = None
        for expert, weight in sorted(zip(chosen, weights, strict=True)):
            mixed_1D = self._experts[expert](x_1D).mul_(weight)
            sum_1D = mixed_1D if sum_1D is None else sum_1D.add_(mixed_1D)
        assert sum_1D is not None, "a token has at least one expert"
        return sum_1D

    def _route(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and numbers of each token's experts: the likeliest of a softmax over all of them."""
        shares_TE = self._router(x_TD).softmax(dim=-1, dtype=torch.float32)
        weights_TX, experts_TX = shares_TE.topk(self._experts_per_token, dim=-1)
        if self._normalises:
            weights_TX = weights_TX / weights_TX.sum(dim=-1, keepdim=True)
        return weights_TX.to(x_TD.dtype), experts_TX


def _gelu_tanh(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")
