from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.facts.run import MeasuredRun
from agent.journal import Journal
from agent.planner.file import plan_hash, plan_to_toml
from agent.planner.plan import Plan, Serving
from agent.supervisor.deployment import Controlled
from agent.supervisor.runs import KIND, LEAST_REQUESTS, MOST_REQUESTS, RunBook
from agent.supervisor.stretch import Stretch
from agent.wire.gateway import BackendStatus, CheckReport
from tests.agent.planner.clusters import LLAMA_1B, THREE_CPUS, plan_for
from tests.agent.supervisor.gateway_counts import after, counts

CHECKED = CheckReport(is_ok=True, reason="", prompt_tokens=12, ttft_s=0.05, time_per_token_s=0.02, tokens=(1, 2))


PLAN = plan_for(LLAMA_1B, THREE_CPUS)
CONTROLLED = Controlled(
    plan_toml=plan_to_toml(PLAN),
    plan_hash=plan_hash(PLAN),
    spec=LLAMA_1B,
    members=(),
    generation=3,
    spawn_generation=3,
    gateway_socket="",
    applied_at_s=0.0,
    checked=None,
)


@pytest.fixture
def book(tmp_path: Path) -> Iterator[RunBook]:
    journal = Journal(tmp_path / "journal.db", host="a")
    yield RunBook(journal, clock=lambda: 7.0)
    journal.close()


def between(before: BackendStatus, later: BackendStatus) -> Stretch:
    return Stretch(before=before, after=later, observed_s=60.0)


def runs_of(book: RunBook, *looks: BackendStatus, plan: Plan = PLAN) -> tuple[MeasuredRun, ...]:
    """What is written of stretches that end with these looks."""
    series = book.open(plan, CONTROLLED)
    for before, later in itertools.pairwise((counts(), *looks)):
        series.take(between(before, later))
    return book.all()


def test_short_stretches_are_joined_until_their_means_say_something(book: RunBook) -> None:
    assert runs_of(book, after(LEAST_REQUESTS // 2), after(LEAST_REQUESTS - 1)) == ()
    (run,) = runs_of(book, after(LEAST_REQUESTS // 2), after(LEAST_REQUESTS))
    assert (run.plan_hash, run.prompt_tokens, run.answer_tokens, run.streams) == (plan_hash(PLAN), 100, 50, 1)
    assert (run.ttft_s, run.time_per_token_s) == pytest.approx((0.1, 0.02))
    assert run.tokens_per_s == pytest.approx(50 / 1.08)
    assert (run.source, run.measured_at_s, run.spec.tensors) == ("requests", 7.0, ())


def test_the_next_run_tells_of_its_own_requests_alone(book: RunBook) -> None:
    slower = after(2 * LEAST_REQUESTS, decode_s_sum=0.98 * LEAST_REQUESTS + 49 * LEAST_REQUESTS * 0.2)
    _, told = runs_of(book, after(LEAST_REQUESTS), slower)
    assert told.time_per_token_s == pytest.approx(0.2), "what was before does not blur it"


def test_under_a_load_that_never_rests_a_run_is_told_after_many_requests(book: RunBook) -> None:
    assert runs_of(book, after(LEAST_REQUESTS, running=1), after(MOST_REQUESTS - 1, running=1)) == ()
    assert len(runs_of(book, after(LEAST_REQUESTS, running=1), after(MOST_REQUESTS, running=1))) == 1


def test_first_tokens_that_waited_for_others_or_were_known_already_are_left_out(book: RunBook) -> None:
    beside, known = runs_of(
        book, after(40, together=7), after(80, prefix_hit_tokens=64, busy_s=40 * 1.08 * (1 + 1 / 7))
    )
    assert (beside.streams, beside.ttft_s) == (7, 0.0)
    assert (known.streams, known.ttft_s) == (1, 0.0)


def test_requests_that_waited_for_a_slot_are_no_streams(book: RunBook) -> None:
    (run,) = runs_of(book, after(200, together=50))
    assert run.streams == after(200).slots


def test_what_was_not_of_the_whole_layout_is_in_no_run(book: RunBook) -> None:
    series = book.open(PLAN, CONTROLLED)
    series.take(between(counts(), after(20)))
    series.forget()
    series.take(between(after(20), after(40)))
    assert book.all() == ()
    series.take(between(counts(generation=4), after(20, generation=4)))
    assert book.all() == (), "nor are requests of another generation"


def test_nothing_is_told_of_requests_without_tokens_or_with_guessed_ones(book: RunBook) -> None:
    assert runs_of(book, counts(finished=40)) == ()
    guessing = msgspec.structs.replace(PLAN, serving=Serving(speculation="prompt_lookup"))
    assert runs_of(book, after(40), plan=guessing) == ()


def test_the_canary_of_an_apply_is_kept_and_read_back_without_the_models_tensors(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db", host="a")
    book = RunBook(journal, clock=lambda: 7.0)
    plan = plan_for(LLAMA_1B, THREE_CPUS)
    guessing = msgspec.structs.replace(plan, serving=Serving(speculation="prompt_lookup"))
    for each in (plan, guessing):
        book.record_check(
            each, CHECKED, plan_hash=plan_hash(each), plan_toml=plan_to_toml(each), spec=LLAMA_1B, generation=3
        )
    (run,) = book.all()
    assert (run.plan_hash, run.prompt_tokens, run.streams, run.measured_at_s) == (plan_hash(plan), 12, 1, 7.0)
    assert (run.ttft_s, run.time_per_token_s, run.spec.tensors) == (0.05, 0.02, ())
    assert run.source == "check"
    (event,) = journal.read_last(10)
    assert (event.kind, event.deployment, event.generation) == (KIND, "chat", 3)
    journal.close()


def test_runs_are_told_oldest_first_and_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db", host="a")
    ticks = iter(range(100))
    book = RunBook(journal, clock=lambda: float(next(ticks)))
    plan = plan_for(LLAMA_1B, THREE_CPUS)
    text = plan_to_toml(plan)
    for _ in range(3):
        book.record_check(plan, CHECKED, plan_hash="p", plan_toml=text, spec=LLAMA_1B, generation=1)
    journal.append(KIND, body={"from": "another release"})
    journal.append("Applied")
    assert [run.measured_at_s for run in book.all()] == [0.0, 1.0, 2.0]
    journal.close()


def test_a_run_that_does_not_say_what_it_is_of_is_read_as_one_of_requests(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db", host="a")
    book = RunBook(journal)
    (run,) = runs_of(book, after(40))
    body = {name: value for name, value in msgspec.to_builtins(run).items() if name != "source"}
    journal.append(KIND, deployment="chat", generation=3, plan_hash=run.plan_hash, body=body)
    assert book.all() == (run, run)
    journal.close()
