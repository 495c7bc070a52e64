from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from agent.errors import ErrorDetail
from agent.planner.plan import Asked
from agent.wire.agent import ApplyEvent, ApplyPhase
from odctl.tui.model import frame
from odctl.tui.model.apply_progress import ApplyProgress, apply_page, take_event
from odctl.tui.model.commands import COMMANDS, CommandError, parse_command
from odctl.tui.model.conversation import Conversation, Piece, conversation_lines
from odctl.tui.model.deployment_rows import deployment_page
from odctl.tui.model.fault_rows import fault_page
from odctl.tui.model.host_page import host_page
from odctl.tui.model.plan_page import plan_page
from odctl.tui.model.plans import PlanChoice, plan_choices
from odctl.tui.model.text import Line, line_text, line_width
from tests.odctl.fleet import values
from tests.odctl.tui import frozen_fleet as frozen

WIDTHS = (80, 140)


def text_of(lines: Sequence[Line]) -> str:
    return "\n".join(line_text(spans) for spans in lines)


def preview(**changes: object) -> PlanChoice:
    plan = msgspec.structs.replace(frozen.plan(), **changes)
    return PlanChoice(origin="plan.toml", plan=plan, plan_hash="f" * 64)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_plan_page_tells_what_was_asked_and_every_figure_with_its_bounds(width: int) -> None:
    predicted = msgspec.structs.replace(
        frozen.plan().predicted, joules_per_token=(0.8, 1.9, 4.5), peak_bytes=(10**9, 2 * 10**9, 3 * 10**9)
    )
    choice = preview(asked=Asked(max_hosts=2, pinned=("gpu01",)), predicted=predicted)
    text = text_of(plan_page(choice, None, width=width))
    assert "asked for gpu01 pinned, at most 2 hosts" in text
    assert "1.9 J (0.8..4.5)" in text
    assert "2.0 GB (1.0..3.0)" in text
    old = text_of(plan_page(preview(), None, width=width))
    assert "asked for" not in old
    assert "energy" not in old


@pytest.mark.parametrize("width", WIDTHS)
def test_a_host_page_says_why_a_value_is_missing(width: int) -> None:
    text = text_of(host_page(frozen.snapshot(), "gpu01", width=width))
    assert "GPU is lost (Xid 79)" in text
    assert "cuda:0 ECC: not supported" in text
    assert "cuda:1 utilisation: 7s old" in text
    assert "9021 bob" in text, "a foreign process on our GPU is shown"
    assert "4100 od" not in text, "our own rank is no foreign process"
    assert "r0s0t0" in text
    assert "cuda:2 fell off the bus" in text


def test_a_host_that_never_answered_has_its_way_out() -> None:
    text = text_of(host_page(frozen.snapshot(), "cpu04", width=80))
    assert "no agent answers on this host" in text
    assert "odctl bootstrap cpu04" in text


@pytest.mark.parametrize("width", WIDTHS)
def test_the_layer_map_holds_each_layer_once_and_fits_the_screen(width: int) -> None:
    lines = plan_page(preview(), frozen.snapshot(), width=width)
    rows = [line_text(spans) for spans in lines if line_text(spans).startswith(" r0s")]
    assert len(rows) == 2
    maps = [row.split()[2] for row in rows]
    assert all({first, second} == {"█", "·"} for first, second in zip(*maps, strict=True))
    assert all(line_width(spans) <= width for spans in lines)


def test_a_plan_that_needs_more_than_a_device_has_is_marked() -> None:
    plan = frozen.plan()
    lines = plan_page(preview(), frozen.snapshot(), width=140)
    needs = [span for spans in lines for span in spans if "GB / " in span.text]
    assert plan.replicas[0].stages[0].shards[0].bytes.total == 13_750_000_000
    assert [(span.text.strip(), span.tone) for span in needs] == [
        ("13.8 GB / 23.6 GB", "plain"),
        ("9.8 GB / 15.5 GB", "plain"),
    ]
    small = frozen.snapshot(hosts=(frozen.host("cpu01", facts=values.facts("cpu01", memory_bytes=1 << 30)),))
    lines = plan_page(preview(), small, width=140)
    assert any(span.tone == "fault" and "9.8 GB / 966 MB" in span.text for spans in lines for span in spans)


def test_a_preview_says_what_would_change() -> None:
    moved = preview(replicas=frozen.plan(split=24).replicas)
    text = text_of(plan_page(moved, frozen.snapshot(), width=140))
    assert "against running generation 3: 4 of 32 layers move, 1.7 GB to move" in text
    text = text_of(plan_page(preview(name="other"), frozen.snapshot(), width=140))
    assert "other is not deployed" in text


def test_a_running_plan_shows_measured_beside_predicted() -> None:
    (running,) = plan_choices(frozen.snapshot(), None)
    text = text_of(plan_page(running, frozen.snapshot(), width=140))
    assert "MEASURED" in text
    assert "31 ms" in text
    assert "34 ms" in text


def test_a_deployment_whose_controller_is_silent_says_so() -> None:
    error = ErrorDetail(code="E206", message="no agent answers on this host", hint="bootstrap it", host="gpu01")
    snapshot = frozen.snapshot(deployments=(frozen.deployment(error=error),))
    text = text_of(deployment_page(snapshot, "chat", width=100))
    assert "○ unknown" in text
    assert "bootstrap it" in text
    assert "serving" not in text.splitlines()[0]


def test_fault_evidence_and_way_out_are_shown() -> None:
    text = text_of(fault_page(frozen.snapshot(), "F-2", width=80))
    assert "nvml GPU_IS_LOST" in text
    assert "→ reboot gpu01" in text


def test_the_title_counts_what_is_wrong() -> None:
    text = line_text(
        frame.title_line(frozen.snapshot(), ["Fleet"], width=80, is_read_only=True, now_s=frozen.NOW_S)
    )
    assert "▲1 ✗3 ○1" in text
    assert text.rstrip().endswith("RO")
    stale = frame.title_line(frozen.snapshot(), ["Fleet"], width=80, is_read_only=True, now_s=frozen.NOW_S + 9)
    assert "9 s old" in line_text(stale)


def event(phase: ApplyPhase, state: str, *, at_s: float, **more: object) -> ApplyEvent:
    return msgspec.convert({"phase": phase, "state": state, "at_s": at_s, **more}, ApplyEvent)


def test_an_apply_that_rolls_back_says_what_failed_and_that_it_was_undone() -> None:
    progress = ApplyProgress(plan=frozen.plan())
    error = {"code": "E801", "message": "rank r0s1t0 ended", "hint": "see its log", "host": "cpu01"}
    for one in (
        event("prepare", "progress", at_s=0.0, host="gpu01", message="model brought here", done=5, total=5),
        event("prepare", "started", at_s=100.0),
        event("prepare", "finished", at_s=100.5),
        event("start", "started", at_s=101.0),
        event("start", "progress", at_s=102.0, host="cpu01", message="loading", done=50, total=100),
        event("roll_back", "started", at_s=104.0),
        event("roll_back", "finished", at_s=105.0),
        event("start", "failed", at_s=105.0, error=error),
    ):
        progress = take_event(progress, one)
    text = text_of(apply_page(progress, width=100, now_s=200.0))
    assert "✗ failed, rolled back  5s" in text, "the operator's own step has no controller time and is left out"
    assert "cpu01: rank r0s1t0 ended" in text
    assert "→ see its log" in text
    assert "500 ms" in text


def test_a_conversation_remembers_answered_turns_only() -> None:
    talk = Conversation().ask("one?", now_s=0.0).take(Piece(text="yes"), now_s=0.5)
    talk = talk.take(Piece(is_done=True, num_tokens=5, done_reason="stop"), now_s=1.0)
    talk = talk.ask("two?", now_s=2.0).fail("the gateway broke off", "ask again")
    assert talk.history == (("user", "one?"), ("assistant", "yes"))
    text = text_of(conversation_lines(talk, width=60))
    assert "first token 500 ms" in text
    assert "✗ the gateway broke off" in text


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("plan a b.toml", ("plan", "a b.toml")),
        (":q", ("quit", "")),
        ("hos gpu01", None),
        ("fa", ("faults", "")),
        ("deploy", ("deployments", "")),
    ],
)
def test_commands_are_understood_by_name_alias_or_beginning(text: str, call: tuple[str, str] | None) -> None:
    if call is None:
        assert parse_command(text).command == "host"
        return
    found = parse_command(text)
    assert (found.command, found.argument) == call


@pytest.mark.parametrize("text", ["", "nonsense", "plan", "lock now"])
def test_a_command_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(CommandError):
        parse_command(text)


def test_no_command_hides_another() -> None:
    words = [word for command in COMMANDS for word in (command.name, *command.aliases)]
    assert len(words) == len(set(words))
