"""The guard around a fleet: what it lets through, what it refuses, and for how long. Over a real socket."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import FleetError
from agent.facts.cluster import HostFacts
from agent.wire.agent import AbortRequest, ApplyEvent, Done
from odctl.fleet import Fleet, WriteGuard
from odctl.fleet.guard import is_change
from odctl.ssh.http import agent_client
from tests.odctl.fleet import values
from tests.odctl.fleet.served_agent import ServedAgent, access, serving

ABORT = AbortRequest(deployment="chat", holder="me")


class Seconds:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize(
    ("method", "route", "said"),
    [
        ("GET", "/v1/facts", False),
        ("get", "/v1/events?follow=1", False),
        ("POST", "/v1/manifest", False),
        ("POST", "/v1/ranges", False),
        ("POST", "/api/chat", False),
        ("POST", "/v1/apply", True),
        ("POST", "/v1/abort?now=1", True),
        ("POST", "/v1/probe", True),
        ("PUT", "/v1/upload/abc/model.safetensors", True),
        ("DELETE", "/v1/anything", True),
        ("POST", "/v1/a-route-of-next-year", True),
    ],
)
def test_what_is_not_known_to_read_is_a_change(method: str, route: str, said: bool) -> None:
    assert is_change(method, route) is said


def test_an_unlocked_guard_locks_by_itself_when_its_time_is_over() -> None:
    clock = Seconds()
    guard = WriteGuard(steady_clock=clock)
    assert guard.is_locked
    guard.unlock(600)
    clock.now_s += 599
    guard.check("POST /v1/apply")
    assert guard.unlocked_for_s == 1
    clock.now_s += 1
    assert guard.is_locked
    with pytest.raises(FleetError) as caught:
        guard.check("POST /v1/apply", host="one")
    assert (caught.value.code, caught.value.host) == ("E121", "one")
    assert "POST /v1/apply was not sent" in caught.value.message
    assert "^x" in caught.value.hint


def test_work_that_began_while_changes_were_allowed_may_finish() -> None:
    clock = Seconds()
    guard = WriteGuard(steady_clock=clock)
    guard.unlock(600)
    with guard.working():
        clock.now_s += 3600
        guard.lock()
        guard.check("POST /v1/apply")
    with guard.working(), pytest.raises(FleetError, match="read-only"):
        guard.check("POST /v1/apply")


def test_a_session_that_may_never_change_anything_says_why() -> None:
    guard = WriteGuard(never="it shows a recording")
    with pytest.raises(FleetError, match="it shows a recording"):
        guard.unlock(600)
    assert guard.is_locked


async def test_nothing_that_changes_a_host_leaves_while_the_guard_is_locked(tmp_path: Path) -> None:
    agent = ServedAgent(tmp_path / "one")
    bodies: list[bytes] = []

    def take(body: bytes) -> Done:
        bodies.append(body)
        return Done(message="done")

    agent.answers |= {"/v1/facts": values.facts("one"), "/v1/abort": take, "/v1/manifest": take}
    guard = WriteGuard()
    fleet = Fleet([access("one", agent.root)], cluster="lab", open_client=agent_client, guard=guard)
    async with serving(agent):
        assert (await fleet.get("one", "/v1/facts", HostFacts)).name == "one"
        assert (await fleet.post("one", "/v1/manifest", ABORT, Done)).message == "done"
        with pytest.raises(FleetError, match="read-only") as caught:
            await fleet.post("one", "/v1/abort", ABORT, Done)
        assert caught.value.code == "E121"
        with pytest.raises(FleetError, match="read-only"):
            await anext(fleet.stream("one", "POST", "/v1/apply", ABORT, ApplyEvent))
        # Whoever takes a client of the fleet's own and writes with it meets the same guard.
        client = await fleet.client_of("one", str(agent.socket))
        with pytest.raises(FleetError, match="PUT /v1/upload/x was not sent"):
            await client.put("/v1/upload/x", content=b"weights")
        async with fleet.own_client_of("one", str(agent.socket)) as own:
            with pytest.raises(FleetError, match="read-only"):
                await own.post("/v1/abort")
        with pytest.raises(FleetError, match="the command `rm` was not sent"):
            await fleet.transport("one").run(["rm", "-rf", "."])
        with pytest.raises(FleetError, match="read-only"):
            await fleet.transport("one").put_bytes(b"x", str(tmp_path / "new"))
        assert len(bodies) == 1, "only what reads arrived"
        assert not (tmp_path / "new").exists()

        guard.unlock(600)
        assert (await fleet.post("one", "/v1/abort", ABORT, Done)).message == "done"
        assert (await fleet.transport("one").run(["true"])).exit_status == 0
        await fleet.close()
    assert len(bodies) == 2


async def test_a_fleet_without_a_guard_is_a_verbs_own(tmp_path: Path) -> None:
    agent = ServedAgent(tmp_path / "one")
    agent.answers["/v1/abort"] = Done(message="done")
    fleet = Fleet([access("one", agent.root)], cluster="lab", open_client=agent_client)
    async with serving(agent):
        assert (await fleet.post("one", "/v1/abort", ABORT, Done)).message == "done"
        await fleet.close()


async def test_a_refusal_does_not_depend_on_whether_the_host_answers(tmp_path: Path) -> None:
    fleet = Fleet(
        [access("one", tmp_path / "one")],
        cluster="lab",
        open_client=agent_client,
        guard=WriteGuard(),
    )
    with pytest.raises(FleetError) as caught:
        await fleet.post("one", "/v1/abort", ABORT, Done)
    assert caught.value.code == "E121"
    await fleet.close()
