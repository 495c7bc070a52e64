"""What load is put on a server: when requests begin, how long they are. Pure: a seed always gives the same load."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Literal

import msgspec

from agent.errors import FleetError
from agent.simulation.trace import TraceRequest

MAX_REQUESTS = 1_000_000
MAX_CONCURRENCY = 4096
MAX_DURATION_S = 24 * 3600.0
MAX_RATE = 100_000.0
MAX_TOKENS = 1_000_000
TUNNEL_CONCURRENCY = 16
"""Requests that the way through a host's transport carries at once."""

Arrivals = Literal["closed", "fixed", "poisson", "trace"]
"""Closed: a client asks again when it has its answer. The others: requests come whatever the server does."""
SHARED_GROUP = "shared"
"""Prefix group of a load's `shared_prefix` in a trace."""


class Lengths(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of tokens: uniform from `low` to `high`, or normal around `mean` and cut to these bounds."""

    low: int
    high: int
    mean: float | None = None
    deviation: float = 0.0

    def draw(self, randomness: random.Random) -> int:
        if self.mean is None:
            return randomness.randint(self.low, self.high)
        drawn = round(randomness.gauss(self.mean, self.deviation))
        return max(self.low, min(self.high, drawn))

    def __str__(self) -> str:
        if self.mean is not None:
            return f"normal:{self.mean:g}:{self.deviation:g}"
        return str(self.low) if self.low == self.high else f"{self.low}..{self.high}"


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """`num_requests` None: as many as come within `duration_s`; `duration_s` None: until all have their answer."""

    arrivals: Arrivals
    concurrency: int
    """Clients of a closed loop; for arrivals of their own accord the most that may be under way."""
    rate_per_s: float
    num_requests: int | None
    duration_s: float | None
    prompt: Lengths
    output: Lengths
    shared_prefix: int = 0
    """First tokens of every prompt that are the same in all of them; part of the prompt's length."""
    seed: int = 0
    trace: tuple[TraceRequest, ...] = ()
    """The requests of arrivals that are a trace; lengths and rate above say nothing then."""


class Shot(msgspec.Struct, frozen=True, kw_only=True):
    """One request to make, `at_s` after the begin. In a closed loop that is when a client is free."""

    index: int
    at_s: float
    prompt_tokens: int
    output_tokens: int
    prefix_group: str = ""
    """Whose first `prefix_tokens` it shares."""
    prefix_tokens: int = 0
    client: str = ""


def parse_lengths(text: str) -> Lengths:
    """`128`, `64..256` or `normal:128:32`. Raises E118."""
    try:
        if text.startswith("normal:"):
            _, mean, deviation = text.split(":")
            lengths = Lengths(low=1, high=MAX_TOKENS, mean=float(mean), deviation=float(deviation))
            is_sound = 1 <= float(mean) <= MAX_TOKENS and float(deviation) >= 0
        else:
            low, dots, high = text.partition("..")
            lengths = Lengths(low=int(low), high=int(high if dots else low))
            is_sound = 1 <= lengths.low <= lengths.high <= MAX_TOKENS
    except ValueError:
        is_sound = False
    if not is_sound:
        raise FleetError(
            "E118",
            f"{text!r} is no length in tokens",
            hint=f"128, 64..256 or normal:128:32, up to {MAX_TOKENS}",
        )
    return lengths


def check_load(load: Load) -> None:
    """Raises E118 naming the limit that a load breaks."""
    least_prompt = load.prompt.low if load.prompt.mean is None else round(load.prompt.mean)
    problem = ""
    if load.num_requests is None and load.duration_s is None:
        problem = "neither a number of requests nor a duration is given"
    elif load.num_requests is not None and not 1 <= load.num_requests <= MAX_REQUESTS:
        problem = f"{load.num_requests} requests: from 1 to {MAX_REQUESTS} are possible"
    elif load.duration_s is not None and not 0 < load.duration_s <= MAX_DURATION_S:
        problem = f"{load.duration_s:g} s: up to {MAX_DURATION_S:g} s are possible"
    elif not 1 <= load.concurrency <= MAX_CONCURRENCY:
        problem = f"{load.concurrency} at a time: from 1 to {MAX_CONCURRENCY} are possible"
    elif load.arrivals == "trace":
        problem = "" if load.trace else "a trace without requests"
    elif load.arrivals != "closed" and not 0 < load.rate_per_s <= MAX_RATE:
        problem = f"{load.rate_per_s:g} requests/s: up to {MAX_RATE:g} are possible"
    elif not 0 <= load.shared_prefix < least_prompt:
        problem = f"a shared prefix of {load.shared_prefix} tokens in prompts of {load.prompt}"
    if problem:
        raise FleetError("E118", problem)


def shots(load: Load) -> Iterator[Shot]:
    """The requests in order; without end when only a duration is given."""
    if load.arrivals == "trace":
        yield from _trace_shots(load)
        return
    randomness = random.Random(load.seed)
    at_s = 0.0
    index = 0
    while load.num_requests is None or index < load.num_requests:
        if load.arrivals == "fixed":
            at_s = index / load.rate_per_s
        elif load.arrivals == "poisson" and index:
            at_s += randomness.expovariate(load.rate_per_s)
        if load.duration_s is not None and at_s >= load.duration_s:
            return
        yield Shot(
            index=index,
            at_s=at_s,
            prompt_tokens=max(load.prompt.draw(randomness), load.shared_prefix + 1),
            output_tokens=load.output.draw(randomness),
            prefix_group=SHARED_GROUP if load.shared_prefix else "",
            prefix_tokens=load.shared_prefix,
        )
        index += 1


def _trace_shots(load: Load) -> Iterator[Shot]:
    for index, asked in enumerate(load.trace[: load.num_requests]):
        if load.duration_s is not None and asked.arrival_s >= load.duration_s:
            return
        yield Shot(
            index=index,
            at_s=asked.arrival_s,
            prompt_tokens=asked.prompt_tokens,
            output_tokens=asked.output_tokens,
            prefix_group=asked.prefix_group,
            prefix_tokens=asked.prefix_tokens,
            client=asked.client,
        )


def trace_of(load: Load) -> tuple[TraceRequest, ...]:
    """A load whose requests come whatever the server does, as a trace."""
    assert load.arrivals != "closed", "when a client asks again, its answers decide"
    if load.arrivals == "trace" and load.duration_s is None:
        return load.trace[: load.num_requests]
    return tuple(
        TraceRequest(
            arrival_s=shot.at_s,
            prompt_tokens=shot.prompt_tokens,
            output_tokens=shot.output_tokens,
            prefix_group=shot.prefix_group,
            prefix_tokens=shot.prefix_tokens,
            client=shot.client,
        )
        for shot in shots(load)
    )
