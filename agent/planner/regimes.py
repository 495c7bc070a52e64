"""Since when what runs tell is true: runs of one layout, held against each other. Pure.

What changed for good ends what earlier runs told of it. Where runs over links became slower, it may have been the
links, or hosts that had other work: the same hosts' runs of that time say which.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from agent.facts.run import MeasuredRun, RunSource
from agent.planner.calibration import LINK, RATE, WAIT, MeasuredTime, Parts, corrections_of

CHANGE = math.log(1.6)
"""From here on, runs of one plan differ by more than their noise and their machines' usual load."""
CHANGED_RUNS = 2
"""So many in a row, all off to the same side: one alone may have met a busy machine."""
BUSY_RUNS = 4
"""So many in a row may have met busy hosts on the word of their own times alone. Hosts that are busy for longer are
left with the link, and a link that became slow in a way that looks like it is left by then."""


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What one run tells: its times, and what of the cluster they hang on."""

    times: tuple[MeasuredTime, ...] = ()
    touched: frozenset[str] = frozenset()
    """Links between hosts that it went over, by their corrections' names; without any, its devices."""
    series: tuple[str, ...] = ()
    """What it may be held against: runs of the same model on the same devices in the same roles, however the plan's
    file has changed since."""
    hosts: frozenset[str] = frozenset()
    """The gateway's included."""

    @property
    def links(self) -> frozenset[str]:
        return frozenset(name for name in self.touched if name.startswith(LINK))


class Regimes(msgspec.Struct, frozen=True, kw_only=True):
    begins: dict[str, int]
    """Of each link, or device, that changed, the index of the first run since."""
    busy: frozenset[int]
    """Indices of runs that met busy hosts: what they took longer speaks against no link."""


class _Key(msgspec.Struct, frozen=True, kw_only=True):
    """Times that may be held against each other."""

    layout: tuple[str, ...]
    source: RunSource
    streams: int
    is_ttft: bool


class _Series(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of time of one layout, oldest first."""

    key: _Key
    told: Told
    parts: Parts
    indices: list[int]
    """Of the runs."""
    offs: list[float]
    """Logarithms of measured over predicted."""

    def shift(self, change: _Change) -> float | None:
        """By how much it became slower with the change, as a logarithm; None without runs before and after it."""
        before = [off for index, off in zip(self.indices, self.offs, strict=True) if index in change.before]
        after = [off for index, off in zip(self.indices, self.offs, strict=True) if index in change.after]
        return statistics.median(after) - statistics.median(before) if before and after else None


class _Change(msgspec.Struct, frozen=True, kw_only=True):
    """Where a series leaves what it did before. Ranges are of the indices of all runs."""

    series: _Series
    before: range
    after: range

    @property
    def is_slower(self) -> bool:
        return (self.series.shift(self) or 0.0) > 0

    @property
    def slow(self) -> frozenset[int]:
        """The series' own runs of the slow time."""
        return frozenset(set(self.series.indices) & set(self.after if self.is_slower else self.before))

    def slowdown(self, of: _Series) -> float | None:
        """By how much another series was slower in the slow time than in the other; negative: faster."""
        shift = of.shift(self)
        return None if shift is None else shift if self.is_slower else -shift


def find_regimes(runs: Sequence[MeasuredRun], told: Sequence[Told]) -> Regimes:
    """A change is found in runs of one layout, held against each other.

    It may be any of its links', and so ends what other layouts' runs told of them before; unless it was its hosts'.
    """
    known = _series(runs, told)
    begins: dict[str, int] = {}
    busy: set[int] = set()
    changed: set[int] = set()
    for change in _changes(known, len(runs)):
        if change.series.told.links and _met_busy_hosts(change, known):
            busy |= change.slow
            continue
        changed |= change.slow
        for name in change.series.told.touched:
            begins[name] = max(begins.get(name, 0), change.after.start)
    # A run's times may be told apart otherwise from each other: what one of them holds against a link stands.
    return Regimes(begins=begins, busy=frozenset(busy - changed))


def regime_starts(values: Sequence[float]) -> list[int]:
    """Where values begin that belong together: 0, and after each change that `CHANGED_RUNS` confirm."""
    starts, since = [0], 0
    for index in range(1, len(values)):
        usual = statistics.median(values[starts[-1] : index - since])
        off = [value - usual for value in values[index - since : index + 1]]
        since = since + 1 if min(off) > CHANGE or max(off) < -CHANGE else int(abs(off[-1]) > CHANGE)
        if since >= CHANGED_RUNS:
            starts.append(index + 1 - since)
            since = 0
    return starts


def _series(runs: Sequence[MeasuredRun], told: Sequence[Told]) -> list[_Series]:
    found: dict[_Key, _Series] = {}
    for index, (run, each) in enumerate(zip(runs, told, strict=True)):
        for number, time in enumerate(each.times):
            is_ttft = number > 0 or run.time_per_token_s <= 0
            key = _Key(layout=each.series, source=run.source, streams=run.streams, is_ttft=is_ttft)
            one = found.setdefault(key, _Series(key=key, told=each, parts=time.parts, indices=[], offs=[]))
            one.indices.append(index)
            one.offs.append(math.log(time.measured_s / sum(time.parts.values())))
    return list(found.values())


def _changes(known: Sequence[_Series], num_runs: int) -> Iterator[_Change]:
    for series in known:
        starts = [0, *(series.indices[start] for start in regime_starts(series.offs)[1:])]
        for before, start, end in zip(starts, starts[1:], [*starts[2:], num_runs], strict=False):
            yield _Change(series=series, before=range(before, start), after=range(start, end))


def _met_busy_hosts(change: _Change, known: Sequence[_Series]) -> bool:
    """Whether a layout over links was slow because of its hosts.

    The best witness is a run of that time that stayed within one of them. Without one, all of the layout's own
    times must be slower by a similar factor, and such that no link could have made them so.
    """
    slowdown = change.slowdown(change.series)
    assert slowdown is not None, "a change has runs before and after it"
    of_hosts = _slowdowns_within_hosts(change, known)
    if any(each >= _least_similar(slowdown) for each in of_hosts.values()):
        return True
    if of_hosts.keys() >= change.series.told.hosts or len(change.slow) > BUSY_RUNS:
        return False
    others = [
        (series, other)
        for series in known
        if series.key.layout == change.series.key.layout and series.key != change.series.key
        for other in (change.slowdown(series),)
        if other is not None
    ]
    return bool(others) and all(
        _are_similar(slowdown, other)
        and not any(
            _are_similar(slowdown, as_link) for as_link in _as_links(slowdown, change.series.parts, series.parts)
        )
        for series, other in others
    )


def _slowdowns_within_hosts(change: _Change, known: Sequence[_Series]) -> dict[str, float]:
    """Of each host with runs that stayed within it, by what the least slowed of their times was slower.

    Runs over other links of a host are no witnesses: its port is part of all of them.
    """
    found: dict[str, float] = {}
    for series in known:
        slowdown = change.slowdown(series)
        if slowdown is None or len(series.told.hosts) > 1:
            continue
        for host in series.told.hosts & change.series.told.hosts:
            found[host] = min(slowdown, found.get(host, math.inf))
    return found


def _as_links(slowdown: float, parts: Parts, others: Parts) -> Iterator[float]:
    """By what a time of these `others` is slower where links make one of `parts` slower by `slowdown`.

    They may have longer to wait, fewer bytes per second, or both by one factor.
    """
    for kinds in ((WAIT,), (RATE,), (WAIT, RATE)):
        share, other = _link_share(parts, kinds), _link_share(others, kinds)
        if share > 0:
            yield math.log1p(math.expm1(slowdown) * other / share)


def _link_share(parts: Mapping[str, float], kinds: Sequence[str]) -> float:
    """Of all seconds, those of links' waits or bytes."""
    names = tuple(f"{LINK}{kind}" for kind in kinds)
    linked = sum(
        seconds
        for part, seconds in parts.items()
        if any(name.startswith(names) for name in itertools.islice(corrections_of(part), 1, None))
    )
    return linked / sum(parts.values())


def _are_similar(one: float, other: float) -> bool:
    return min(one, other) >= _least_similar(max(one, other))


def _least_similar(slowdown: float) -> float:
    """As far below a slowdown as runs of one plan are apart, and at least half of it."""
    return max(slowdown - CHANGE, slowdown / 2)
