"""Generations are journalled once each, with their plan, and with what was measured while they served."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.facts.run import MeasuredRun, RunSource
from agent.journal import Journal
from agent.supervisor.deployment import Controlled
from agent.supervisor.history import HistoryBook
from agent.supervisor.runs import RunBook
from agent.wire.gateway import CheckReport
from tests.agent.planner.clusters import model

CHECKED = CheckReport(is_ok=True, reason="", prompt_tokens=12, ttft_s=0.5, time_per_token_s=0.25, tokens=(1, 2))
FIRST = Controlled(
    plan_toml="the first plan",
    plan_hash="aaa",
    spec=model(),
    members=(),
    generation=1,
    spawn_generation=1,
    gateway_socket="",
    applied_at_s=100.0,
    checked=CHECKED,
    by="ann@desk:1",
    apply_s=4.5,
)
SECOND = msgspec.structs.replace(
    FIRST, plan_toml="the second plan", plan_hash="bbb", generation=2, spawn_generation=2, applied_at_s=200.0
)
HEALED = msgspec.structs.replace(
    FIRST, generation=2, apply_s=0.0, cause="healing", by="", reason="rank_lost: it died"
)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.sqlite", host="h1")
    yield journal
    journal.close()


@pytest.fixture
def book(journal: Journal) -> HistoryBook:
    return HistoryBook(journal, host="h1")


def run(*, ttft_s: float, streams: int = 1, source: RunSource = "requests") -> MeasuredRun:
    return MeasuredRun(
        deployment="chat",
        plan_hash="aaa",
        plan_toml="the first plan",
        spec=model(),
        source=source,
        prompt_tokens=12,
        streams=streams,
        ttft_s=ttft_s,
        time_per_token_s=0.25,
    )


def test_a_generation_is_written_once_whoever_restarts(journal: Journal, book: HistoryBook) -> None:
    book.note("chat", FIRST)
    HistoryBook(journal, host="h1").note("chat", FIRST)
    (told,) = book.all().generations
    assert (told.generation, told.plan_hash, told.cause, told.by) == (1, "aaa", "apply", "ann@desk:1")
    assert (told.served_at_s, told.controller, told.checked) == (100.0, "h1", CHECKED)
    assert book.all().plans == {"aaa": "the first plan"}


def test_healing_moves_the_generation_on_and_keeps_the_plan(book: HistoryBook) -> None:
    book.note("chat", FIRST)
    book.note("chat", HEALED)
    healed = book.all().generations[1]
    assert (healed.generation, healed.cause, healed.by) == (2, "healing", "h1")
    assert healed.reason == "rank_lost: it died"
    assert healed.plan_hash in book.all().plans
    assert [told.apply_s for told in book.all().generations] == [4.5, None]
    assert healed.checked is None, "the canary was of the apply"


def test_what_was_measured_belongs_to_the_generation_that_served(journal: Journal, book: HistoryBook) -> None:
    """1. applied, with its canary  2. measured  3. destroyed  4. a generation 1 again, which was not measured."""
    runs = RunBook(journal)
    book.note("chat", FIRST)
    runs.record(run(ttft_s=CHECKED.ttft_s, source="check"), generation=1)
    runs.record(run(ttft_s=CHECKED.ttft_s), generation=1)
    runs.record(run(ttft_s=0.0, streams=4), generation=9)
    journal.append("Destroyed", deployment="chat", generation=1, body={"holder": "bob@desk:2", "out_of_reach": []})
    book.note("chat", msgspec.structs.replace(FIRST, applied_at_s=300.0))
    history = book.all()
    assert [len(told.measured) for told in history.generations] == [2, 0]
    assert [(each.source, each.ttft_s) for each in history.generations[0].measured] == [
        ("check", 0.5),
        ("medians", 0.5),
    ], "a run says itself what it is of, whatever it measured"
    assert [(end.deployment, end.by) for end in history.ends] == [("chat", "bob@desk:2")]


def test_deployments_do_not_hide_each_other(book: HistoryBook) -> None:
    book.note("chat", FIRST)
    book.note("code", SECOND)
    book.note("chat", FIRST)
    assert [(told.deployment, told.plan_hash) for told in book.all().generations] == [
        ("chat", "aaa"),
        ("code", "bbb"),
    ]
