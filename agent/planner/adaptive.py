"""Adaptive: let every strategy propose and the estimates decide; the rule of thumb is told beside it. Pure."""

from __future__ import annotations

from agent.planner.hybrid import HybridStrategy
from agent.planner.layout import Layout, shape_of_sizes
from agent.planner.pipeline import PipelineStrategy
from agent.planner.problem import Problem, Strategy
from agent.planner.tensor import TensorStrategy

TENSOR_ABOVE_TOKENS = 2048
PIPELINE_ABOVE_LAYERS = 20
SLOW_LINK_BYTES_PER_S = 1.25e9
"""10 Gbit/s: two sums a layer take longer than what sharing the layer saves, whatever the prompt."""


class AdaptiveStrategy:
    """All strategies at once. The caller picks by the objective."""

    name = "adaptive"

    def __init__(self) -> None:
        self._strategies: tuple[Strategy, ...] = (PipelineStrategy(), TensorStrategy(), HybridStrategy())

    def propose(self, problem: Problem) -> list[Layout]:
        layouts = [layout for strategy in self._strategies for layout in strategy.propose(problem)]
        return list(dict.fromkeys(layouts))


def rule_of_thumb(num_layers: int, prompt_tokens: int, *, link_bytes_per_s: float) -> str:
    """What folklore says: tensor parallelism for long prompts, pipelines for deep models, hybrids for both.

    Over slow links it is a pipeline in any case.
    """
    if link_bytes_per_s <= SLOW_LINK_BYTES_PER_S:
        return "pipeline"
    if prompt_tokens > TENSOR_ABOVE_TOKENS:
        return "hybrid" if num_layers > PIPELINE_ABOVE_LAYERS else "tensor"
    return "pipeline" if num_layers > PIPELINE_ABOVE_LAYERS else "tensor"


def shape_of(layout: Layout) -> str:
    """What a layout is: `single device`, `pipeline`, `tensor` or `hybrid`."""
    return shape_of_sizes(layout.tensor_parallel_sizes)


STRATEGIES: dict[str, type[Strategy]] = {
    "pipeline": PipelineStrategy,
    "tensor": TensorStrategy,
    "hybrid": HybridStrategy,
    "adaptive": AdaptiveStrategy,
}
