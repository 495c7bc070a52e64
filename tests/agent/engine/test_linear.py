"""Packed and plain weights multiply alike, and neither is held twice."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from agent.engine.linear import Linear, can_pack


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("outputs", "inputs"), [(131, 64), (88, 96), (256, 512)])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_a_linear_is_the_product(kind: torch.dtype, outputs: int, inputs: int, rows: int) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(outputs, inputs).to(kind), torch.randn(outputs).to(kind)
    x = torch.randn(rows, inputs).to(kind)
    exact = x.double() @ weight.double().T + bias.double()
    tolerance = 1e-4 if kind == torch.float32 else 0.02
    for linear in (Linear(weight, bias), Linear(weight, bias, is_shared=True)):
        assert ((linear(x).double() - exact).abs() <= tolerance * (1 + exact.abs())).all()


@pytest.mark.skipif(not can_pack(), reason="this CPU or build does not pack bfloat16 weights")
def test_a_packed_weight_leaves_no_copy() -> None:
    weight = torch.ones(64, 64, dtype=torch.bfloat16)
    seen = weakref.ref(weight)
    linear = Linear(weight)
    del weight
    gc.collect()
    assert seen() is None
    assert linear(torch.ones(1, 64, dtype=torch.bfloat16))[0, 0].item() == 64
