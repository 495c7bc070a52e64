"""Lines and events as entries, and which of them a filter lets through."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent.errors import FleetError
from agent.wire.agent import Event
from agent.wire.host import LogLines
from odctl.logs import LogEntry, entry_line, parse_log_filter
from odctl.logs.entry import event_entry, line_entries


def event(kind: str, **fields: Any) -> Event:
    return Event(
        event_id=1,
        at_s=1_700_000_000.0,
        host="gpu01",
        kind=kind,
        deployment=fields.pop("deployment", ""),
        generation=3,
        plan_hash="",
        body=json.dumps(fields),
    )


def lines(*texts: str, **changes: Any) -> list[LogEntry]:
    return line_entries("gpu01", LogLines(name="agent", lines=texts, at_s=50.0, **changes))


@pytest.mark.parametrize(
    ("kind", "level", "is_good"),
    [
        ("RankLost", "error", False),
        ("ApplyFailed", "error", False),
        ("BackendBroken", "error", False),
        ("RolledBack", "warning", False),
        ("ForeignProcessSignalled", "warning", False),
        ("AgentStarted", "info", False),
        ("GenerationCommitted", "info", True),
        ("FaultHealed", "info", True),
    ],
)
def test_an_events_kind_says_how_bad_it_is(kind: str, level: str, is_good: bool) -> None:
    entry = event_entry(event(kind))
    assert (entry.level, entry.is_good, entry.source) == (level, is_good, "journal")


def test_an_event_is_told_with_its_deployment_and_its_fields() -> None:
    entry = event_entry(event("RankLost", deployment="chat", rank_id="r0s1t0", exit_status=-9))
    assert (entry.text, entry.detail) == ("RankLost chat g3", "rank_id=r0s1t0 exit_status=-9")
    assert entry_line(entry) == (
        "2023-11-14 22:13:20Z gpu01 journal error RankLost chat g3  rank_id=r0s1t0 exit_status=-9"
    )


def test_json_lines_keep_their_own_time_level_and_fields() -> None:
    text = '{"at": "2026-11-29T08:00:00.250+00:00", "level": "warning", "logger": "x", "event": "late", "child": 0}'
    (entry,) = lines(text)
    assert (entry.level, entry.text, entry.detail) == ("warning", "late", "child=0")
    assert entry.at_s == 1_795_939_200.25
    (zulu,) = lines('{"at": "2026-11-29T08:00:00Z", "level": "error", "event": "x"}')
    assert (zulu.at_s, zulu.level) == (1_795_939_200.0, "error")


def test_a_line_without_a_time_belongs_to_the_one_before_it() -> None:
    first, second, third = lines(
        "plain", '{"at": "2026-11-29T08:00:00Z", "level": "error", "event": "failed"}', "  File x, line 3"
    )
    assert (first.at_s, first.level, first.text) == (second.at_s, "info", "plain"), "it is not newer than the next"
    (alone,) = lines("plain")
    assert alone.at_s == 50.0, "when it was read is all that is known"
    assert (third.at_s, third.level, third.text) == (second.at_s, "error", "  File x, line 3")


def test_what_only_looks_like_json_is_text() -> None:
    assert [entry.text for entry in lines("{broken", "[1, 2]", '{"a": 1')] == ["{broken", "[1, 2]", '{"a": 1']


def test_what_was_skipped_is_said() -> None:
    first, second = lines("on", skipped_bytes=900)
    assert (first.level, first.text[:17], second.text) == ("warning", "900 bytes skipped", "on")


def entry(**changes: Any) -> LogEntry:
    made: dict[str, Any] = {"at_s": 1.0, "host": "gpu01", "source": "agent", "level": "info", "text": "rank hangs"}
    return LogEntry(**(made | changes))


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("", True),
        ("hangs", True),
        ("HANGS", True),
        ("^nothing", False),
        ("!hangs", False),
        ("!other hangs", True),
        ("host=gpu01", True),
        ("host=gpu*", True),
        ("host=cpu01", False),
        ("host=cpu01 host=gpu01", True),
        ("!host=gpu01", False),
        ("!host=cpu*", True),
        ("level=info", True),
        ("level=warn", False),
        ("level=debug", True),
        ("name=agent", True),
        ("name=chat-*", False),
        ("source=journal", False),
        ("child=r0", True),
    ],
)
def test_every_term_of_a_filter_must_hold(text: str, passes: bool) -> None:
    assert parse_log_filter(text).passes(entry(detail="child=r0")) is passes


def test_a_level_lets_what_is_worse_through() -> None:
    chosen = parse_log_filter("level=warning")
    assert [chosen.passes(entry(level=level)) for level in ("debug", "info", "warning", "error")] == [
        False,
        False,
        True,
        True,
    ]


def test_hosts_that_cannot_pass_need_not_be_followed() -> None:
    chosen = parse_log_filter("host=gpu* !host=gpu09 hangs")
    assert [chosen.wants_host(host) for host in ("gpu01", "gpu09", "cpu01")] == [True, False, False]


@pytest.mark.parametrize("text", ["(", "level=loud", "!level=error", "ok ["])
def test_a_filter_that_means_nothing_names_its_term_and_a_way_out(text: str) -> None:
    with pytest.raises(FleetError) as caught:
        parse_log_filter(text)
    assert caught.value.code == "E105"
    assert text.rsplit(maxsplit=1)[-1] in caught.value.message
    assert caught.value.hint
