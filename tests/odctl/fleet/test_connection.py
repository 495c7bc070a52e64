from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest

from agent.errors import ErrorDetail, FleetError
from agent.facts.cluster import HostFacts
from agent.facts.sample import HostSample
from agent.wire.agent import AbortRequest, Done
from odctl.fleet import Fleet
from odctl.ssh.http import agent_client
from tests.odctl.fleet import values
from tests.odctl.fleet.served_agent import ServedAgent, access, serving


@pytest.fixture
def agent(tmp_path: Path) -> ServedAgent:
    served = ServedAgent(tmp_path / "one")
    served.answers["/v1/facts"] = values.facts("one")
    return served


def fleet_of(*agents: ServedAgent) -> Fleet:
    return Fleet([access(agent.root.name, agent.root) for agent in agents], cluster="lab", open_client=agent_client)


async def test_get_decodes_the_agents_answer(agent: ServedAgent) -> None:
    fleet = fleet_of(agent)
    async with serving(agent):
        assert await fleet.get("one", "/v1/facts", HostFacts) == values.facts("one")
        assert await fleet.get("one", "/v1/logs", str) == "first line\nsecond line\n"
    await fleet.close()


async def test_post_sends_the_message(agent: ServedAgent) -> None:
    def abort(body: bytes) -> Done:
        return Done(message=msgspec.msgpack.decode(body, type=AbortRequest).deployment)

    agent.answers["/v1/abort"] = abort
    fleet = fleet_of(agent)
    async with serving(agent):
        done = await fleet.post("one", "/v1/abort", AbortRequest(deployment="chat", holder="me"), Done)
    assert done.message == "chat"
    await fleet.close()


async def test_a_remote_error_keeps_its_code_and_names_the_host(agent: ServedAgent) -> None:
    agent.errors["/v1/facts"] = ErrorDetail(code="E501", message="locked by ann", hint="wait")
    fleet = fleet_of(agent)
    async with serving(agent):
        with pytest.raises(FleetError) as caught:
            await fleet.get("one", "/v1/facts", HostFacts)
    assert caught.value.detail == ErrorDetail(code="E501", message="locked by ann", hint="wait", host="one")
    await fleet.close()


async def test_an_answer_of_another_shape_says_that_versions_differ(agent: ServedAgent) -> None:
    agent.answers["/v1/facts"] = {"unexpected": 1}
    fleet = fleet_of(agent)
    async with serving(agent):
        with pytest.raises(FleetError, match="not what we expect") as caught:
            await fleet.get("one", "/v1/facts", HostFacts)
    assert "bootstrap" in caught.value.hint
    await fleet.close()


async def test_a_host_without_an_agent_is_named_with_the_way_out(tmp_path: Path) -> None:
    fleet = Fleet([access("two", tmp_path)], cluster="lab", open_client=agent_client)
    with pytest.raises(FleetError) as caught:
        await fleet.get("two", "/v1/facts", HostFacts)
    assert (caught.value.code, caught.value.host) == ("E206", "two")
    assert "odctl bootstrap two" in caught.value.hint
    await fleet.close()


async def test_get_all_gives_each_host_its_answer_or_its_error(agent: ServedAgent, tmp_path: Path) -> None:
    fleet = Fleet(
        [access("two", tmp_path / "two"), access("one", agent.root)], cluster="lab", open_client=agent_client
    )
    async with serving(agent):
        answers = await fleet.get_all("/v1/facts", HostFacts)
    assert list(answers) == ["one", "two"]
    assert answers["one"] == values.facts("one")
    assert isinstance(answers["two"], FleetError)
    await fleet.close()


async def test_a_host_outside_the_inventory_is_refused_by_name(agent: ServedAgent) -> None:
    with pytest.raises(FleetError, match="`three` is not in the inventory") as caught:
        await fleet_of(agent).get("three", "/v1/facts", HostFacts)
    assert "one" in caught.value.hint


async def test_frames_arrive_while_the_stream_is_open(agent: ServedAgent) -> None:
    agent.add_sample(values.sample("one", at_s=1.0))
    fleet = fleet_of(agent)
    async with serving(agent), aclosing(fleet.stream("one", "GET", "/v1/samples", None, HostSample)) as samples:
        assert (await anext(samples)).taken_at_s == 1.0
        agent.add_sample(values.sample("one", at_s=2.0))
        assert (await anext(samples)).taken_at_s == 2.0
        agent.hang_up()
        with pytest.raises(StopAsyncIteration):
            await anext(samples)
    await fleet.close()


async def test_a_stream_that_ends_inside_a_frame_is_an_error(agent: ServedAgent) -> None:
    agent.is_cut_inside_frame = True
    fleet = fleet_of(agent)
    async with serving(agent):
        with pytest.raises(FleetError, match="inside a frame") as caught:
            async for _ in fleet.stream("one", "GET", "/v1/samples", None, HostSample):
                pass
    assert caught.value.host == "one"
    await fleet.close()


async def test_a_restarted_agent_is_asked_again_on_a_new_connection(agent: ServedAgent) -> None:
    fleet = fleet_of(agent)
    async with serving(agent):
        await fleet.get("one", "/v1/facts", HostFacts)
    async with serving(agent):
        assert (await fleet.get("one", "/v1/facts", HostFacts)).name == "one"
    await fleet.close()


async def test_the_home_directory_is_asked_for_once_on_the_host(agent: ServedAgent) -> None:
    host = access("one", agent.root, prefix="~/")
    fleet = Fleet([host], cluster="lab", open_client=agent_client)
    async with serving(agent):
        await fleet.get("one", "/v1/facts", HostFacts)
        await fleet.get("one", "/v1/facts", HostFacts)
    assert await fleet.prefix("one") == str(agent.root)
    await fleet.close()
