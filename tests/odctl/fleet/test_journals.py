"""One journal as the watch follows it: bounded, re-read after a lost connection, honest about what it missed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from agent.errors import ErrorDetail
from agent.wire.agent import Event, FaultReport
from odctl.fleet import Fleet
from odctl.fleet.journals import KEPT_EVENTS, JournalTail
from odctl.fleet.story_reading import read_timeline
from odctl.ssh.http import agent_client
from tests.odctl.fleet import values
from tests.odctl.fleet.served_agent import ServedAgent, access, serving
from tests.odctl.timeline.events import T0, killed_rank


def event(event_id: int, kind: str = "AgentStarted", **body: object) -> Event:
    return Event(
        event_id=event_id,
        at_s=T0 + event_id,
        host="one",
        kind=kind,
        deployment="",
        generation=0,
        plan_hash="",
        body=json.dumps(body),
    )


@pytest.fixture
def agent(tmp_path: Path) -> ServedAgent:
    return ServedAgent(tmp_path / "one")


@asynccontextmanager
async def fleet_of(*agents: ServedAgent) -> AsyncIterator[Fleet]:
    fleet = Fleet([access(each.root.name, each.root) for each in agents], cluster="lab", open_client=agent_client)
    try:
        yield fleet
    finally:
        await fleet.close()


async def test_the_past_is_read_once_and_then_what_is_new(agent: ServedAgent) -> None:
    agent.events = [event(1), event(2, "PlanMeasured"), event(3, "FaultHealed", fault_id="F", after_s=1)]
    tail = JournalTail("one")
    async with serving(agent), fleet_of(agent) as fleet:
        await tail.read(fleet, now_s=T0)
        assert [each.event_id for each in tail.view.events] == [1, 3], "of other kinds nothing is kept"
        agent.events += [event(4, "LinksProbed"), event(5)]
        await tail.read(fleet, now_s=T0 + 2)
    assert [each.event_id for each in tail.view.events] == [1, 3, 5]
    assert tail.view.read_at_s == T0 + 2
    assert sum("kinds=" in query for query in agent.event_queries) == 1
    assert agent.event_queries[-1] == "after=3&limit=1000"


async def test_nothing_new_leaves_the_very_same_events(agent: ServedAgent) -> None:
    agent.events = [event(1)]
    tail = JournalTail("one")
    async with serving(agent), fleet_of(agent) as fleet:
        await tail.read(fleet, now_s=T0)
        before = tail.view.events
        await tail.read(fleet, now_s=T0 + 2)
    assert tail.view.events is before


async def test_an_agent_of_an_earlier_release_is_read_all_the_same(agent: ServedAgent) -> None:
    agent.knows_kinds = False
    agent.events = [event(1), event(2, "PlanMeasured"), event(3)]
    tail = JournalTail("one")
    async with serving(agent), fleet_of(agent) as fleet:
        await tail.read(fleet, now_s=T0)
    assert [each.event_id for each in tail.view.events] == [1, 3]


async def test_the_store_is_bounded_and_says_what_it_let_go(agent: ServedAgent) -> None:
    agent.events = [event(number) for number in range(1, KEPT_EVENTS + 1)]
    tail = JournalTail("one")
    async with serving(agent), fleet_of(agent) as fleet:
        await tail.read(fleet, now_s=T0)
        agent.events += [event(KEPT_EVENTS + number) for number in range(1, 8)]
        await tail.read(fleet, now_s=T0 + 2)
    assert len(tail.view.events) == KEPT_EVENTS
    assert tail.view.num_dropped == 7
    assert tail.view.known_from_s == T0 + 8, "before that nothing is known"


async def test_a_journal_that_began_anew_is_read_anew_after_the_connection_was_lost(agent: ServedAgent) -> None:
    agent.events = [event(number) for number in range(1, 9)]
    tail = JournalTail("one")
    async with serving(agent), fleet_of(agent) as fleet:
        await tail.read(fleet, now_s=T0)
        agent.events = [event(1, "AgentStopped")]
        tail.forget_place()
        await tail.read(fleet, now_s=T0 + 2)
    assert [(each.event_id, each.kind) for each in tail.view.events] == [(1, "AgentStopped")]


async def test_a_refusal_is_told_and_what_was_known_stays(agent: ServedAgent) -> None:
    agent.events = [event(1)]
    tail = JournalTail("one")
    async with serving(agent), fleet_of(agent) as fleet:
        await tail.read(fleet, now_s=T0)
        agent.errors["/v1/events"] = ErrorDetail(code="E901", message="the journal is damaged", hint="")
        await tail.read(fleet, now_s=T0 + 2)
        assert tail.view.error == "the journal is damaged"
        assert (tail.view.read_at_s, len(tail.view.events)) == (T0, 1)
        del agent.errors["/v1/events"]
        await tail.read(fleet, now_s=T0 + 4)
    assert tail.view.error == ""


def test_a_clocks_jitter_changes_nothing_and_a_step_of_it_does() -> None:
    tail = JournalTail("one")
    tail.take_time(sent_s=T0 + 60.0, received_s=T0 + 0.01)
    before = tail.view
    tail.take_time(sent_s=T0 + 61.0, received_s=T0 + 1.002)
    assert tail.view is before
    tail.take_time(sent_s=T0 + 92.0, received_s=T0 + 2.0)
    assert tail.view.ahead_s == 90.0


async def test_one_visit_reads_journals_faults_and_clocks_of_all_hosts(tmp_path: Path) -> None:
    told = killed_rank(h2=-30.0)
    agents = []
    for host in ("h1", "h2", "h3"):
        served = ServedAgent(tmp_path / host)
        served.events = told.events[host]
        served.answers["/v1/faults"] = FaultReport(faults=())
        served.add_sample(values.sample(host, at_s=T0 + 900 + told.clocks.get(host, 0.0)))
        agents.append(served)

    class Clock:
        def now_s(self) -> float:
            return T0 + 900

        async def sleep(self, seconds: float) -> None:  # noqa: ARG002 - the Protocol's
            raise AssertionError("one visit waits for nothing")

    async with serving(agents[0]), serving(agents[1]), fleet_of(*agents) as fleet:
        reading = await read_timeline(fleet, Clock())
    assert set(reading.missing) == {"h3"}
    assert reading.timeline.clocks == {"h1": 0.0, "h2": -30.0}
    story = next(story for story in reading.timeline.stories if story.story_id == "F-1")
    assert story.requests_failed == 4, "h2's gateway is told of at its place, whatever its clock says"
    assert any(story.kind == "no_answer" and story.host == "h3" for story in reading.timeline.stories)
    msgspec.to_builtins(reading.timeline)
