"""Every kernel multiplies as the plain product does, as far as its bits allow, and none holds its weight twice."""

from __future__ import annotations

import gc
import logging
import weakref

import pytest
import torch

from agent.engine.linear import Linear, choose
from agent.engine.linear.choose import is_sound, make_kernel
from agent.engine.linear.int4 import Int4Kernel
from agent.engine.linear.int8 import Int8Kernel
from agent.engine.linear.kernel import Kernel, fill_rows
from agent.engine.linear.opaque import bytes_of, layout_of, wrap
from agent.engine.linear.packed import PackedKernel
from agent.engine.linear.weight_only import WeightOnlyInt4Kernel, WeightOnlyKernel
from agent.facts.model import Dtype, Quantisation
from agent.planner.shards import matrix_bytes

SHAPES = [(131, 64), (88, 96), (256, 512)]
ROWS = [1, 3, 40]
COST: dict[Quantisation, float] = {"none": 0.005, "int8": 0.015, "int4": 0.1, "fp8": 0.04}
"""Relative error that a quantisation may bring to products of random numbers."""


def error(linear: Linear | Kernel, *, rows: int, right: torch.Tensor) -> float:
    """Of a product of random rows with `right`, relative, in the Frobenius norm."""
    weight, bias = right[:, :-1], right[:, -1]
    x = torch.randn(rows, weight.shape[1]).to(right.dtype)
    exact = x.double() @ weight.double().T + bias.double()
    product = linear(x)
    assert product.dtype == right.dtype
    assert product.shape == exact.shape
    return float((product.double() - exact).norm() / exact.norm())


def random(outputs: int, inputs: int, kind: torch.dtype) -> torch.Tensor:
    """A weight with its bias as the last column."""
    torch.manual_seed(outputs)
    return torch.randn(outputs, inputs + 1).to(kind)


@pytest.mark.parametrize("quantisation", COST)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("is_exact", [False, True])
def test_a_linear_is_the_product(
    quantisation: Quantisation, kind: torch.dtype, outputs: int, inputs: int, is_exact: bool
) -> None:
    right = random(outputs, inputs, kind)
    linear = Linear(
        right[:, :-1].contiguous(), right[:, -1].contiguous(), quantisation=quantisation, is_exact=is_exact
    )
    for rows in ROWS:
        assert error(linear, rows=rows, right=right) <= COST[quantisation]


def test_rows_of_very_different_size_keep_their_digits() -> None:
    """Activations are quantised by row: a large row does not drown a small one."""
    right = random(96, 64, torch.float32)
    linear = Linear(right[:, :-1].contiguous(), quantisation="int8")
    x = torch.randn(2, 64) * torch.tensor([[1e-4], [1e3]])
    exact = x @ right[:, :-1].T
    errors = (linear(x) - exact).norm(dim=1) / exact.norm(dim=1)
    assert errors.max() <= COST["int8"]
    assert not linear(torch.zeros(1, 64)).any()


@pytest.mark.parametrize("outputs", [131, 256])
def test_fallbacks_multiply_like_the_fast_kernels(outputs: int) -> None:
    right = random(outputs, 512, torch.bfloat16)
    weight, bias = right[:, :-1].contiguous(), right[:, -1].contiguous()
    for rows in ROWS:
        assert error(WeightOnlyKernel.pack_int8(weight, bias), rows=rows, right=right) <= COST["int8"]
        assert error(WeightOnlyInt4Kernel.pack(weight, bias), rows=rows, right=right) <= COST["int4"]


def test_a_shared_weight_is_left_as_it_is() -> None:
    weight = random(88, 96, torch.bfloat16)
    linear = Linear(weight, is_shared=True)
    weight.zero_()
    assert not linear(torch.ones(2, 97).bfloat16()).any()


@pytest.mark.skipif(not is_sound(PackedKernel, torch.bfloat16), reason="this CPU or build does not pack bfloat16")
@pytest.mark.parametrize("quantisation", ["none", "int8", "int4"])
def test_a_packed_weight_leaves_no_copy(quantisation: Quantisation) -> None:
    weight = torch.ones(64, 64, dtype=torch.bfloat16)
    seen = weakref.ref(weight)
    linear = Linear(weight, quantisation=quantisation)
    del weight
    gc.collect()
    assert seen() is None
    assert linear(torch.ones(1, 64, dtype=torch.bfloat16))[0, 0].item() == 64


def test_a_row_that_int4_cannot_group_is_kept_in_int8() -> None:
    kernel = make_kernel(torch.randn(64, 40), None, quantisation="int4")
    assert kernel.shape.kernel in ("int8", "int8_weights")


@pytest.mark.parametrize("fault", ["missing", "wrong"])
def test_a_kernel_that_fails_its_trial_is_left_out(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def multiply(kernel: Int8Kernel, rows: torch.Tensor) -> torch.Tensor:
        if fault == "missing":
            raise NotImplementedError("onednn::qlinear_pointwise is not there")
        return rows.new_zeros(rows.shape[0], kernel.shape.outputs)

    monkeypatch.setattr(Int8Kernel, "__call__", multiply)
    monkeypatch.setattr(choose, "_verdicts", {})
    with caplog.at_level(logging.WARNING):
        kernel = make_kernel(torch.randn(64, 64), None, quantisation="int8")
    assert isinstance(kernel, WeightOnlyKernel)
    (record,) = caplog.records
    assert record.__dict__["kernel"] == "Int8Kernel"
    says = "is not there" if fault == "missing" else "off by"
    assert says in record.__dict__["why"]


@pytest.mark.parametrize("quantisation", COST)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("outputs", "inputs"), [(131, 64), (96, 40)])
def test_a_kernel_holds_the_planned_bytes_and_can_be_made_of_its_parts(
    quantisation: Quantisation, kind: torch.dtype, outputs: int, inputs: int
) -> None:
    right = random(outputs, inputs, kind)
    kernel = make_kernel(right[:, :-1].contiguous(), right[:, -1].contiguous(), quantisation=quantisation)
    dtype: Dtype = "float32" if kind == torch.float32 else "bfloat16"
    bias_bytes = outputs * kind.itemsize
    assert kernel.num_bytes == matrix_bytes(outputs, inputs, dtype, quantisation) + bias_bytes
    x = torch.randn(5, inputs).to(kind)
    assert torch.equal(type(kernel).of_parts(kernel.parts, kernel.shape)(x), kernel(x))


@pytest.mark.skipif(not is_sound(PackedKernel, torch.bfloat16), reason="this CPU or build does not pack bfloat16")
def test_a_large_weight_is_laid_out_for_many_rows_and_can_still_be_mapped() -> None:
    weight = torch.linspace(-1, 1, 2048 * 2048).view(2048, 2048).bfloat16()
    small, large = PackedKernel.pack(weight[:1024].contiguous(), None), PackedKernel.pack(weight.clone(), None)
    packed = large.parts["weight"]
    assert layout_of(packed) != layout_of(torch.ops.mkldnn._reorder_linear_weight(weight, 1))
    copy = torch.frombuffer(bytearray(bytes_of(packed)), dtype=torch.uint8)
    mapped = wrap(copy.data_ptr(), shape=tuple(packed.shape), dtype=torch.bfloat16, layout=layout_of(packed))
    for rows in ROWS:
        x = torch.randn(rows, 2048).bfloat16()
        assert torch.allclose(large(x)[:, :1024].float(), small(x).float(), rtol=0.02, atol=0.2)
        assert torch.equal(PackedKernel(mapped, None)(x), large(x))


@pytest.mark.skipif(not is_sound(Int8Kernel, torch.bfloat16), reason="this CPU or build has no int8 kernel")
def test_one_row_in_int8_takes_the_shorter_way_to_the_same_codes() -> None:
    """Only the rounding of the product may differ: by one step of bfloat16."""
    torch.manual_seed(3)
    kernel = Int8Kernel.pack(torch.randn(200, 256).bfloat16(), torch.randn(200).bfloat16())
    for scale in (1e-3, 1.0, 1e3):
        row = torch.randn(1, 256).bfloat16() * scale
        short, general = kernel(row).float(), kernel.multiply(row).float()
        assert torch.allclose(short, general, rtol=2**-6, atol=float(general.abs().max()) * 2**-8)


def test_int4_keeps_its_least_and_greatest_weight() -> None:
    weight = torch.linspace(-1, 2, 64 * 64).view(64, 64)
    kernel = Int4Kernel.pack(weight, None)
    product = kernel(torch.eye(64))
    assert torch.allclose(product.T, weight, atol=0.004)


@pytest.mark.parametrize(
    ("rows", "filled"), [(1, 1), (15, 15), (16, 16), (17, 32), (31, 32), (32, 32), (100, 112), (256, 256)]
)
def test_onednn_meets_few_numbers_of_rows_and_the_product_is_of_those_asked_for(rows: int, filled: int) -> None:
    x = torch.randn(rows, 24)
    all_rows = fill_rows(x)
    assert all_rows.shape == (filled, 24)
    assert torch.equal(all_rows[:rows], x)
    assert not all_rows[rows:].any()
    for kind in (Int8Kernel, PackedKernel):
        if kind.supports(torch.device("cpu"), torch.bfloat16):
            kernel = kind.pack(torch.randn(40, 24).to(torch.bfloat16), None)
            assert kernel(x.to(torch.bfloat16)).shape == (rows, 40)
