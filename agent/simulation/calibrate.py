"""Fits the simulator's engine to a run that was measured: the factors with which it repeats that run best. Pure.

The run is simulated again and again under other factors, by a pattern search (Hooke and Jeeves, 1961) in
logarithms. What is minimised is how far the distributions are apart, of times to the first token and of times per
token: single requests of a noisy machine repeat nowhere. Distances are logarithms of simulated / measured, one for
each of `PERCENTS`, and large ones count linearly (Huber, 1964).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec

from agent.errors import FleetError
from agent.simulation.result import Simulation
from agent.simulation.step_times import Calibration
from agent.simulation.trace import TraceRequest

MIN_MEASURED = 4
"""Requests with a measured time to the first token."""
PERCENTS = (10, 25, 50, 75, 90, 95)
HUBER = 0.3
"""Distance from which it counts linearly."""
ROUNDS = 24
FIRST_STRIDE, LAST_STRIDE = 0.6, 0.03
"""In natural logarithms."""
FIRST_ROW_S, FIRST_REQUEST_S, FIRST_JITTER = 50e-6, 2e-3, 0.1
"""Where the search begins for what the cost model leaves out."""
BOUNDS = {
    "decode": (0.02, 50.0),
    "prefill": (0.02, 50.0),
    "row_s": (1e-8, 1.0),
    "request_s": (1e-5, 10.0),
    "jitter": (0.01, 1.5),
}


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    calibration: Calibration
    num_measured: int
    """Requests with measured times."""
    error_before: float
    """Mean absolute logarithm of simulated / measured percentiles as the cost model has it; 0.1 is about 10 %."""
    error_after: float


def calibrate(trace: Sequence[TraceRequest], run: Callable[[Calibration], Simulation]) -> Fit:
    """The calibration under which `run`, which simulates `trace`, comes closest to what was measured.

    Raises FleetError E118 for a trace without enough measured times.
    """
    num_measured = sum(each.ttft_s is not None for each in trace)
    if num_measured < MIN_MEASURED:
        raise FleetError(
            "E118",
            f"{num_measured} requests of the trace have a measured `ttft_s`: at least {MIN_MEASURED} are needed",
            hint="record a run with `odctl bench TARGET --record FILE`",
        )

    def error_of(calibration: Calibration) -> float:
        return math.fsum(_huber(each) for each in distances(trace, run(calibration)))

    best = Calibration(row_s=FIRST_ROW_S, request_s=FIRST_REQUEST_S, jitter=FIRST_JITTER)
    least = error_of(best)
    stride = FIRST_STRIDE
    for _ in range(ROUNDS):
        before = least
        for name, (low, high) in BOUNDS.items():
            for factor in (math.exp(stride), math.exp(-stride)):
                value = min(high, max(low, getattr(best, name) * factor))
                changed = msgspec.structs.replace(best, **{name: value})
                error = error_of(changed)
                if error < least:
                    best, least = changed, error
                    break
        if least == before:
            stride /= 2
            if stride < LAST_STRIDE:
                break
    return Fit(
        calibration=best,
        num_measured=num_measured,
        error_before=_mean(distances(trace, run(Calibration()))),
        error_after=_mean(distances(trace, run(best))),
    )


def distances(trace: Sequence[TraceRequest], simulation: Simulation) -> list[float]:
    """Logarithms of simulated / measured percentiles, over the requests that have both."""
    found: list[float] = []
    pairs = list(zip(trace, simulation.requests, strict=True))
    for ours, theirs in (
        ([each.ttft_s for _, each in pairs if each.token_s], [asked.ttft_s for asked, _ in pairs]),
        ([each.tpot_s for _, each in pairs], [asked.tpot_s for asked, _ in pairs]),
    ):
        simulated, measured = sorted(filter(None, ours)), sorted(filter(None, theirs))
        if simulated and measured:
            found += [
                math.log(percentile(simulated, percent) / percentile(measured, percent)) for percent in PERCENTS
            ]
    return found


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Linear between the two nearest of the ascending values (Hyndman and Fan's type 7)."""
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _huber(distance: float) -> float:
    size = abs(distance)
    return size**2 / 2 if size <= HUBER else HUBER * (size - HUBER / 2)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(map(abs, values)) / len(values) if values else 0.0
