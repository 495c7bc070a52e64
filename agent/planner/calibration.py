"""Constants of the cost model fitted to measured runs, and how sure they are. Pure, deterministic.

A prediction is a sum of parts: seconds by what they are spent on, at the constants of `planner.rates`. With one
correction c for each part, and one b for what all runs of a model have in common, a run takes

    t = exp(b) * sum_k s_k * exp(c_k).

What goes over a link between two hosts is a part of its own, `tls messages @ a+b`, and has two corrections added
up: that of the carrier, which all its links have in common, and that of the link, which has one for what a message
waits and one for its bytes: a port that fell back to 100 Mbit/s waits no longer than before.

Before anything was measured corrections are 0 up to their prior's deviation; a measured run tells log t up to
`RUN_NOISE`. Corrections are the mode of what is known then: least squares of the logarithms with a ridge towards
the start (Hoerl and Kennard, 1970), by Gauss-Newton.

Uncertainty is linearised at the constants of `planner.rates`: it depends on the parts of the runs, not on what they
measured, so that a further run can only narrow it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from agent.planner.interval import Interval

Parts = Mapping[str, float]
"""Seconds by what they are spent on: `cuda reads`, `unprobed cpu reads`, `tls reduces @ a+b`, `step` …"""
HostPair = tuple[str, str]
"""A link between two hosts, whatever its direction: their names in order."""

PRIOR_DEVIATION = {
    "reads": 0.15,
    "decode_flops": 0.25,
    "prefill_flops": 0.25,
    "launches": 0.25,
    "experts": 0.6,
    "reduces": 0.35,
    "reduced_bytes": 0.35,
    "messages": 0.5,
    "message_bytes": 0.5,
    "rests": 0.6,
    "step": 0.6,
    "request": 0.8,
}
"""Deviation of the logarithm of each constant, by the last word of a part's name.

As the efficiencies of `planner.rates` scatter when they are fitted to one system of the public runs and used for
another (`make bench-silicon`); carriers and the step as our own ranks scatter between quiet and shared machines.
"""
LINK_DEVIATION = 0.5
"""Of one link beside its carrier's others: another cable, a loaded switch, a port that fell back to 100 Mbit/s."""
CHANGED_LINK_DEVIATION = 2.0
"""Of one that is not what it formerly was: what it is now may be ten times as much as well as twice."""
UNPROBED_CPU_DEVIATION = 0.5
"""Of a CPU's rates while they are the table's: cores of one name differ up to threefold in what they read."""
MODEL_DEVIATION = 0.22
"""Of what is peculiar to one model's kernels, once every constant is right."""
REHEARSED_DEVIATION = 0.08
"""Of a device's rates, and of a model's kernels, where that model was rehearsed there: the engine's own layers were
measured in its widths. Against the same deployment, rehearsed and asked in turn, predictions were 1 to 9% off. One
check of a few tokens has no more to say than that: it moved them by a fifth when it counted as for a table's rates.
"""
RUN_NOISE = 0.12
"""Deviation of one run's logarithm from its own parts: noise of the machine, and what the parts leave out."""
OUTLIER = 0.25
"""A run further off than this counts less, by its distance (Huber, 1964): its machine may have been busy."""
COVERAGE = 0.8
"""Share of measured runs that an interval should contain."""
COVERAGE_DEVIATIONS = 1.2816
"""The normal distribution's deviations for it, two-sided."""
MODEL, REHEARSED, REHEARSED_MODEL = "model ", "rehearsed ", ", rehearsed"
"""Of the name of what a model's runs have in common, and of the parts and the name where it was rehearsed."""
AT, LINK = " @ ", "link "
"""Of the names of parts that go over a link, and of its correction."""
WAIT, RATE = "latency ", "rate "
FORMERLY = ", formerly"
"""Ends both where the link was another one than it is now."""
MAX_ITERATIONS = 60
MAX_STEP = 0.5
TOLERANCE = 1e-9


class MeasuredTime(msgspec.Struct, frozen=True, kw_only=True):
    """One measured run: where its seconds should have gone, and how many there were."""

    parts: Parts
    measured_s: float
    model: str = ""
    """Whose runs have something in common: a model's digest and precision."""


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """Corrections by name, with the covariance of those that a run told something about (rows as in `names`)."""

    corrections: dict[str, float] = {}
    names: tuple[str, ...] = ()
    covariance: tuple[tuple[float, ...], ...] = ()
    num_runs: int = 0


PRIOR = Calibration()
"""Before any run: the constants of `planner.rates` as they are."""


def fit_calibration(runs: Sequence[MeasuredTime], *, start: Calibration = PRIOR) -> Calibration:
    """Corrections after these runs: `start`'s, moved as far as the runs weigh more than the prior.

    `start` says where corrections begin, not how sure they are: one deployment may differ from the rest that it was
    fitted to. Without runs the answer is `start`'s constants at the prior's uncertainty.
    """
    used = [run for run in runs if run.measured_s > 0 and sum(run.parts.values()) > 0]
    names = sorted({name for run in used for name in _names(run.parts, run.model)})
    if not names:
        return Calibration(corrections=start.corrections)
    index = {name: position for position, name in enumerate(names)}
    parts = sorted({name for run in used for name, part in run.parts.items() if part > 0})
    seconds = np.zeros((len(used), len(parts)))
    made_of = np.zeros((len(parts), len(names)))
    in_common = np.zeros((len(used), len(names)))
    for column, part in enumerate(parts):
        for name in corrections_of(part):
            made_of[column, index[name]] = 1.0
    for row, run in enumerate(used):
        seconds[row] = [run.parts.get(part, 0.0) for part in parts]
        if run.model:
            in_common[row, index[_model_name(run.model, run.parts)]] = 1.0
    measured = np.log([run.measured_s for run in used])
    origin = np.array([start.corrections.get(name, 0.0) for name in names])
    deviations = [
        CHANGED_LINK_DEVIATION if f"{name}{FORMERLY}" in index else prior_deviation(name) for name in names
    ]
    ridge = np.diag([(RUN_NOISE / deviation) ** 2 for deviation in deviations])
    found = origin.copy()
    for _ in range(MAX_ITERATIONS):
        predicted, slopes = _log_seconds(seconds, made_of, in_common, found)
        missed = measured - predicted
        weighted = slopes.T * np.minimum(1.0, OUTLIER / np.maximum(np.abs(missed), OUTLIER))
        gradient = weighted @ missed - ridge @ (found - origin)
        step = np.clip(np.linalg.solve(weighted @ slopes + ridge, gradient), -MAX_STEP, MAX_STEP)
        found += step
        if float(np.abs(step).max()) < TOLERANCE:
            break
    _, slopes = _log_seconds(seconds, made_of, in_common, np.zeros(len(names)))
    covariance = RUN_NOISE**2 * np.linalg.inv(slopes.T @ slopes + ridge)
    return Calibration(
        corrections=start.corrections | {name: float(value) for name, value in zip(names, found, strict=True)},
        names=tuple(names),
        covariance=tuple(tuple(float(value) for value in row) for row in (covariance + covariance.T) / 2),
        num_runs=len(used),
    )


def seconds_of(parts: Parts, calibration: Calibration, *, model: str = "") -> float:
    """Seconds that these parts take with the constants as corrected."""
    corrections = calibration.corrections
    total = sum(
        seconds * math.exp(sum(corrections.get(name, 0.0) for name in corrections_of(part)))
        for part, seconds in parts.items()
    )
    return total * math.exp(corrections.get(_model_name(model, parts), 0.0)) if model else total


def over_links(name: str, seconds: float, links: Sequence[HostPair]) -> dict[str, float]:
    """The seconds of a part as those of the links that it goes over, evenly; without links, as they are."""
    if not links:
        return {name: seconds}
    return {f"{name}{AT}{'+'.join(pair)}": seconds / len(links) for pair in links}


def corrections_of(part: str) -> tuple[str, ...]:
    """What corrects a part: its own constant, and where it goes over a link between hosts, the link's."""
    name, is_linked, link = part.partition(AT)
    kind = RATE if name.endswith("bytes") else WAIT
    return (name, f"{LINK}{kind}{link}") if is_linked else (name,)


def link_factors(calibration: Calibration) -> dict[HostPair, tuple[float, float]]:
    """By what runs found a link's latency longer, and its bytes slower, than known; of the links that were used."""
    found: dict[HostPair, dict[str, float]] = {}
    for name, value in calibration.corrections.items():
        if name.startswith(LINK) and not name.endswith(FORMERLY):
            kind = RATE if name.startswith(f"{LINK}{RATE}") else WAIT
            one, _, other = name.removeprefix(f"{LINK}{kind}").partition("+")
            found.setdefault((one, other), {})[kind] = math.exp(value)
    return {pair: (each.get(WAIT, 1.0), each.get(RATE, 1.0)) for pair, each in found.items()}


def predict_rate_interval(amount: float, parts: Parts, calibration: Calibration, *, model: str = "") -> Interval:
    """`amount` by the seconds of these parts: tokens per second of a cycle that gives so many."""
    seconds = predict_interval(parts, calibration, model=model)
    return Interval(low=amount / seconds.high, expected=amount / seconds.expected, high=amount / seconds.low)


def correction(parts: Parts, calibration: Calibration) -> float:
    """By what runs corrected the seconds of these parts; 1 before there was one."""
    total = sum(parts.values())
    return seconds_of(parts, calibration) / total if total > 0 and calibration.corrections else 1.0


def predict_interval(
    parts: Parts, calibration: Calibration, *, model: str = "", other_variance: float = 0.0
) -> Interval:
    """Seconds as an interval: the uncertainty of every constant by its share of them, and the noise of one run.

    `other_variance` of the logarithm is added, where parts are more than seconds: joules, by the watts.
    """
    expected = seconds_of(parts, calibration, model=model)
    deviation = math.sqrt(_variance(parts, calibration, model) + RUN_NOISE**2 + other_variance)
    factor = math.exp(COVERAGE_DEVIATIONS * deviation)
    return Interval(low=expected / factor, expected=expected, high=expected * factor)


def scale_parts(parts: Parts, factor: float) -> dict[str, float]:
    return {name: seconds * factor for name, seconds in parts.items()}


def sum_parts(*many: Parts) -> dict[str, float]:
    """All parts together, by name; in the order of the names, so that sums do not hang on who came first."""
    totals: dict[str, float] = {}
    for parts in many:
        for name, seconds in parts.items():
            totals[name] = totals.get(name, 0.0) + seconds
    return dict(sorted(totals.items()))


def prior_deviation(name: str) -> float:
    """How sure a constant is that nothing measured yet: deviation of its logarithm."""
    if name.startswith(MODEL):
        return REHEARSED_DEVIATION if name.endswith(REHEARSED_MODEL) else MODEL_DEVIATION
    if name.startswith(REHEARSED) and not name.endswith(" rests"):
        return REHEARSED_DEVIATION
    if name.startswith(LINK):
        return LINK_DEVIATION
    if name.startswith("unprobed cpu ") and name.endswith(("reads", "flops")):
        return UNPROBED_CPU_DEVIATION
    return PRIOR_DEVIATION[name.rpartition(" ")[2]]


def _names(parts: Parts, model: str) -> list[str]:
    """The corrections that a run tells something about."""
    known = [name for part, seconds in parts.items() if seconds > 0 for name in corrections_of(part)]
    return [*known, _model_name(model, parts)] if model else known


def _model_name(model: str, parts: Parts) -> str:
    """Runs on devices that have rehearsed a model have less in common that is not known yet."""
    is_rehearsed = any(part.startswith(REHEARSED) for part in parts)
    return f"{MODEL}{model}{REHEARSED_MODEL if is_rehearsed else ''}"


def _log_seconds(
    seconds: NDArray[np.float64],
    made_of: NDArray[np.float64],
    in_common: NDArray[np.float64],
    corrections: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logarithms of the runs' seconds, and their slopes: the share of each run that a correction is about.

    `seconds` are [run, part]; `made_of` [part, correction] is 1 where that corrects the part; `in_common` likewise
    [run, correction] of a whole run.
    """
    corrected = seconds * np.exp(made_of @ corrections)
    total = corrected.sum(axis=1)
    return np.log(total) + in_common @ corrections, corrected / total[:, None] @ made_of + in_common


def _variance(parts: Parts, calibration: Calibration, model: str) -> float:
    """Variance of the logarithm: shares at the uncorrected constants against their covariance."""
    total = sum(parts.values())
    shares: dict[str, float] = {}
    for part, seconds in parts.items():
        for name in corrections_of(part) if seconds > 0 else ():
            shares[name] = shares.get(name, 0.0) + seconds / total
    if model:
        shares[_model_name(model, parts)] = 1.0
    known = [(position, name) for position, name in enumerate(calibration.names) if name in shares]
    variance = sum(
        shares[a] * shares[b] * calibration.covariance[row][column] for row, a in known for column, b in known
    )
    told = {name for _, name in known}
    return variance + sum(
        (share * prior_deviation(name)) ** 2 for name, share in shares.items() if name not in told
    )
