"""A deployment's page: every figure beside its prediction, and every unknown with its reason."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from agent.errors import ErrorDetail, FleetError
from agent.planner.file import plan_to_toml
from agent.planner.plan import Replica, Stage
from agent.wire.gateway import RequestReport
from odctl.fleet.snapshot import DeploymentView
from odctl.tui.model.deployment_live import live_page
from odctl.tui.model.deployment_rows import DeploymentRows
from odctl.tui.model.request_rows import RequestRows, request_words, requests_title
from odctl.tui.model.table import layout, row_line
from odctl.tui.model.text import Line, line_text, line_width
from tests.odctl.tui import frozen_fleet as frozen
from tests.odctl.tui import live_fleet as live

WIDTHS = (78, 138)


def text_of(lines: Sequence[Line]) -> str:
    return "\n".join(line_text(spans) for spans in lines)


def page(view: DeploymentView, *, width: int = 138) -> str:
    return text_of(live_page(live.snapshot(view), "chat", width=width))


def line_of(text: str, beginning: str) -> str:
    return next(each for each in text.splitlines() if each.strip().startswith(beginning))


@pytest.mark.parametrize("width", WIDTHS)
def test_no_line_is_wider_than_the_page(width: int) -> None:
    lines = live_page(live.snapshot(), "chat", width=width)
    cut = [line_text(spans) for spans in lines if line_width(spans) > width]
    assert cut == []


@pytest.mark.parametrize("width", WIDTHS)
def test_measured_stands_beside_predicted_and_what_the_apply_saw(width: int) -> None:
    text = page(live.deployment(), width=width)
    assert line_of(text, "first token").split()[2:8] == ["440", "ms", "610", "ms", "420", "ms"]
    assert line_of(text, "per token").split()[2:8] == ["33.0", "ms", "41.0", "ms", "31", "ms"]
    assert "34.0 ms" in line_of(text, "per token"), "at apply"
    assert "57.5" in line_of(text, "tokens/s now")
    assert "210 tok/s" in line_of(text, "tokens/s now")
    assert "2/8" in text
    assert "33% (340/1,024 blocks)" in text
    assert "queue 1/512" in text
    for said in ("finished 41", "cancelled 1", "4.1k prompt tokens found computed", "3 preemptions"):
        assert said in text
    for said in ("generation 3", "controller gpu01", "applied 1h ago", "http://127.0.0.1:11434 on gpu01"):
        assert said in text


@pytest.mark.parametrize("width", WIDTHS)
def test_stages_tell_the_busiest_and_the_bubble(width: int) -> None:
    text = page(live.deployment(), width=width)
    first, second = line_of(text, "0.0"), line_of(text, "0.1")
    assert "gpu01/cuda:0" in first
    assert "layers 0-19" in first
    assert "21%" in first
    assert "83%" in second
    assert "◀" in second
    assert "◀" not in first
    assert "7.0 ms" in first, "busy seconds of a step"
    assert "4.0 ms" in first, "predicted"
    bubble = line_of(text, "bubble 45%")
    assert "over 10 s, 95% of it with requests" in bubble


@pytest.mark.parametrize("width", WIDTHS)
def test_a_link_tells_bytes_round_trip_and_waiting(width: int) -> None:
    link = line_of(page(live.deployment(), width=width), "r0s0t0 gpu01 > r0s1t0 cpu01")
    assert "tls" in link
    assert "2.4M/s" in link
    assert "310 µs" in link, "of the end that sends: the other knows only its opening"
    assert "6.0 ms" in link, "of the end that receives"


def test_history_strips_are_there_for_each_figure() -> None:
    text = page(live.deployment())
    for name in ("tok/s", "first token", "per token", "running", "queue", "KV in use", "ranks busy", "bubble"):
        assert sum(each.startswith(f" {name}") for each in text.splitlines()) >= 1, name
    assert "≤    58.0" in text
    assert " LAST 5m" in text


def test_what_is_not_known_is_said_with_its_reason_and_never_0() -> None:
    usual = frozen.deployment()  # a gateway that counts no blocks, and no two looks yet
    text = page(usual)
    assert "its gateway is of a release that does not count them" in text
    assert "two looks at its ranks are needed" in text
    assert "KV in use    — not known yet" in text
    assert usual.status is not None
    assert usual.status.backend is not None
    fresh = msgspec.structs.replace(usual.status.backend, finished=0, time_per_token_s_p50=0.0)
    text = page(msgspec.structs.replace(usual, status=msgspec.structs.replace(usual.status, backend=fresh)))
    assert "no request has ended since this generation serves" in text
    assert line_of(text, "first token").split()[2:4] == ["—", "—"]
    none = msgspec.structs.replace(usual, status=msgspec.structs.replace(usual.status, backend=None))
    assert "has no backend attached" in page(none)


def test_an_idle_deployment_has_no_bubble_and_an_old_gateway_does_not_tell() -> None:
    idle = live.deployment(flow=live.flow(bubble=None, served_share=0.0))
    assert "over 10 s: no request in it" in page(idle)
    old = live.deployment(flow=live.flow(bubble=None, served_share=None))
    assert "does not say how long it served" in page(old)
    unseen = live.deployment(flow=live.flow(ranks=(live.rank_flow("r0s1t0", 0.8),)))
    assert "no two words of it to compare" in line_of(page(unseen), "0.0")


def test_healing_says_why_and_the_way_out() -> None:
    healing = live.status(state="healing", reason="rank r0s1t0 was killed", way_out="it heals by itself")
    text = page(live.deployment(status=healing))
    assert "↻ healing" in text.splitlines()[0]
    assert "▲ rank r0s1t0 was killed" in text
    assert "→ it heals by itself" in text
    error = ErrorDetail(code="E206", message="no agent answers on this host", hint="bootstrap it", host="gpu01")
    silent = page(live.deployment(error=error))
    assert "○ unknown" in silent.splitlines()[0]
    assert "→ bootstrap it" in silent


def test_one_that_is_gone_says_so() -> None:
    text = text_of(live_page(live.snapshot(), "other", width=78))
    assert "other is not deployed any more" in text
    assert "esc" in text


def test_tensor_groups_and_replicas_have_lines_of_their_own() -> None:
    """Two replicas; the first one's only stage is shared by two devices of different hosts."""
    plan = frozen.plan()
    [replica] = plan.replicas
    first, second = replica.stages
    halves = (
        msgspec.structs.replace(
            first.shards[0], heads=(0, 16), kv_heads=(0, 4), columns=(0, 5504), vocab=(0, 16000)
        ),
        msgspec.structs.replace(
            second.shards[0], heads=(16, 32), kv_heads=(4, 8), columns=(5504, 11008), vocab=(16000, 32000)
        ),
    )
    shared = Stage(layers=(0, 32), shards=halves)
    whole = Stage(layers=(0, 32), shards=(msgspec.structs.replace(second.shards[0], host="cpu02"),))
    plan = msgspec.structs.replace(plan, replicas=(Replica(stages=(shared,)), Replica(stages=(whole,))))
    group = live.link_flow("r0s0t0", name="r0s0", wait_s_per_step=0.002)
    ranks = (
        live.rank_flow("r0s0t0", 0.5, links=(group,)),
        live.rank_flow("r0s0t1", 0.4, links=(msgspec.structs.replace(group, rank_id="r0s0t1"),)),
        live.rank_flow("r1s0t0", 0.3, links=()),
    )
    status = live.status(plan_toml=plan_to_toml(plan))
    text = page(live.deployment(status=status, flow=live.flow(ranks=ranks)))
    assert "gpu01/cuda:0, cpu01/cpu" in line_of(text, "0.0")
    assert "50%" in line_of(text, "0.0"), "the busier member: the other waits for it"
    assert "cpu02/cpu" in line_of(text, "1.0")
    assert "r0s0t0 gpu01 + r0s0t1 cpu01" in text


def test_the_list_has_what_a_wide_screen_has_room_for() -> None:
    rows = DeploymentRows(live.snapshot())
    wide = [column.id for column, _ in layout(rows.columns, 137)]
    narrow = [column.id for column, _ in layout(rows.columns, 77)]
    assert {"tpot", "kv", "busy", "bubble"} <= set(wide)
    assert narrow == ["name", "state", "gen", "tokens", "ttft", "running", "queue", "ranks"]
    cells = {name: line_text(rows.cell(0, name, 9)) for name in ("tpot", "kv", "busy", "bubble")}
    assert cells == {"tpot": "33.0 ms", "kv": "33%", "busy": "83%", "bubble": "45%"}
    unknown = DeploymentRows(frozen.snapshot())
    assert [unknown.values(name) for name in ("kv", "busy", "bubble")] == [[None], [None], [None]]


# --- requests -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", WIDTHS)
def test_requests_have_rows_with_how_far_they_are(width: int) -> None:
    rows = RequestRows(live.requests())
    columns = layout(rows.columns, width)
    texts = [line_text(row_line(rows, index, columns, width)) for index in range(3)]
    assert all(len(text) <= width for text in texts)
    assert "1111" in texts[0]
    assert "● running" in texts[0]
    assert "31/100" in texts[0]
    assert "29.5" in texts[0]
    assert "▒ prompt" in texts[1], "its prompt is being computed"
    assert "○ queued" in texts[2]
    assert "—" in texts[2], "no speed before there are two tokens"
    assert rows.values("speed") == [29.5, None, None]


def test_a_request_without_a_limit_and_an_embedding_say_so() -> None:
    rows = RequestRows((live.request(max_tokens=None), live.request(2, embeds=True, replica=None)))
    assert line_text(rows.cell(0, "answer", 9)) == "31"
    assert line_text(rows.cell(0, "share", 8)) == "—"
    assert line_text(rows.cell(1, "answer", 9)) == "embedding"
    assert line_text(rows.cell(1, "replica", 4)) == "—"
    words = "\n".join(request_words(live.request()))
    assert "running on replica 0, for 10.0.0.7" in words
    assert "31 tokens of at most 100 so far" in words


def test_the_title_counts_by_state_or_says_why_not() -> None:
    report = RequestReport(deployment="chat", requests=live.requests())
    text = text_of(requests_title(report, None, is_reachable=True))
    assert "● 1 running" in text
    assert "▒ 1 prompt" in text
    assert "○ 1 queued" in text
    error = FleetError("E808", "the gateway on 127.0.0.1:1 does not answer", host="gpu01")
    assert "gpu01: the gateway on" in text_of(requests_title(report, error, is_reachable=True))
    assert "its controller does not answer" in text_of(requests_title(None, None, is_reachable=False))
    assert "none in flight" in text_of(
        requests_title(RequestReport(deployment="chat", requests=()), None, is_reachable=True)
    )
