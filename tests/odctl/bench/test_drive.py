"""The load generator against a scripted server: what is counted, and how much load there really is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import msgspec
import pytest

from agent.errors import FleetError
from odctl.bench.load import Lengths, Load
from odctl.bench.measure import Figures, Objectives
from odctl.bench.run import Measurement, Settings
from odctl.bench.server import Server, find_server
from tests.odctl.bench.http_server import ScriptedServer

LOAD = Load(
    arrivals="closed",
    concurrency=3,
    rate_per_s=0.0,
    num_requests=12,
    duration_s=None,
    prompt=Lengths(low=40, high=40),
    output=Lengths(low=4, high=4),
)
SETTINGS = Settings(load=LOAD, objectives=Objectives(), warm_up=0)


@asynccontextmanager
async def server_of(scripted: ScriptedServer, *, timeout_s: float = 5.0) -> AsyncIterator[Server]:
    async with (
        scripted.serve() as address,
        httpx.AsyncClient(base_url=address, trust_env=False) as client,
    ):
        yield await find_server(client, label=address, api=None, model="", timeout_s=timeout_s)


async def measure(scripted: ScriptedServer, settings: Settings = SETTINGS, *, timeout_s: float = 5.0) -> Figures:
    measurement = Measurement(settings, tell=lambda _text: None)
    async with server_of(scripted, timeout_s=timeout_s) as server:
        await measurement.run(server)
    [(_, found)] = measurement.totals()
    return found


async def test_every_request_is_answered_at_the_concurrency_that_was_asked_for() -> None:
    scripted = ScriptedServer()
    scripted.piece_s = 0.02
    found = await measure(scripted)
    assert (found.num_answered, found.errors, found.mean_output_tokens) == (12, {}, 4.0)
    assert found.mean_prompt_tokens == pytest.approx(40, abs=6)
    assert scripted.most_under_way == 3
    assert found.ttft_s is not None
    assert found.tpot_s is not None
    assert found.ttft_s.p50 >= 0.02
    assert found.tpot_s.p50 >= 0.02
    assert len(set(scripted.prompts)) == 12


async def test_failures_are_counted_by_kind_and_do_not_stop_the_load() -> None:
    scripted = ScriptedServer()
    kinds = ["answer", "refuse", "hang up", "break", "cut off", "babble"]
    scripted.behaviour = lambda number: kinds[number % len(kinds)]
    found = await measure(scripted)
    assert found.num_answered == 2
    assert found.errors == {
        "http 503": 2,
        "connection lost": 2,
        "error in the stream": 2,
        "cut off": 2,
        "not understood": 2,
    }
    assert found.examples["http 503"] == "no room"
    assert found.examples["error in the stream"] == "a rank is lost"
    assert found.good_share == pytest.approx(2 / 12)


async def test_a_server_that_stalls_is_a_timeout() -> None:
    settings = msgspec.structs.replace(SETTINGS, load=msgspec.structs.replace(LOAD, num_requests=3))
    found = await measure(ScriptedServer("stall"), settings, timeout_s=0.3)
    assert found.errors == {"timeout": 3}


async def test_arrivals_of_their_own_accord_do_not_wait_for_answers() -> None:
    scripted = ScriptedServer()
    scripted.piece_s = 0.1
    load = msgspec.structs.replace(LOAD, arrivals="fixed", rate_per_s=40.0, concurrency=100, num_requests=12)
    found = await measure(scripted, msgspec.structs.replace(SETTINGS, load=load))
    assert found.num_answered == 12
    assert scripted.most_under_way >= 8  # 12 requests within 0.3 s, each of which takes 0.4 s
    assert found.elapsed_s >= 11 / 40 + 0.4


async def test_a_duration_ends_the_asking_and_waits_for_the_answers() -> None:
    scripted = ScriptedServer()
    scripted.piece_s = 0.05
    load = msgspec.structs.replace(LOAD, num_requests=None, duration_s=0.5)
    found = await measure(scripted, msgspec.structs.replace(SETTINGS, load=load))
    assert found.num_answered >= 3
    assert (found.num_unfinished, found.errors) == (0, {})
    assert found.elapsed_s >= 0.5


async def test_warm_up_is_asked_for_and_not_counted() -> None:
    scripted = ScriptedServer()
    found = await measure(scripted, msgspec.structs.replace(SETTINGS, warm_up=5))
    assert (found.num_answered, scripted.num_asked) == (12, 17)


async def test_a_measurement_that_is_broken_off_reports_what_it_has() -> None:
    scripted = ScriptedServer()
    scripted.behaviour = lambda number: "answer" if number < 6 else "stall"
    measurement = Measurement(SETTINGS, tell=lambda _text: None)

    async with server_of(scripted) as server, asyncio.TaskGroup() as group:
        task = group.create_task(measurement.run(server))
        for _ in range(3):
            await asyncio.wait_for(scripted.stalled.acquire(), timeout=10)
        task.cancel()
    [(_, found)] = measurement.totals()
    assert (found.num_answered, found.num_unfinished, found.errors) == (6, 3, {})


async def test_two_servers_take_turns_and_the_faster_one_has_the_larger_rate() -> None:
    slow, fast = ScriptedServer(), ScriptedServer()
    slow.piece_s = 0.03
    measurement = Measurement(
        msgspec.structs.replace(SETTINGS, rounds=3, load=msgspec.structs.replace(LOAD, num_requests=3)),
        tell=lambda _text: None,
    )
    async with server_of(fast) as first, server_of(slow) as second:
        await measurement.run(first, second)
    found = {ratio.what: ratio for ratio in measurement.ratios()}
    assert found["output tokens/s"].num_rounds == 3
    assert found["output tokens/s"].least > 1
    assert found["time per token, p50"].largest < 1
    assert slow.prompts == fast.prompts
    assert [len(each) for each in measurement.rounds()] == [2, 2, 2]


async def test_an_address_where_nobody_listens_is_told_at_once() -> None:
    async with httpx.AsyncClient(base_url="http://127.0.0.1:9", trust_env=False) as client:
        with pytest.raises(FleetError, match="nobody") as refusal:
            await find_server(client, label="nobody", api=None, model="", timeout_s=1.0)
    assert refusal.value.code == "E808"
