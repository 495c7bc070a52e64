from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.journal import Journal
from agent.planner.file import plan_hash, plan_to_toml
from agent.planner.plan import Serving
from agent.supervisor.runs import KIND, LEAST_REQUESTS, MOST_REQUESTS, LoadWindow, RunBook, WindowFigures
from agent.wire.gateway import BackendStatus, CheckReport
from tests.agent.planner.clusters import LLAMA_1B, THREE_CPUS, plan_for

CHECKED = CheckReport(is_ok=True, reason="", prompt_tokens=12, ttft_s=0.05, time_per_token_s=0.02, tokens=(1, 2))


def backend(finished: int, **fields: Any) -> BackendStatus:
    known: dict[str, Any] = {
        "deployment": "chat",
        "generation": 1,
        "plan_hash": "p",
        "state": "active",
        "running": 1,
        "queued": 0,
        "slots": 8,
        "failed": 0,
        "cancelled": 0,
        "prompt_tokens": 100 * finished,
        "generated_tokens": 50 * finished,
        "tokens_per_s": 40.0,
        "ttft_s_p50": 0.1,
        "ttft_s_p95": 0.2,
        "time_per_token_s_p50": 0.02,
        "time_per_token_s_p95": 0.03,
        "busy_s": 2.0 * finished,
        "ttft_s_sum": 0.1 * finished,
        "num_first_tokens": finished,
        "decode_s_sum": 0.98 * finished,
        "decoded_tokens": 49 * finished,
    }
    return BackendStatus(finished=finished, **(known | fields))


def resting(finished: int, **fields: Any) -> BackendStatus:
    return backend(finished, running=0, **fields)


def assert_told(told: WindowFigures | None, *, streams: int, ttft_s: float) -> None:
    assert told is not None
    assert (told.prompt_tokens, told.answer_tokens, told.streams) == (100, 50, streams)
    times = (told.ttft_s, told.time_per_token_s, told.tokens_per_s)
    assert times == pytest.approx((ttft_s, 0.02, 25.0))


def test_a_window_is_told_when_its_requests_have_ended_and_nothing_runs_any_more() -> None:
    window = LoadWindow(generation=1)
    assert window.take(backend(0)) is None
    assert window.take(resting(LEAST_REQUESTS - 1)) is None
    assert window.take(backend(LEAST_REQUESTS)) is None, "one is still running"
    assert_told(window.take(resting(LEAST_REQUESTS)), streams=1, ttft_s=0.1)


def test_the_next_window_tells_of_its_own_requests_alone() -> None:
    window = LoadWindow(generation=1)
    window.take(backend(0))
    window.take(resting(LEAST_REQUESTS))
    slower = {"decode_s_sum": 0.98 * LEAST_REQUESTS + 49 * LEAST_REQUESTS * 0.2}
    assert window.take(backend(LEAST_REQUESTS)) is None
    told = window.take(resting(2 * LEAST_REQUESTS, **slower))
    assert told is not None
    assert told.time_per_token_s == pytest.approx(0.2), "what was before does not blur it"


def test_under_a_load_that_never_rests_a_window_is_told_after_many_requests() -> None:
    window = LoadWindow(generation=1)
    window.take(backend(10_000))
    assert window.take(backend(10_000 + MOST_REQUESTS - 1)) is None
    assert window.take(backend(10_000 + MOST_REQUESTS)) is not None


def test_first_tokens_that_waited_for_others_or_were_known_already_are_left_out() -> None:
    window = LoadWindow(generation=1)
    window.take(backend(0, running=7))
    window.take(backend(20, running=9))
    assert_told(window.take(resting(40)), streams=8, ttft_s=0.0)
    alone = LoadWindow(generation=1)
    alone.take(backend(0))
    assert_told(alone.take(resting(40, prefix_hit_tokens=64)), streams=1, ttft_s=0.0)


def test_an_idle_backend_tells_nothing() -> None:
    window = LoadWindow(generation=1)
    window.take(backend(0, running=0))
    assert window.take(backend(40, running=0)) is None


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
