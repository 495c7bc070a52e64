"""Reading and following over real sockets, with agents that come and go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from agent.wire.host import LogLines
from odctl.fleet import Fleet
from odctl.logs import LogEntry, follow, follow_logs, read_logs
from odctl.ssh.http import agent_client
from tests.odctl.fleet.served_agent import access, serving
from tests.odctl.logs.talking_agent import TalkingAgent


class QuickClock:
    """Real time, in which nobody has to wait long."""

    def now_s(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.02))


@pytest.fixture
def agent(tmp_path: Path) -> TalkingAgent:
    agent = TalkingAgent(tmp_path / "one")
    agent.happens("AgentStarted", at_s=10.0)
    stamped = '{"at": "1970-01-01T00:00:20Z", "level": "info", "event": "agent started"}'
    agent.lines.append(LogLines(name="agent", lines=(stamped,), at_s=30.0, is_past=True))
    return agent


def fleet_of(*agents: TalkingAgent) -> Fleet:
    return Fleet([access(agent.host, agent.root) for agent in agents], cluster="lab", open_client=agent_client)


async def collect(
    batches: AsyncGenerator[tuple[LogEntry, ...], None], enough: Callable[[list[LogEntry]], bool]
) -> list[LogEntry]:
    found: list[LogEntry] = []
    async with asyncio.timeout(10):
        while not enough(found):
            found += await anext(batches)
    return found


async def test_journal_and_logs_are_read_as_one_story(agent: TalkingAgent, tmp_path: Path) -> None:
    silent = TalkingAgent(tmp_path / "two")
    fleet = fleet_of(agent, silent)
    async with serving(agent):
        entries, missing = await read_logs(fleet, ("one", "two"))
        only, _ = await read_logs(fleet, ("one",), name="journal")
    await fleet.close()
    assert [(entry.at_s, entry.source, entry.text) for entry in entries] == [
        (10.0, "journal", "AgentStarted"),
        (20.0, "agent", "agent started"),
    ]
    assert [entry.source for entry in only] == ["journal"]
    assert missing["two"].code == "E206"


async def test_what_comes_is_told_and_a_host_that_goes_is_said_and_taken_up_again(agent: TalkingAgent) -> None:
    """1. the past. 2. something new. 3. the agent goes. 4. it is back: nothing is told twice."""
    fleet = fleet_of(agent)
    async with aclosing(follow_logs(fleet, ("one",), QuickClock())) as batches:
        async with serving(agent):
            past = await collect(batches, lambda found: len(found) == 2)
            assert {entry.text for entry in past} == {"AgentStarted", "agent started"}
            agent.happens("RankLost", at_s=40.0)
            (new,) = await collect(batches, lambda found: len(found) == 1)
            assert (new.text, new.level) == ("RankLost", "error")
        gone = await collect(batches, lambda found: any("is not followed" in entry.text for entry in found))
        assert {entry.source for entry in gone} == {"odctl"}
        agent.is_over = False
        agent.take_calls()
        agent.happens("AgentStarted", at_s=60.0)
        async with serving(agent):
            back = await collect(batches, lambda found: any(entry.text == "AgentStarted" for entry in found))
            told = [entry.text for entry in back if entry.source != "odctl"]
            assert told == ["AgentStarted"]
            assert any(entry.is_good and entry.text == "is back" for entry in back)
            assert "after=2" in agent.event_queries[-1]
            agent.hang_up()
    await fleet.close()


async def test_more_hosts_than_can_be_followed_is_said(
    agent: TalkingAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "MAX_HOSTS", 1)
    fleet = fleet_of(agent)
    async with serving(agent):
        async with aclosing(follow_logs(fleet, ("one", "two"), QuickClock())) as batches:
            (first,) = await anext(batches)
        agent.hang_up()
    await fleet.close()
    assert "1 of 2 hosts are followed" in first.text
