from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from agent.telemetry.kernel_log import parse_journal, parse_kmsg, read_kernel_log
from agent.wire.host import KernelMessage


def test_a_record_of_the_kernel_is_read_with_its_level_and_time() -> None:
    message = parse_kmsg("3,1204,8827364,-;NVRM: Xid 79\n SUBSYSTEM=pci\n", booted_at_s=1000.0)
    assert message == KernelMessage(at_s=1008.827364, level="err", text="NVRM: Xid 79")
    facility = parse_kmsg("30,5,1000000,-,caller=T1;systemd: hello; again", booted_at_s=0.0)
    assert facility == KernelMessage(at_s=1.0, level="info", text="systemd: hello; again")


@pytest.mark.parametrize("record", ["", "no record", "x,1,2,-;text", "6;text"])
def test_what_is_no_record_is_left_out(record: str) -> None:
    assert parse_kmsg(record, booted_at_s=0.0) is None


def test_the_journals_objects_are_read_even_where_the_text_is_no_utf8() -> None:
    line = json.dumps({"__REALTIME_TIMESTAMP": "1700000000250000", "PRIORITY": "4", "MESSAGE": [104, 105, 255]})
    assert parse_journal(line) == KernelMessage(at_s=1_700_000_000.25, level="warn", text="hi�")
    assert parse_journal("-- No entries --") is None


def test_this_machines_log_is_read_or_says_why_not() -> None:
    found = read_kernel_log(5)
    assert bool(found.messages) != bool(found.unavailable)
    assert len(found.messages) <= 5
    assert [message.at_s for message in found.messages] == sorted(message.at_s for message in found.messages)


def test_a_closed_log_is_asked_of_the_journal(tmp_path: Path) -> None:
    entry = json.dumps({"__REALTIME_TIMESTAMP": "1700000000000000", "MESSAGE": "eth0: link up"})
    found = read_kernel_log(3, kmsg=str(tmp_path / "none"), ask_journal=lambda _: [entry] * 5)
    assert (found.source, len(found.messages), found.unavailable) == ("journal", 3, "")
    assert found.messages[0].level == "info"


def _not_there(_: int) -> list[str]:
    raise FileNotFoundError(2, "No such file or directory")


def _too_slow(_: int) -> list[str]:
    raise subprocess.TimeoutExpired("journalctl", 5)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (_not_there, "journalctl: No such file or directory"),
        (_too_slow, "journalctl gave no answer in 5 s"),
        (lambda _: [], "the journal shows none to this user"),
    ],
)
def test_where_nobody_tells_both_reasons_and_a_way_out_are_said(tmp_path: Path, ask: object, said: str) -> None:
    found = read_kernel_log(3, kmsg=str(tmp_path / "none"), ask_journal=ask)  # type: ignore[arg-type]
    assert found.messages == ()
    assert f"{tmp_path / 'none'}: No such file or directory" in found.unavailable
    assert said in found.unavailable
    assert "systemd-journal" in found.way_out
