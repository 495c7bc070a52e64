"""Adaptive: let every strategy propose and the estimates decide; the rule of thumb is told beside it. Pure."""

from __future__ import annotations

from agent.planner.hybrid import HybridStrategy
from agent.planner.layout import Layout
from agent.planner.pipeline import PipelineStrategy
from agent.planner.problem import Problem, Strategy
from agent.planner.tensor import TensorStrategy

TENSOR_ABOVE_TOKENS = 2048
PIPELINE_ABOVE_LAYERS = 20


class AdaptiveStrategy:
    """All strategies at once. The caller picks by the objective."""

    name = "adaptive"

    def __init__(self) -> None:
        self._strategies: tuple[Strategy, ...] = (PipelineStrategy(), TensorStrategy(), HybridStrategy())

    def propose(self, problem: Problem) -> list[Layout]:
        layouts = [layout for strategy in self._strategies for layout in strategy.propose(problem)]
        return list(dict.fromkeys(layouts))


def rule_of_thumb(num_layers: int, prompt_tokens: int) -> str:
    """What folklore says: tensor parallelism for long prompts, pipelines for deep models. It ignores the links."""
    if prompt_tokens > TENSOR_ABOVE_TOKENS:
        return "tensor"
    return "pipeline" if num_layers > PIPELINE_ABOVE_LAYERS else "tensor"


def shape_of(layout: Layout) -> str:
    """What a layout is: `single device`, `pipeline`, `tensor` or `hybrid`."""
    if len(layout.places) == 1:
        return "single device"
    if len(layout.stages) == 1:
        return "tensor"
    return "pipeline" if max(layout.tensor_parallel_sizes) == 1 else "hybrid"


STRATEGIES: dict[str, type[Strategy]] = {
    "pipeline": PipelineStrategy,
    "tensor": TensorStrategy,
    "hybrid": HybridStrategy,
    "adaptive": AdaptiveStrategy,
}
