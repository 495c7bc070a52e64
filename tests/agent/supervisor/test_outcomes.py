"""Choices of plans and what was measured of them are journalled, to be learnt from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.journal import Journal
from agent.planner.learning.records import PlanChosen, PlanMeasured
from agent.planner.plan import Learning, Plan
from agent.supervisor.deployment import Controlled
from agent.supervisor.outcomes import OutcomeBook
from agent.supervisor.stretch import Stretch
from tests.agent.planner.clusters import THREE_CPUS, model, plan_for
from tests.agent.supervisor.gateway_counts import counts

SPEC = model()
PLAN = plan_for(SPEC, THREE_CPUS, stages=2)
CONTROLLED = Controlled(
    plan_toml="",
    plan_hash="abc",
    spec=SPEC,
    members=(),
    generation=3,
    spawn_generation=3,
    gateway_socket="",
    applied_at_s=0.0,
    checked=None,
)


STRETCH = Stretch(
    before=counts(),
    after=counts(
        finished=2,
        prompt_tokens=200,
        generated_tokens=42,
        busy_s=1.2,
        ttft_s_sum=0.4,
        num_first_tokens=2,
        decode_s_sum=2.0,
        decoded_tokens=40,
    ),
    observed_s=3.0,
)


@pytest.fixture
def journal(tmp_path: Path) -> Any:
    found = Journal(tmp_path / "journal.db", host="h1")
    yield found
    found.close()


def written(journal: Journal) -> list[PlanChosen | PlanMeasured]:
    return [lesson.what for lesson in OutcomeBook(journal).lessons().lessons]


def open_outcome(journal: Journal, plan: Plan = PLAN) -> Any:
    return OutcomeBook(journal).open(plan, CONTROLLED)


def test_a_stretch_is_written_with_what_was_promised_for_it(journal: Journal) -> None:
    open_outcome(journal).write_measured(STRETCH)
    chosen, found = written(journal)
    assert isinstance(chosen, PlanChosen)
    assert isinstance(found, PlanMeasured)
    assert (chosen.arm, found.arm) == ("pipeline 2", "pipeline 2")
    assert (found.finished, found.failed, found.slots) == (2, 0, 8)
    assert found.measured.time_per_token_s == pytest.approx(0.05)
    assert found.measured.ttft_s == pytest.approx(0.2)
    assert found.measured.tokens_per_s == pytest.approx(35.0)
    assert (found.busy_s, found.observed_s) == (1.2, 3.0)
    assert found.context.prompt_tokens == 100
    assert found.context.batch == pytest.approx(2.0)
    assert found.context.link == "network"
    assert found.predicted.time_per_token_s == PLAN.predicted.time_per_token_s


def test_a_choice_is_written_once_however_often_its_controller_restarts(journal: Journal) -> None:
    for _ in range(3):
        open_outcome(journal)
    assert len(written(journal)) == 1


def test_a_plan_that_asks_not_to_be_recorded_is_not(journal: Journal) -> None:
    open_outcome(journal, msgspec.structs.replace(PLAN, learning=Learning(records=False))).write_measured(STRETCH)
    assert written(journal) == []
