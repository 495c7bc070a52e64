from __future__ import annotations

import asyncio

import msgspec

from agent.facts.sample import HostSample
from agent.telemetry.history import SampleHistory


def sample(at_s: float) -> HostSample:
    return HostSample(
        host="a",
        taken_at_s=at_s,
        cpu=0.1,
        load_1m=0.0,
        memory_total_bytes=1,
        memory_used_bytes=1,
        swap_total_bytes=0,
        swap_used_bytes=0,
        uptime_s=at_s,
    )


def decoded(frame: bytes) -> HostSample:
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    return msgspec.msgpack.decode(frame[4:], type=HostSample)


def test_the_ring_keeps_the_newest() -> None:
    history = SampleHistory(span_s=3)
    for number in range(5):
        history.add(sample(number))
    assert [decoded(frame).taken_at_s for frame in history.since(-1)] == [2, 3, 4]
    assert [decoded(frame).taken_at_s for frame in history.since(3)] == [4]
    assert history.latest == sample(4)


async def test_a_follower_sees_the_past_and_then_each_new_sample() -> None:
    history = SampleHistory(span_s=10)
    history.add(sample(1))
    history.add(sample(2))
    seen: list[float] = []
    async with asyncio.timeout(5):
        async for frame in history.follow(1):
            seen.append(decoded(frame).taken_at_s)
            if seen[-1] < 5:
                history.add(sample(seen[-1] + 1))
            else:
                break
    assert seen == [2, 3, 4, 5]


async def test_a_slow_follower_loses_samples_and_goes_on_with_the_newest() -> None:
    history = SampleHistory(span_s=3)
    history.add(sample(0))
    follower = history.follow(-1)
    assert decoded(await anext(follower)).taken_at_s == 0
    for number in range(1, 10):
        history.add(sample(number))
    async with asyncio.timeout(5):
        seen = [decoded(await anext(follower)).taken_at_s for _ in range(3)]
    assert seen == [7, 8, 9]
