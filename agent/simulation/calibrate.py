"""Fits the simulator's engine to a run that was measured: the factors with which it repeats that run best. Pure.

The run is simulated again and again under other factors, by a pattern search (Hooke and Jeeves, 1961) in
logarithms. What is minimised is the mean absolute logarithm of simulated / measured, over every time to a first
token and every time per token: a few outliers of a noisy machine move it little.
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
"""Requests with a measured time to the first token: there are four factors to fit."""
ROUNDS = 12
FIRST_STRIDE, LAST_STRIDE = 0.6, 0.02
"""In natural logarithms."""
FIRST_ROW_S, FIRST_REQUEST_S = 50e-6, 2e-3
"""Where the search begins for what the cost model leaves out."""
BOUNDS = {"decode": (0.02, 50.0), "prefill": (0.02, 50.0), "row_s": (1e-8, 1.0), "request_s": (1e-5, 10.0)}


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    calibration: Calibration
    num_measured: int
    """Requests with measured times."""
    error_before: float
    """Mean absolute logarithm of simulated / measured as the cost model has it; 0.1 is about 10 %."""
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
        return mean_error(trace, run(calibration))

    best = Calibration(row_s=FIRST_ROW_S, request_s=FIRST_REQUEST_S)
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
    return Fit(calibration=best, num_measured=num_measured, error_before=error_of(Calibration()), error_after=least)


def mean_error(trace: Sequence[TraceRequest], simulation: Simulation) -> float:
    """Mean absolute logarithm of simulated / measured, over all times that both have."""
    errors = []
    for asked, found in zip(trace, simulation.requests, strict=True):
        if found.token_s and asked.ttft_s is not None:
            errors.append(abs(math.log(found.ttft_s / asked.ttft_s)))
        if found.tpot_s and asked.tpot_s is not None:
            errors.append(abs(math.log(found.tpot_s / asked.tpot_s)))
    return math.fsum(errors) / len(errors) if errors else math.inf
