"""In exact mode a row's product is the same to the bit, whatever shares the call."""

from __future__ import annotations

import pytest
import torch

from agent.engine.linear import Linear, exact
from agent.engine.linear.exact import ExactRows, row_counts
from agent.engine.linear.kernel import Kernel, KernelShape
from agent.facts.model import Quantisation
from agent.planner.plan import BLOCK_TOKENS

COUNTS = (3, 16, 17, 64, 100, 256, 300)


@pytest.mark.parametrize(
    ("quantisation", "kind"),
    [
        ("none", torch.float32),
        ("none", torch.bfloat16),
        ("int8", torch.float32),
        ("int8", torch.bfloat16),
        ("int4", torch.bfloat16),
        ("fp8", torch.bfloat16),
    ],
)
@pytest.mark.parametrize(("outputs", "inputs"), [(131, 64), (576, 1536), (1536, 768)])
def test_a_row_does_not_depend_on_its_neighbours(
    quantisation: Quantisation, kind: torch.dtype, outputs: int, inputs: int
) -> None:
    torch.manual_seed(0)
    linear = Linear(torch.randn(outputs, inputs).to(kind), quantisation=quantisation, is_exact=True)
    rows = torch.randn(max(COUNTS), inputs).to(kind)
    alone = torch.cat([linear(row) for row in torch.split(rows, 1)])
    for count in COUNTS:
        assert torch.equal(linear(rows[:count]), alone[:count]), count
    assert torch.equal(linear(rows[40:57]), alone[40:57])


class Counting(Kernel):
    """A kernel whose rows carry how many shared its call, and where they stood when `by_place`."""

    def __init__(self, *, outputs: int, by_place: bool) -> None:
        self.shape = KernelShape(
            kernel=f"counting-{by_place}",
            outputs=outputs,
            inputs=2,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
        self.parts = {}
        self.calls: list[int] = []
        self._by_place = by_place

    @classmethod
    def of_parts(cls, _parts: dict[str, torch.Tensor], shape: KernelShape, /) -> Counting:
        return cls(outputs=shape.outputs, by_place=shape.kernel == "counting-True")

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        self.calls.append(rows.shape[0])
        product = rows[:, :1].expand(-1, self.shape.outputs) + rows.shape[0]
        return product + torch.arange(rows.shape[0])[:, None] if self._by_place else product


def test_a_kernel_that_minds_its_rows_gets_full_blocks() -> None:
    kernel = Counting(outputs=3, by_place=False)
    linear = ExactRows(kernel)
    kernel.calls.clear()
    assert torch.equal(linear(torch.ones(35, 2)), torch.full((35, 3), 1.0 + BLOCK_TOKENS))
    assert torch.equal(linear(torch.ones(1, 2)), torch.full((1, 3), 1.0 + BLOCK_TOKENS))
    assert set(kernel.calls) == {BLOCK_TOKENS}
    assert len(kernel.calls) == 3 + 1


def test_a_kernel_that_minds_the_place_of_a_row_gets_them_one_by_one() -> None:
    kernel = Counting(outputs=3, by_place=True)
    linear = ExactRows(kernel)
    kernel.calls.clear()
    assert torch.equal(linear(torch.ones(5, 2)), torch.full((5, 3), 2.0))
    assert kernel.calls == [1] * 5


def test_a_large_head_is_not_tried_at_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "_MAX_TRIAL_OUTPUTS", 1000)
    kernel = Counting(outputs=100, by_place=False)
    assert row_counts(kernel).wide == ()
    assert max(kernel.calls) == BLOCK_TOKENS
