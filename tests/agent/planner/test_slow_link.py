"""One link becomes slow: runs over it say so, and the next plan goes another way. Facts in, plans out."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.facts.cluster import ClusterFacts
from agent.facts.run import MeasuredRun
from agent.planner.calibration import (
    MeasuredTime,
    corrections_of,
    fit_calibration,
    link_factors,
    over_links,
    seconds_of,
)
from agent.planner.evidence import calibrate, changes
from agent.planner.file import plan_hash, plan_to_toml
from agent.planner.learning.records import Figures, Lesson, PlanMeasured
from agent.planner.learning.workload import Context
from agent.planner.plan import Objective, Plan, Serving
from agent.planner.predict import predict_plan
from agent.planner.problem import make_problem
from agent.planner.rates import corrected_links
from agent.planner.regimes import CHANGED_RUNS, regime_starts
from tests.agent.planner.clusters import cluster, cpu, host, model, plan_for, request

THREE = cluster(*(host(name, cpu(8)) for name in "abc"))
SERVING = Serving(context=512, batch=1)
SMALL = model(num_layers=12, hidden=256, intermediate=704)
SLOW = 60.0
ASKED = {"serving": SERVING, "min_hosts": 2, "max_hosts": 2}


def measured(plan: Plan, facts: ClusterFacts, *, at_s: float) -> MeasuredRun:
    """What the plan would do on these facts, as its controller would have written it."""
    did = predict_plan(plan, SMALL, msgspec.structs.replace(facts, runs=()))
    return MeasuredRun(
        deployment=plan.name,
        plan_hash=plan_hash(plan),
        plan_toml=plan_to_toml(plan),
        spec=SMALL,
        prompt_tokens=did.prompt_tokens,
        streams=1,
        time_per_token_s=did.time_per_token_s,
        ttft_s=did.ttft_s,
        measured_at_s=at_s,
    )


def slowed(pair: tuple[str, str]) -> ClusterFacts:
    return msgspec.structs.replace(THREE, links=corrected_links(THREE, {pair: (SLOW, SLOW)}))


def with_runs(*runs: MeasuredRun) -> ClusterFacts:
    return msgspec.structs.replace(THREE, runs=runs)


def hosts(plan: Plan) -> tuple[str, ...]:
    return tuple(sorted(shard.host for stage in plan.replicas[0].stages for shard in stage.shards))


FIRST = plan_for(SMALL, THREE, **ASKED)
PAIR = hosts(FIRST)


def story(num_slow: int, *, num_fast: int = 4) -> list[MeasuredRun]:
    assert len(PAIR) == 2
    there = slowed((PAIR[0], PAIR[1]))
    fast = [measured(FIRST, THREE, at_s=float(index)) for index in range(num_fast)]
    return fast + [measured(FIRST, there, at_s=100.0 + index) for index in range(num_slow)]


def test_a_part_over_links_is_corrected_by_its_carrier_and_by_each_link() -> None:
    parts = over_links("tls messages", 0.03, [("a", "b"), ("a", "c"), ("b", "c")])
    assert sum(parts.values()) == pytest.approx(0.03)
    assert corrections_of("tls messages @ a+b") == ("tls messages", "link latency a+b")
    assert corrections_of("tls message_bytes @ a+b") == ("tls message_bytes", "link rate a+b")
    assert over_links("unix reduces", 0.01, []) == {"unix reduces": 0.01}
    assert corrections_of("unix reduces") == ("unix reduces",)


def test_what_one_link_is_slower_by_is_not_laid_on_the_others() -> None:
    runs = [MeasuredTime(parts={"tls messages @ a+b": 0.01, "cpu reads": 0.01}, measured_s=0.11)] * 3
    runs += [MeasuredTime(parts={"tls messages @ a+c": 0.01, "cpu reads": 0.01}, measured_s=0.02)] * 3
    calibration = fit_calibration(runs)
    factors = link_factors(calibration)
    assert factors["a", "b"][0] > 3 * factors["a", "c"][0]
    assert seconds_of(runs[0].parts, calibration) == pytest.approx(0.11, rel=0.15)
    assert seconds_of(runs[-1].parts, calibration) == pytest.approx(0.02, rel=0.2)
    assert seconds_of({"tls messages @ b+c": 0.01, "cpu reads": 0.01}, calibration) < 0.06, "nobody used b+c"


def test_one_slow_run_may_be_a_busy_machine_and_two_are_a_change() -> None:
    assert plan_hash(FIRST) not in changes(with_runs(*story(1)))
    assert changes(with_runs(*story(CHANGED_RUNS)))[plan_hash(FIRST)] == 100.0


def test_a_plan_that_was_made_anew_is_held_against_what_its_devices_did_before() -> None:
    fast, slow = story(0), story(CHANGED_RUNS)[-CHANGED_RUNS:]
    renamed = [msgspec.structs.replace(run, plan_hash=f"made anew {index}") for index, run in enumerate(slow)]
    facts = with_runs(*fast, *renamed)
    assert changes(facts) == dict.fromkeys([plan_hash(FIRST), "made anew 0", "made anew 1"], 100.0)
    assert predict_plan(FIRST, SMALL, facts) == predict_plan(FIRST, SMALL, with_runs(*fast, *slow))


@pytest.mark.parametrize("factor", [0.3, 5.0])
def test_what_runs_over_one_link_alone_show_is_not_laid_on_that_link(factor: float) -> None:
    """A cost model that is wrong from the start is wrong everywhere: another link would be no better."""
    runs = [
        msgspec.structs.replace(run, ttft_s=run.ttft_s * factor, time_per_token_s=run.time_per_token_s * factor)
        for run in story(0)
    ]
    assert not link_factors(calibrate(with_runs(*runs)))
    assert hosts(plan_for(SMALL, with_runs(*runs), **ASKED)) == PAIR


def test_after_a_change_the_next_plan_goes_over_other_links() -> None:
    facts = with_runs(*story(CHANGED_RUNS))
    again = predict_plan(FIRST, SMALL, facts)
    assert again.time_per_token_s == pytest.approx(facts.runs[-1].time_per_token_s, rel=0.25)
    chosen = plan_for(SMALL, facts, **ASKED)
    assert hosts(chosen) != PAIR
    assert chosen.predicted.time_per_token_s < 0.8 * again.time_per_token_s
    assert hosts(plan_for(SMALL, with_runs(*story(0)), **ASKED)) == PAIR, "before it, nothing spoke against it"


@pytest.mark.parametrize("slower", [200.0, 5000.0])
def test_a_link_whose_rate_alone_fell_is_left_for_the_first_token(slower: float) -> None:
    """Its latency is as it was: what a decode step sends hardly tells, and what a prompt does tells all."""
    asked = ASKED | {"objective": Objective(kind="ttft")}
    first = plan_for(SMALL, THREE, **asked)
    pair = hosts(first)
    there = msgspec.structs.replace(THREE, links=corrected_links(THREE, {(pair[0], pair[1]): (1.0, slower)}))
    fast = [measured(first, THREE, at_s=float(index)) for index in range(4)]
    facts = with_runs(*fast, *[measured(first, there, at_s=100.0 + index) for index in range(CHANGED_RUNS)])
    again = predict_plan(first, SMALL, facts)
    assert again.ttft_s == pytest.approx(facts.runs[-1].ttft_s, rel=0.35)
    assert again.time_per_token_s == pytest.approx(facts.runs[-1].time_per_token_s, rel=0.3)
    chosen = plan_for(SMALL, facts, **asked)
    assert hosts(chosen) != pair
    assert chosen.predicted.ttft_s < 0.8 * again.ttft_s


def test_the_new_plans_first_run_tells_that_its_link_is_as_it_was() -> None:
    facts = with_runs(*story(CHANGED_RUNS))
    chosen = plan_for(SMALL, facts, **ASKED)
    there = slowed((PAIR[0], PAIR[1]))
    later = with_runs(*facts.runs, *[measured(chosen, there, at_s=200.0 + index) for index in range(2)])
    factors = link_factors(calibrate(later))
    own = tuple(hosts(chosen))
    assert min(factors[PAIR[0], PAIR[1]]) > 2 * max(factors.get((own[0], own[1]), (1.0, 1.0)))
    promised = predict_plan(chosen, SMALL, later)
    assert promised.time_per_token_s == pytest.approx(later.runs[-1].time_per_token_s, rel=0.1)


def test_a_link_that_is_fast_again_is_used_again() -> None:
    runs = story(CHANGED_RUNS)
    runs += [measured(FIRST, THREE, at_s=300.0 + index) for index in range(CHANGED_RUNS)]
    assert changes(with_runs(*runs))[plan_hash(FIRST)] == 300.0
    assert predict_plan(FIRST, SMALL, with_runs(*runs)).time_per_token_s == pytest.approx(
        runs[0].time_per_token_s, rel=0.1
    )


def test_lessons_are_held_against_what_is_predicted_today_and_end_with_a_change() -> None:
    facts = with_runs(*story(CHANGED_RUNS))
    promised = Figures(time_per_token_s=FIRST.predicted.time_per_token_s)
    lesson = Lesson(
        at_s=2.0,
        deployment="chat",
        generation=1,
        plan_hash=plan_hash(FIRST),
        what=PlanMeasured(
            model="llama-1b",
            arm="pipeline 2",
            context=Context(prompt_tokens=256, output_tokens=64, batch=1, num_layers=16, weight_bytes=2e9),
            predicted=promised,
            measured=Figures(time_per_token_s=facts.runs[-1].time_per_token_s),
            slots=1,
            finished=32,
            failed=0,
            busy_s=1.0,
            observed_s=1.0,
        ),
    )
    elsewhere = msgspec.structs.replace(lesson, plan_hash="another")
    later = msgspec.structs.replace(lesson, at_s=102.0)
    problem = make_problem(request(SMALL, facts, lessons=(lesson, elsewhere, later), **ASKED))
    kept = problem.lessons
    assert kept[0] == elsewhere, "of a plan whose runs nobody knows, the promise is all there is"
    (last,) = kept[1:]
    assert isinstance(last.what, PlanMeasured)
    assert last.what.predicted.time_per_token_s == pytest.approx(facts.runs[-1].time_per_token_s, rel=0.25)


@given(
    st.lists(st.floats(-0.1, 0.1), min_size=1, max_size=12),
    st.lists(st.floats(1.0, 1.2), min_size=0, max_size=12),
)
def test_a_regime_begins_where_the_change_did(before: list[float], after: list[float]) -> None:
    expected = len(before) if len(after) >= CHANGED_RUNS else 0
    assert regime_starts([*before, *after])[-1] == expected
