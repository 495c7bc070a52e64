from __future__ import annotations

import pytest

from agent.errors import FleetError
from agent.planner.cost import pipeline_times
from agent.planner.layout import layouts_of_plan
from agent.planner.rates import LinkTable
from agent.planner.step_shape import StepShape
from agent.simulation.step_times import Calibration, shape_of
from agent.wire.rank import SequenceSlice, Step
from tests.agent.planner.clusters import LLAMA_1B, THREE_CPUS, cluster, cpu, host
from tests.agent.simulation.deployments import costs_of, plan_with

DECODES = Step(
    step_id=0, slices=[SequenceSlice(slot=slot, start=98, tokens=[1], samples=True) for slot in range(3)]
)
CHUNK = Step(step_id=1, slices=[SequenceSlice(slot=0, start=0, tokens=[1] * 63, samples=False)])


def test_a_step_is_seen_by_its_rows_and_what_they_attend_to() -> None:
    assert shape_of(DECODES) == StepShape(rows=3, sequences=3, context=112, sampled=3)
    assert shape_of(CHUNK) == StepShape(rows=63, sequences=1, context=32, sampled=0)


def test_without_a_calibration_times_are_the_cost_models() -> None:
    plan = plan_with(stages=2)
    [costs] = costs_of(plan)
    found = costs.of(DECODES)
    modelled = pipeline_times(
        LLAMA_1B,
        layouts_of_plan(plan, THREE_CPUS)[0],
        step=shape_of(DECODES),
        dtype=plan.serving.dtype,
        links=LinkTable(THREE_CPUS),
    )
    assert sum(found.stages) + sum(found.hops) + found.return_s == pytest.approx(modelled.total_s)


def test_a_calibration_tells_decode_from_prefill_and_counts_rows_by_layers() -> None:
    plan = plan_with(stages=2)
    [plain], [changed] = costs_of(plan), costs_of(plan, Calibration(decode=2.0, prefill=0.5, row_s=1e-3))
    for step, factor, rows in ((DECODES, 2.0, 3), (CHUNK, 0.5, 63)):
        before, after = plain.of(step), changed.of(step)
        assert sum(after.stages) == pytest.approx(factor * sum(before.stages) + rows * 1e-3)
        assert after.hops == before.hops


def test_a_device_that_is_gone_is_named() -> None:
    with pytest.raises(FleetError, match="b/cpu, which is not in the cluster"):
        layouts_of_plan(plan_with(stages=3), cluster(host("a", cpu(64)), host("c", cpu(64))))
