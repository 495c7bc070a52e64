"""Loads as they are typed, and a deployment measured through its host."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.errors import FleetError
from agent.planner.plan import Serving
from odctl.bench.deployment import default_load, gateway_client, measure_deployment, parse_load
from odctl.bench.run import Measurement
from odctl.fleet import Fleet
from odctl.ssh.http import agent_client
from tests.agent.api.rig import Rig, open_rig
from tests.odctl.fleet.served_agent import access
from tests.odctl.tui import frozen_fleet as frozen

SERVING = Serving(context=256, batch=4)


@pytest.fixture(scope="module")
def serving_rig() -> Iterator[Rig]:
    with tempfile.TemporaryDirectory(prefix="gw-") as directory, open_rig(Path(directory)) as shared:
        shared.serve()
        yield shared


@pytest.mark.parametrize("serving", [SERVING, Serving(), Serving(context=64, batch=512)])
def test_the_load_that_is_offered_can_be_served(serving: Serving) -> None:
    settings = parse_load(default_load(serving), serving)
    load = settings.load
    assert load.concurrency <= min(serving.batch, 16)
    assert load.prompt.high + load.output.high <= serving.context
    assert load.num_requests is not None
    assert load.num_requests >= 16


def test_a_load_is_read_word_by_word() -> None:
    settings = parse_load("concurrency=3 requests=7 prompt=10..20 output=normal:30:4 warm-up=0 seed=5", SERVING)
    load = settings.load
    assert (load.arrivals, load.concurrency, load.num_requests, load.seed) == ("closed", 3, 7, 5)
    assert (str(load.prompt), str(load.output), settings.warm_up) == ("10..20", "normal:30:4", 0)
    assert parse_load("", SERVING).load.num_requests == 16


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("concurrency=17", "the way through a host carries 16"),
        ("prompt=200 output=100", "up to 300 tokens, the context has 256"),
        ("prompt=no", "'no' is no length in tokens"),
        ("requests=", "`requests=` says nothing of a load"),
        ("warm-up=20000", "warm-up=20000: from 0 to 10000"),
        ("requests=20000", "requests=20000: up to 10000 here"),
    ],
)
def test_what_cannot_be_is_named(text: str, said: str) -> None:
    with pytest.raises(FleetError) as refused:
        parse_load(text, SERVING)
    assert refused.value.code == "E118"
    assert said in refused.value.message


async def test_a_deployment_is_measured_through_its_host(serving_rig: Rig) -> None:
    status = frozen.status(name="demo", gateway_host="one", gateway_socket=str(serving_rig.socket))
    told: list[str] = []
    measurement = Measurement(
        parse_load("concurrency=2 requests=5 prompt=40 output=6 warm-up=1", SERVING), tell=told.append
    )
    fleet = Fleet([access("one", serving_rig.directory)], cluster="lab", open_client=agent_client)
    try:
        await measure_deployment(fleet, status, measurement)
    finally:
        await fleet.close()
    [(label, figures)] = measurement.totals()
    assert label == "demo on one"
    assert (figures.num_answered, figures.num_failed, figures.mean_output_tokens) == (5, 0, 6.0)
    assert told == ["demo on one: warming up", "demo on one: round 1 of 1"]


async def test_more_clients_than_the_way_carries_are_sent_to_the_address(serving_rig: Rig) -> None:
    status = frozen.status(name="demo", gateway_host="one", gateway_socket=str(serving_rig.socket))
    load = msgspec.structs.replace(parse_load("", SERVING).load, concurrency=17)
    fleet = Fleet([access("one", serving_rig.directory)], cluster="lab", open_client=agent_client)
    with pytest.raises(FleetError) as refused:
        await gateway_client(fleet, status, load)
    await fleet.close()
    assert "odctl bench http://127.0.0.1:11434" in refused.value.hint
