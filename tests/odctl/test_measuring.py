"""What is put on measured plans, and how they stand apart from what serves."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from agent.errors import FleetError
from agent.planner.plan import Serving
from odctl.measuring import OWN_PORTS, TrialLoads, _apart, predicted_load_s, trial_loads
from tests.agent.planner.clusters import THREE_CPUS, model, plan_for

PLAN = plan_for(model(), THREE_CPUS, serving=Serving(batch=4, context=512))


def loads(**asked: Any) -> TrialLoads:
    usual = {"requests": None, "concurrency": None, "prompt_tokens": None, "max_tokens": None}
    return trial_loads([PLAN], **usual | asked)


def test_by_default_the_load_is_what_the_prediction_is_for() -> None:
    found = loads()
    assert (found.alone.concurrency, found.full.concurrency) == (1, 4)
    assert found.alone.prompt.low == PLAN.predicted.prompt_tokens
    assert found.alone.output.low + found.alone.prompt.low <= 512
    assert found.alone.num_requests == 40
    assert found.alone.seed != found.full.seed, "a prompt asked twice would be found in the cache"


def test_the_least_full_batch_of_all_plans_is_asked_of_each() -> None:
    twice = plan_for(model(), THREE_CPUS, serving=Serving(batch=2, context=512))
    found = trial_loads([PLAN, twice], requests=None, concurrency=None, prompt_tokens=None, max_tokens=None)
    assert found.full.concurrency == 2


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"max_tokens": 1}, "time per token needs at least 2"),
        ({"prompt_tokens": 500, "max_tokens": 20}, "do not fit the context of 512"),
        ({"concurrency": 17}, "carries 16"),
        ({"concurrency": 0}, "0 at a time"),
        ({"requests": 0}, "0 requests"),
    ],
)
def test_a_load_that_cannot_be_is_refused(asked: dict[str, int], why: str) -> None:
    with pytest.raises(FleetError, match=why) as refusal:
        loads(**asked)
    assert refusal.value.code == "E118"


def test_the_time_it_takes_is_told_from_the_predictions() -> None:
    found = loads(requests=10, concurrency=1, max_tokens=11)
    alone_s = 10 * (PLAN.predicted.ttft_s + 10 * PLAN.predicted.time_per_token_s)
    assert predicted_load_s(PLAN, found) > alone_s
    assert predicted_load_s(PLAN, loads(requests=20, concurrency=1, max_tokens=11)) == pytest.approx(
        2 * predicted_load_s(PLAN, found)
    )


def test_a_plan_whose_name_is_free_is_measured_as_it_is() -> None:
    other = msgspec.structs.replace(PLAN, name="other", serving=Serving(listen="127.0.0.1:5"))
    assert _apart(PLAN, []) is PLAN
    assert _apart(PLAN, [other]) is PLAN


def test_a_plan_whose_name_serves_gets_another_name_and_address() -> None:
    apart = _apart(PLAN, [PLAN])
    assert apart.name.startswith(f"{PLAN.name}-measure-")
    address, _, port = apart.serving.listen.rpartition(":")
    assert address == "127.0.0.1"
    assert OWN_PORTS[0] <= int(port) <= OWN_PORTS[1]
    assert apart.replicas == PLAN.replicas


def test_a_plan_whose_address_is_taken_gets_another_address_alone() -> None:
    other = msgspec.structs.replace(PLAN, name="other")
    apart = _apart(PLAN, [other])
    assert apart.name == PLAN.name
    assert apart.serving.listen != PLAN.serving.listen
