from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from agent.errors import FleetError
from agent.facts.fault import Fault
from agent.journal import PRUNE_INTERVAL, Journal

WRITER = """
import sys
from pathlib import Path
from agent.journal import Journal
journal = Journal(Path(sys.argv[1]), host="a")
for number in range(1_000_000):
    journal.put_state("fence", str(number).encode())
    event = journal.append("Counted", generation=number, body={"number": number})
    print(event.event_id, number, flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


def test_events_come_back_in_order_with_their_bodies(path: Path) -> None:
    journal = Journal(path, host="a", clock=lambda: 12.5)
    fault = Fault(
        fault_id="f1",
        kind="rank_lost",
        severity="fault",
        observed_at_s=1.0,
        observed_by="a",
        host="b",
        message="gone",
    )
    first = journal.append("RankLost", deployment="chat", generation=3, plan_hash="abc", body=fault)
    second = journal.append("GenerationRaised", body={"to": 4}, is_durable=True)
    journal.close()

    again = Journal(path, host="a")
    assert again.read(0, 10) == [first, second]
    assert again.read(first.event_id, 10) == [second]
    assert again.read(0, 1) == [first]
    assert again.read_last(1) == [second]
    assert again.last_id == second.event_id
    assert msgspec.json.decode(first.body, type=Fault) == fault
    assert (first.at_s, first.deployment, first.generation, first.plan_hash) == (12.5, "chat", 3, "abc")
    again.close()


def test_state_is_replaced_listed_by_prefix_and_deleted(path: Path) -> None:
    journal = Journal(path, host="a")
    journal.put_state("deployment/chat", b"1")
    journal.put_state("deployment/chat", b"2")
    journal.put_state("deployment/%", b"odd")
    journal.put_state("lease/chat", b"3")
    assert journal.get_state("deployment/chat") == b"2"
    assert journal.list_state("deployment/") == {"deployment/%": b"odd", "deployment/chat": b"2"}
    journal.delete_state("deployment/chat")
    assert journal.get_state("deployment/chat") is None
    assert sorted(journal.list_state()) == ["deployment/%", "lease/chat"]
    journal.close()


def test_old_events_are_pruned_and_ids_go_on(path: Path) -> None:
    journal = Journal(path, host="a", keep_events=10)
    for number in range(PRUNE_INTERVAL + 5):
        journal.append("Counted", generation=number)
    kept = journal.read(0, 10_000)
    assert len(kept) == 15
    assert kept[-1].generation == PRUNE_INTERVAL + 4
    assert kept[-1].event_id == PRUNE_INTERVAL + 5
    journal.close()


async def test_a_follower_sees_what_is_there_and_then_what_comes(path: Path) -> None:
    journal = Journal(path, host="a")
    journal.append("First")
    seen: list[str] = []

    async def collect() -> None:
        async for event in journal.follow(0):
            seen.append(event.kind)
            if len(seen) == 1:
                journal.append("Second")
                asyncio.get_running_loop().call_later(0.01, journal.append, "Third")
            if len(seen) == 3:
                return

    async with asyncio.timeout(5):
        await collect()
    assert seen == ["First", "Second", "Third"]
    journal.close()


@pytest.mark.parametrize("commits", [1, 40, 150])
def test_every_commit_that_was_answered_survives_kill_9(path: Path, commits: int) -> None:
    """1. A process writes a fence, then an event, and prints both once they are committed. 2. It is killed in
    full flight. 3. All that it printed is there, the fence is not behind, and the journal goes on."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True, env={**os.environ}
    )
    assert writer.stdout is not None
    for _ in range(commits):
        assert writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    printed = writer.stdout.read().splitlines()
    writer.wait(10)
    writer.stdout.close()

    journal = Journal(path, host="a")
    events = journal.read(0, 1_000_000)
    # A line cut off by the kill claims nothing.
    claimed = commits + sum(1 for line in printed if len(line.split()) == 2)
    assert len(events) >= claimed
    assert [event.event_id for event in events] == list(range(1, len(events) + 1))
    assert [event.generation for event in events] == list(range(len(events)))
    fence = journal.get_state("fence")
    assert fence is not None
    assert int(fence) in (len(events) - 1, len(events))
    assert journal.append("Counted").event_id == len(events) + 1
    journal.close()


def test_a_damaged_journal_is_refused_with_a_way_out(path: Path) -> None:
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(FleetError, match="cannot be opened") as caught:
        Journal(path, host="a")
    assert caught.value.code == "E901"
    assert "move the file away" in caught.value.hint


def test_a_journal_of_a_newer_release_is_refused(path: Path) -> None:
    Journal(path, host="a").close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(FleetError, match="newer release"):
        Journal(path, host="a")


def test_only_the_owner_may_read_the_file(path: Path) -> None:
    journal = Journal(path, host="a")
    journal.append("First")
    assert path.stat().st_mode & 0o777 == 0o600
    journal.close()
