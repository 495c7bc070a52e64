"""Since when what runs tell is true: runs of one layout, held against each other. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import msgspec

from agent.facts.run import MeasuredRun
from agent.planner.calibration import MeasuredTime

CHANGE = math.log(1.6)
"""From here on, runs of one plan differ by more than their noise and their machines' usual load."""
CHANGED_RUNS = 2
"""So many in a row, all off to the same side: one alone may have met a busy machine."""


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What one run tells: its times, and what of the cluster they hang on."""

    times: tuple[MeasuredTime, ...] = ()
    touched: frozenset[str] = frozenset()
    """Links between hosts that it went over, by their corrections' names; without any, its devices."""
    series: tuple[str, ...] = ()
    """What it may be held against: runs of the same model on the same devices in the same roles, however the plan's
    file has changed since."""


def find_begins(runs: Sequence[MeasuredRun], told: Sequence[Told]) -> dict[str, int]:
    """Of each link, or device, that changed, the index of the first run since.

    A change is found in runs of one layout, held against each other. It may be any of its links', and so ends what
    other layouts' runs told of them before.
    """
    series: dict[tuple[tuple[str, ...], int, bool], list[tuple[int, float]]] = {}
    for index, run in enumerate(runs):
        for number, time in enumerate(told[index].times):
            is_ttft = number > 0 or run.time_per_token_s <= 0
            series.setdefault((told[index].series, run.streams, is_ttft), []).append((index, _log_off(time)))
    begins: dict[str, int] = {}
    for of_one_plan in series.values():
        begin = of_one_plan[regime_start([off for _, off in of_one_plan])][0]
        if begin > of_one_plan[0][0]:
            for name in told[begin].touched:
                begins[name] = max(begins.get(name, 0), begin)
    return begins


def _log_off(time: MeasuredTime) -> float:
    return math.log(time.measured_s / sum(time.parts.values()))


def regime_start(values: Sequence[float]) -> int:
    """Where the values begin that the last one belongs to: after the latest change that `CHANGED_RUNS` confirm."""
    start, since = 0, 0
    for index in range(1, len(values)):
        usual = statistics.median(values[start : index - since])
        off = [value - usual for value in values[index - since : index + 1]]
        since = since + 1 if min(off) > CHANGE or max(off) < -CHANGE else int(abs(off[-1]) > CHANGE)
        if since >= CHANGED_RUNS:
            start, since = index + 1 - since, 0
    return start
