"""A gateway's counts become measurements: what came between two looks, written once it is over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.journal import Journal
from agent.planner.learning.records import PlanChosen, PlanMeasured
from agent.planner.plan import Learning, Plan
from agent.supervisor.deployment import Controlled
from agent.supervisor.outcomes import IDLE_S, MAX_WINDOW_S, OutcomeBook
from agent.wire.gateway import BackendStatus
from tests.agent.planner.clusters import THREE_CPUS, model, plan_for

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


def counts(**changed: Any) -> BackendStatus:
    usual = BackendStatus(
        deployment="chat",
        generation=3,
        plan_hash="abc",
        state="active",
        slots=8,
        prompt_tokens=0,
        generated_tokens=0,
        tokens_per_s=0.0,
        ttft_s_p50=0.0,
        ttft_s_p95=0.0,
        time_per_token_s_p50=0.0,
        time_per_token_s_p95=0.0,
        running=0,
        queued=0,
        finished=0,
        failed=0,
        cancelled=0,
    )
    return msgspec.structs.replace(usual, **changed)


AFTER_TWO = counts(
    finished=2,
    prompt_tokens=200,
    generated_tokens=42,
    busy_s=1.2,
    ttft_s_sum=0.4,
    num_first_tokens=2,
    decode_s_sum=2.0,
    decoded_tokens=40,
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


def test_a_measurement_is_of_what_came_between_and_is_written_when_all_is_quiet(journal: Journal) -> None:
    outcome = open_outcome(journal)
    outcome.look(counts(), now_s=0.0)
    outcome.look(counts(running=2), now_s=1.0)
    outcome.look(AFTER_TWO, now_s=2.0)
    assert len(written(journal)) == 1, "another request may follow at once"
    outcome.look(AFTER_TWO, now_s=2.0 + IDLE_S)
    chosen, found = written(journal)
    assert isinstance(chosen, PlanChosen)
    assert isinstance(found, PlanMeasured)
    assert (chosen.arm, found.arm) == ("pipeline 2", "pipeline 2")
    assert (found.finished, found.failed, found.slots) == (2, 0, 8)
    assert found.measured.time_per_token_s == pytest.approx(0.05)
    assert found.measured.ttft_s == pytest.approx(0.2)
    assert found.measured.tokens_per_s == pytest.approx(35.0)
    assert found.context.prompt_tokens == 100
    assert found.context.batch == pytest.approx(2.0)
    assert found.context.link == "network"
    assert found.predicted.time_per_token_s == PLAN.predicted.time_per_token_s
    outcome.look(AFTER_TWO, now_s=20.0)
    assert len(written(journal)) == 2, "nothing new came"


def test_under_a_load_without_end_a_measurement_is_due_now_and_then(journal: Journal) -> None:
    outcome = open_outcome(journal)
    outcome.look(counts(), now_s=0.0)
    busy = msgspec.structs.replace(AFTER_TWO, running=3)
    outcome.look(busy, now_s=MAX_WINDOW_S - 1)
    assert len(written(journal)) == 1
    outcome.look(busy, now_s=MAX_WINDOW_S)
    assert len(written(journal)) == 2


def test_a_choice_is_written_once_however_often_its_controller_restarts(journal: Journal) -> None:
    for _ in range(3):
        open_outcome(journal)
    assert len(written(journal)) == 1


def test_counts_of_a_gateway_that_began_anew_are_not_subtracted_from(journal: Journal) -> None:
    outcome = open_outcome(journal)
    outcome.look(AFTER_TWO, now_s=0.0)
    outcome.look(counts(finished=1, generated_tokens=5), now_s=1.0)
    outcome.look(counts(finished=1, generated_tokens=5), now_s=9.0)
    assert len(written(journal)) == 1


def test_a_plan_that_asks_not_to_be_recorded_is_not(journal: Journal) -> None:
    outcome = open_outcome(journal, msgspec.structs.replace(PLAN, learning=Learning(records=False)))
    outcome.look(counts(), now_s=0.0)
    outcome.look(AFTER_TWO, now_s=9.0)
    outcome.look(AFTER_TWO, now_s=19.0)
    assert written(journal) == []
