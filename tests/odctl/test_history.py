"""Journals of several controllers become one history; a rollback finds its plan in it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from agent.errors import FleetError
from agent.planner.file import plan_hash, plan_to_toml
from agent.planner.plan import Plan, Serving
from agent.wire.agent import DeploymentRecord
from agent.wire.history import DeploymentEnd, GenerationHistory, MeasuredFigures, ServedGeneration
from odctl.history import Entry, held_figures, join_histories, last_apply_s, plan_before, plan_of_generation
from tests.agent.planner.clusters import THREE_CPUS, model, plan_for

ONE = plan_for(model(), THREE_CPUS, serving=Serving(batch=4, context=512))
TWO = plan_for(model(), THREE_CPUS, serving=Serving(batch=4, context=512), stages=2)
PLANS = {plan_hash(plan): plan_to_toml(plan) for plan in (ONE, TWO)}


def served(generation: int, plan: Plan, *, at_s: float, **changed: Any) -> ServedGeneration:
    usual = ServedGeneration(
        deployment="chat",
        generation=generation,
        plan_hash=plan_hash(plan),
        cause="apply",
        by="ann@desk:1",
        reason="",
        served_at_s=at_s,
        controller="a",
    )
    return msgspec.structs.replace(usual, **changed)


def history(*generations: ServedGeneration, **changed: Any) -> GenerationHistory:
    return msgspec.structs.replace(GenerationHistory(generations=generations, plans=PLANS), **changed)


def record(generation: int, plan: Plan) -> DeploymentRecord:
    return DeploymentRecord(
        name="chat", generation=generation, plan_hash=plan_hash(plan), controller="a", members=()
    )


def states(entries: tuple[Entry, ...]) -> list[tuple[int, str]]:
    return [(entry.served.generation, entry.state) for entry in entries]


def test_controllers_that_took_turns_make_one_history_by_time() -> None:
    """1. a applied  2. the next plan has b as its controller  3. healing there. The record says what is current."""
    of_a = history(served(1, ONE, at_s=10))
    of_b = history(served(2, TWO, at_s=20), served(3, TWO, at_s=30, cause="healing"), plans={})
    entries = join_histories([of_b, of_a], [record(1, ONE), record(3, TWO)])
    assert states(entries) == [(1, "replaced"), (2, "replaced"), (3, "current")]
    assert all(entry.plan is not None for entry in entries), "a text serves wherever its hash stands"


def test_what_was_destroyed_says_so_and_generations_begin_anew() -> None:
    end = DeploymentEnd(deployment="chat", generation=1, at_s=15, by="bob@desk:2")
    entries = join_histories(
        [history(served(1, ONE, at_s=10), served(1, TWO, at_s=20), ends=(end,))], [record(1, TWO)]
    )
    assert states(entries) == [(1, "destroyed"), (1, "current")]
    assert [entry.ended_by for entry in entries] == ["bob@desk:2", ""]
    assert plan_of_generation(entries, 1, deployment="chat").plan == TWO, "the newest of that number"


def test_the_plan_before_is_the_newest_other_one() -> None:
    """Healing and applies of the same plan are passed over, and so is what was only measured."""
    entries = join_histories(
        [
            history(
                served(1, TWO, at_s=10),
                served(2, ONE, at_s=20),
                served(3, TWO, at_s=30, cause="measure"),
                served(4, ONE, at_s=40, cause="healing"),
            )
        ],
        [record(4, ONE)],
    )
    assert plan_before(entries, deployment="chat").served.generation == 1


def test_a_destroyed_deployment_goes_back_to_its_last_plan() -> None:
    end = DeploymentEnd(deployment="chat", generation=2, at_s=30, by="")
    entries = join_histories([history(served(1, ONE, at_s=10), served(2, TWO, at_s=20), ends=(end,))], [])
    assert plan_before(entries, deployment="chat").served.generation == 2


@pytest.mark.parametrize(
    ("generations", "way"),
    [
        ((served(1, ONE, at_s=10),), "no plan of chat is known from before"),
        ((served(1, ONE, at_s=10), served(2, ONE, at_s=20)), "no plan of chat is known from before"),
    ],
)
def test_without_another_plan_there_is_nothing_before(generations: tuple[ServedGeneration, ...], way: str) -> None:
    entries = join_histories([history(*generations)], [record(generations[-1].generation, ONE)])
    with pytest.raises(FleetError, match=way) as refusal:
        plan_before(entries, deployment="chat")
    assert refusal.value.code == "E110"


def test_an_unknown_generation_is_refused_with_those_that_there_are() -> None:
    entries = join_histories([history(served(1, ONE, at_s=10), served(2, TWO, at_s=20))], [record(2, TWO)])
    with pytest.raises(FleetError, match="no generation 7") as refusal:
        plan_of_generation(entries, 7, deployment="chat")
    assert refusal.value.hint == "known: 1, 2"


def test_a_plan_that_no_journal_has_any_more_is_named() -> None:
    entries = join_histories(
        [history(served(1, ONE, at_s=10), served(2, TWO, at_s=20), plans={})], [record(2, TWO)]
    )
    with pytest.raises(FleetError, match=f"{plan_hash(ONE)[:12]} of generation 1 of chat is in no journal") as lost:
        plan_before(entries, deployment="chat")
    assert lost.value.code == "E105"


def test_figures_are_held_against_predictions_of_their_own_load() -> None:
    """A lone request's times against those predicted alone, many streams' rate against the full batch's."""
    as_predicted = ONE.predicted.prompt_tokens
    alone = MeasuredFigures(
        at_s=1,
        source="window",
        streams=1.1,
        prompt_tokens=as_predicted,
        ttft_s=0.5,
        time_per_token_s=0.25,
        tokens_per_s=3.5,
    )
    full = msgspec.structs.replace(alone, at_s=2, streams=3.9, ttft_s=2.0, time_per_token_s=0.5, tokens_per_s=7.0)
    (entry,) = join_histories([history(served(1, ONE, at_s=0, measured=(alone, full)))], [record(1, ONE)])
    held = held_figures(entry)
    assert {name: each.measured for name, each in held.items()} == {
        "ttft": 0.5,
        "time_per_token": 0.25,
        "throughput": 7.0,
    }
    assert held["ttft"].ratio == pytest.approx(0.5 / ONE.predicted.ttft_s)
    assert held["ttft"].is_inside is None, "of lengths that are near the predicted ones at best"
    short = msgspec.structs.replace(alone, prompt_tokens=as_predicted / 8)
    (entry,) = join_histories([history(served(1, ONE, at_s=0, measured=(short,)))], [])
    assert held_figures(entry)["ttft"].measured is None, "of another prompt"
    (bare,) = join_histories([history(served(1, ONE, at_s=0))], [])
    assert {each.measured for each in held_figures(bare).values()} == {None}


def test_the_newest_apply_of_a_plan_says_how_long_the_next_one_takes() -> None:
    entries = join_histories(
        [
            history(
                served(1, ONE, at_s=10, apply_s=9.0),
                served(2, ONE, at_s=20, apply_s=4.0),
                served(3, ONE, at_s=30, cause="healing"),
            )
        ],
        [],
    )
    assert last_apply_s(entries, [plan_hash(ONE), plan_hash(TWO)]) == (4.0, None)
