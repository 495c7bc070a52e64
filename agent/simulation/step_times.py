"""How long one step takes in each stage and between them: the planner's cost model, asked step by step. Pure.

`Calibration` corrects it by what a run of the same deployment showed (`simulation.calibrate`).
"""

from __future__ import annotations

import math

import msgspec

from agent.facts.model import ModelSpec
from agent.planner.cost import PipelineTimes, pipeline_times
from agent.planner.layout import Layout
from agent.planner.plan import BLOCK_TOKENS, Plan, Serving
from agent.planner.rates import LinkTable
from agent.planner.step_shape import StepShape
from agent.wire.rank import SequenceSlice, Step


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """What the cost model is corrected by; the defaults leave it as it is."""

    decode: float = 1.0
    """Factor on a stage's seconds in steps of decoding sequences alone."""
    prefill: float = 1.0
    """Factor on a stage's seconds in steps with more rows than sequences."""
    row_s: float = 0.0
    """Seconds of each row of a step, over all stages by their layers."""
    request_s: float = 0.0
    """Seconds from a client's request to the scheduler: HTTP and the tokenizer."""
    jitter: float = 0.0
    """Standard deviation of the logarithm of a stage's seconds: what else wants its cores. Their mean stays."""


class Drafting(msgspec.Struct, frozen=True, kw_only=True):
    """A plan's draft model: its leader of the last stage passes through it once for each guess of a step.

    What it computes of prompts, behind the step that brings them, is left out.
    """

    cost: float
    """As the scheduler is told: `DraftRef.predicted_cost`."""
    pass_s: float
    acceptance: float
    """Chance that a guess is right when those before it were."""


def drafting_of(plan: Plan, *, acceptance: float) -> Drafting | None:
    """None for a plan without a draft model."""
    if plan.draft is None:
        return None
    cost = plan.draft.predicted_cost
    return Drafting(cost=cost, pass_s=cost * plan.predicted.time_per_token_s, acceptance=acceptance)


class StepTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of one step. `stages` compute, `sends` keep their sender busy, `hops` are from stage to stage."""

    stages: tuple[float, ...]
    hops: tuple[float, ...]
    sends: tuple[float, ...]
    return_s: float
    """From the last stage through the gateway to the next step: nobody computes meanwhile."""


class StepCosts:
    """Times of one replica's steps, each shape computed once."""

    def __init__(
        self,
        spec: ModelSpec,
        layout: Layout,
        serving: Serving,
        *,
        links: LinkTable,
        calibration: Calibration | None = None,
        known: dict[StepShape, PipelineTimes] | None = None,
    ) -> None:
        """`known` may be shared among instances that differ in their calibration alone."""
        self.layout = layout
        self._spec = spec
        self._serving = serving
        self._links = links
        self._calibration = calibration or Calibration()
        self._known = {} if known is None else known
        self._times: dict[StepShape, StepTimes] = {}

    @property
    def num_stages(self) -> int:
        return len(self.layout.stages)

    def of(self, step: Step) -> StepTimes:
        shape = shape_of(step)
        times = self._times.get(shape)
        if times is None:
            times = self._times[shape] = self._corrected(shape)
        return times

    def _corrected(self, shape: StepShape) -> StepTimes:
        by, times = self._calibration, self._modelled(shape)
        factor = by.prefill if shape.is_prefill else by.decode
        num_layers = self._spec.num_layers
        # The cost model adds the gateway's part to the last stage; here that stage goes on meanwhile.
        turn_s = times.costs[-1].turn_s
        own_s = (*times.stages[:-1], times.stages[-1] - turn_s)
        return StepTimes(
            stages=tuple(
                factor * seconds + by.row_s * shape.rows * stage.num_layers / num_layers
                for seconds, stage in zip(own_s, self.layout.stages, strict=True)
            ),
            hops=times.hops,
            sends=times.sends,
            return_s=turn_s,
        )

    def _modelled(self, shape: StepShape) -> PipelineTimes:
        times = self._known.get(shape)
        if times is None:
            times = self._known[shape] = pipeline_times(
                self._spec,
                self.layout,
                step=shape,
                dtype=self._serving.dtype,
                links=self._links,
                quantisation=self._serving.quantisation,
            )
        return times


def shape_of(step: Step) -> StepShape:
    """A step as the cost model sees it: its context is the mean of what its rows attend to.

    Rounded up to whole blocks, so that a decode does not make a shape of its own of each token.
    """
    rows = sum(len(part.tokens) for part in step.slices)
    attended = sum(len(part.tokens) * _mean_context(part) for part in step.slices)
    return StepShape(
        rows=rows,
        sequences=len(step.slices),
        context=max(1, math.ceil(attended / rows / BLOCK_TOKENS)) * BLOCK_TOKENS,
        sampled=sum(part.drafts + 1 for part in step.slices if part.samples),
    )


def _mean_context(part: SequenceSlice) -> float:
    """Positions up to and with its own that a row of the slice attends to, on average (causal)."""
    return part.start + (len(part.tokens) + 1) / 2
