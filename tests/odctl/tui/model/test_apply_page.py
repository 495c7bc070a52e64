"""An apply as it goes: who is how far, who is lost meanwhile, and how it ended."""

from __future__ import annotations

import msgspec
import pytest

from agent.errors import ErrorDetail
from agent.planner.plan import Plan
from agent.wire.agent import ApplyEvent, ApplyPhase
from odctl.tui.model.apply_page import FETCHED, LOADS, LOCKED, READY, WAITS, apply_page, host_step
from odctl.tui.model.apply_progress import ApplyProgress, fail, take_event
from odctl.tui.model.text import line_text, line_width
from tests.odctl.tui import frozen_fleet as frozen
from tests.odctl.tui.many_plans import chain

WIDTHS = (78, 138)


def event(phase: ApplyPhase, state: str, *, at_s: float = 100.0, **more: object) -> ApplyEvent:
    return msgspec.convert({"phase": phase, "state": state, "at_s": at_s, "generation": 4, **more}, ApplyEvent)


def after(*events: ApplyEvent, plan: Plan | None = None) -> ApplyProgress:
    progress = ApplyProgress(plan=plan or frozen.plan())
    for each in events:
        progress = take_event(progress, each)
    return progress


def page(progress: ApplyProgress, *, width: int = 78, snapshot: object = None) -> str:
    lines = apply_page(progress, snapshot, width=width, now_s=110.0)  # type: ignore[arg-type]
    assert all(line_width(spans) <= width for spans in lines), "nothing is cut off at the right"
    return "\n".join(line_text(spans) for spans in lines)


LOADING = (
    event("prepare", "started"),
    event("prepare", "finished", at_s=101.0),
    event("fetch", "started", at_s=101.0),
    event("fetch", "progress", at_s=102.0, host="gpu01", message="already there"),
    event("fetch", "finished", at_s=103.0),
    event("start", "started", at_s=103.0),
    event("start", "progress", at_s=104.0, host="gpu01", message="r0s0t0 loading", done=40, total=100),
)


@pytest.mark.parametrize("width", WIDTHS)
def test_phases_and_hosts_are_told_while_it_goes(width: int) -> None:
    text = page(after(*LOADING), width=width, snapshot=frozen.snapshot())
    assert "chat  llama-8b → 2 hosts  generation 4  ↻ applying  10s" in text
    assert "█ done" in text
    assert "▒ under way" in text
    assert "r0s0t0 loading" in text
    assert "▒ has shards" in text
    assert "nothing heard yet" in text


def test_a_host_is_as_far_as_its_own_word_and_the_phases_say() -> None:
    assert host_step(after(), "gpu01") == WAITS
    assert host_step(after(*LOADING[:2]), "gpu01") == LOCKED
    assert host_step(after(*LOADING[:4]), "gpu01") == FETCHED
    assert host_step(after(*LOADING), "gpu01") == LOADS
    assert host_step(after(*LOADING, event("start", "finished")), "cpu01") == READY


@pytest.mark.parametrize("width", WIDTHS)
def test_a_host_that_is_lost_meanwhile_stands_first_with_its_reason(width: int) -> None:
    hosts = (
        frozen.host("cpu01", "lost", reason="connection lost: reset by peer"),
        frozen.host("gpu01", facts=frozen.gpu_facts("gpu01")),
    )
    snapshot = frozen.snapshot(hosts=hosts)
    text = page(after(*LOADING), width=width, snapshot=snapshot)
    assert "✗ cpu01 is lost: connection lost: reset by peer" in text
    assert "the controller rolls back when it needs that host and cannot reach it; A aborts now" in " ".join(
        text.split()
    )
    rows = text[text.index("HOST ") :].splitlines()
    assert rows[1].split()[:3] == ["cpu01", "✗", "lost"]
    controller = frozen.snapshot(hosts=(hosts[0], frozen.host("gpu01", "lost", reason="no route")))
    text = page(after(*LOADING), width=width, snapshot=controller)
    assert "it is the controller: what it does now is not known here" in text
    over = after(*LOADING, event("done", "finished"))
    assert "cpu01 is lost" not in page(over, width=width, snapshot=snapshot), "once it is over, 1 says so"


@pytest.mark.parametrize("width", WIDTHS)
def test_many_hosts_have_a_cell_each_and_stragglers_first(width: int) -> None:
    plan = chain(90)
    events = [*LOADING[:6]]
    events += [
        event("start", "progress", host=f"h{index:03d}", message="loading", done=100, total=100)
        for index in range(60)
    ]
    text = page(after(*events, plan=plan), width=width)
    strip = [row for row in text.splitlines() if set(row.strip()) <= set("·░▒▓█✗") and row.strip()]
    assert sum(len(row.strip()) for row in strip) == 90
    assert "".join(row.strip() for row in strip) == "█" * 60 + "▒" * 30
    rows = text[text.index("HOST ") :].splitlines()
    assert rows[1].split()[0] == "h060", "who is behind is told first"


def test_a_stream_that_breaks_is_no_failure_of_the_apply() -> None:
    broken = ErrorDetail(code="E211", message="the stream ended", hint="look again", host="gpu01")
    progress = fail(after(*LOADING), broken)
    text = page(progress)
    assert "○ out of sight" in text
    assert "its controller gpu01 goes on or rolls back by itself" in text
    assert "undone" not in text
    refused = fail(after(), ErrorDetail(code="E206", message="no agent answers"))
    assert not refused.is_out_of_sight, "nothing had begun"


def test_what_the_controller_said_of_the_end_stays() -> None:
    error = {"code": "E801", "message": "rank r0s1t0 ended", "hint": "see its log", "host": "cpu01"}
    over = after(*LOADING, event("roll_back", "finished"), event("start", "failed", error=error))
    assert fail(over, ErrorDetail(code="E211", message="the stream ended")) == over
    assert "undone: everything is as it was before" in page(over)
