from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from agent.journal import Journal
from agent.planner.file import plan_hash, plan_to_toml
from agent.planner.plan import Serving
from agent.supervisor.runs import COVERED_REQUESTS, KIND, LEAST_REQUESTS, LoadWindow, RunBook, WindowFigures
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
    }
    return BackendStatus(finished=finished, **(known | fields))


def figures(*, streams: int, ttft_s: float) -> WindowFigures:
    return WindowFigures(
        prompt_tokens=100,
        answer_tokens=50,
        streams=streams,
        ttft_s=ttft_s,
        time_per_token_s=0.02,
        tokens_per_s=25.0,
    )


def test_a_window_is_told_once_its_requests_are_all_that_the_medians_cover() -> None:
    window = LoadWindow(generation=1)
    assert window.take(backend(0)) is None
    assert window.take(backend(LEAST_REQUESTS - 1)) is None
    assert window.take(backend(LEAST_REQUESTS)) == figures(streams=1, ttft_s=0.1)
    assert window.take(backend(2 * LEAST_REQUESTS - 1)) is None, "older requests are among the medians still"
    assert window.take(backend(LEAST_REQUESTS + COVERED_REQUESTS)) is not None


def test_a_window_opened_late_waits_until_older_requests_are_out_of_the_medians() -> None:
    window = LoadWindow(generation=1)
    window.take(backend(10_000))
    assert window.take(backend(10_000 + COVERED_REQUESTS - 1)) is None
    assert window.take(backend(10_000 + COVERED_REQUESTS)) is not None


def test_first_tokens_that_waited_for_others_or_were_known_already_are_left_out() -> None:
    window = LoadWindow(generation=1)
    window.take(backend(0, running=7))
    assert window.take(backend(40, running=9)) == figures(streams=8, ttft_s=0.0)
    alone = LoadWindow(generation=1)
    alone.take(backend(0))
    assert alone.take(backend(40, prefix_hit_tokens=64)) == figures(streams=1, ttft_s=0.0)


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
