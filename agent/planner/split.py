"""Exact dynamic programme: consecutive layers onto ordered stage options, some of which may be left out. Pure.

A stage option is a device or a group of neighbouring devices in one fixed order. With t_o(k) seconds of option o
for k layers and c[o', o] seconds of the hop before it,

    D[o, j] = min over o' that end before o begins, 1 <= k <= cap_o, of  op(D[o', j-k], c[o', o], t_o(k))

where op adds (time of one token) or takes the maximum (the slowest stage, which bounds throughput). That is
O(O^2 L + O L K) for O options, each step a numpy operation. Counts of stages and of hosts are further dimensions,
kept only where they are limited. Alpa (OSDI 2022) bounds stages the same way for a fixed slowest stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class OptionTable:
    """Stage options, one per row, sorted by `start`. Seconds are of the caller's cost, whatever it weighs.

    `start` and `end` (inclusive) are positions in the device order; the caps are the most layers that memory takes
    when the option is a first, middle, last or only stage. `first_host` and `last_host` number hosts along the
    order; devices of one host are neighbours in it.
    """

    start: Ints
    end: Ints
    layer_s: Floats
    first_s: Floats
    last_s: Floats
    cap_first: Ints
    cap_middle: Ints
    cap_last: Ints
    cap_only: Ints
    size: Ints
    first_host: Ints
    last_host: Ints
    hop_s: Floats
    """[from, to]"""

    def __len__(self) -> int:
        return len(self.start)


class SplitLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Constraints on a split; `stage_sizes` pins the tensor-parallel size of every stage in order."""

    min_stages: int = 1
    max_stages: int | None = None
    min_hosts: int = 1
    max_hosts: int | None = None
    stage_sizes: tuple[int, ...] = ()


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """Chosen options in order, the layers of each, and the value of the objective."""

    options: tuple[int, ...]
    layers: tuple[int, ...]
    value: float


class _Count(msgspec.Struct, frozen=True):
    """A counter as an axis: it saturates at `low` without an upper bound, and ends at `high` with one."""

    low: int
    high: int | None

    @property
    def size(self) -> int:
        if self.high is not None:
            return self.high + 1
        return self.low + 1 if self.low > 1 else 1

    def add(self, index: int, amount: int) -> int | None:
        """Index after counting `amount` more; None when that is too many."""
        if self.high is not None:
            return index + amount if index + amount <= self.high else None
        return min(index + amount, self.size - 1)

    def accepts(self, index: int) -> bool:
        return self.size == 1 or index >= self.low


def split_layers(
    table: OptionTable,
    num_layers: int,
    *,
    minimise: Literal["sum", "max"],
    limits: SplitLimits | None = None,
    slowest_s: float = np.inf,
) -> Split | None:
    """The optimal split of `num_layers`, or None when memory or limits allow none.

    With `slowest_s`, no stage and no hop may take longer: the least sum among the layouts of a given throughput.
    """
    return _Programme(table, num_layers, minimise == "max", limits or SplitLimits(), slowest_s).solve()


class _Programme:
    def __init__(
        self, table: OptionTable, num_layers: int, takes_max: bool, limits: SplitLimits, slowest_s: float
    ) -> None:
        self.table = _bounded(table, num_layers, slowest_s)
        self.num_layers = num_layers
        self.op = np.maximum if takes_max else np.add
        self.sizes = limits.stage_sizes
        pinned = len(self.sizes) or None
        self.stages = _Count(pinned or limits.min_stages, pinned or limits.max_stages)
        self.hosts = _Count(limits.min_hosts, limits.max_hosts)
        shape = (len(table), self.stages.size, self.hosts.size, num_layers + 1)
        self.best = np.full(shape, np.inf)
        """[option, stages, hosts, layers so far], the option being the last stage so far."""
        self.parent = np.full(shape, -1, dtype=np.int64)
        """Flat index of (option, stages, hosts) before it; -1 for a first stage."""
        self.taken = np.zeros(shape, dtype=np.int64)

    def solve(self) -> Split | None:
        best_value, best_trace = np.inf, None
        for option in range(len(self.table)):
            before, parent = self._before(option)
            self._extend(option, before, parent)
            value, trace = self._finish(option, before, parent)
            if value < best_value:
                best_value, best_trace = value, trace
        return None if best_trace is None else self._backtrack(best_value, *best_trace)

    def _before(self, option: int) -> tuple[Floats, Ints]:
        """Best value and parent for reaching `option` with j layers placed before it, counts already advanced."""
        table = self.table
        before = np.full(self.best.shape[1:], np.inf)
        parent = np.full(self.best.shape[1:], -1, dtype=np.int64)
        # Options are sorted by start, so those that end before this one begins stand before it.
        earlier = np.flatnonzero(table.end[:option] < table.start[option])
        is_same_host = table.last_host[earlier] == table.first_host[option]
        new_hosts = int(table.last_host[option] - table.first_host[option]) + 1
        for group, added in ((earlier[is_same_host], new_hosts - 1), (earlier[~is_same_host], new_hosts)):
            if len(group) == 0:
                continue
            hop = table.hop_s[group, option][:, None, None, None]
            values = self.op(self.best[group], hop)
            winner = values.argmin(axis=0)
            reached = np.take_along_axis(values, winner[None], axis=0)[0]
            for s in range(self.stages.size):
                for h in range(self.hosts.size):
                    to_s, to_h = self.stages.add(s, 1), self.hosts.add(h, added)
                    if to_s is None or to_h is None or not self._allows(option, to_s):
                        continue
                    is_better = reached[s, h] < before[to_s, to_h]
                    before[to_s, to_h] = np.where(is_better, reached[s, h], before[to_s, to_h])
                    state = (group[winner[s, h]] * self.stages.size + s) * self.hosts.size + h
                    parent[to_s, to_h] = np.where(is_better, state, parent[to_s, to_h])
        return before, parent

    def _allows(self, option: int, stages: int) -> bool:
        return not self.sizes or bool(self.table.size[option] == self.sizes[stages - 1])

    def _first_state(self, option: int) -> tuple[int, int] | None:
        """Counts after `option` as a first stage; None when limits forbid it."""
        new_hosts = int(self.table.last_host[option] - self.table.first_host[option]) + 1
        s, h = self.stages.add(0, 1), self.hosts.add(0, new_hosts)
        return None if s is None or h is None or not self._allows(option, s) else (s, h)

    def _extend(self, option: int, before: Floats, parent: Ints) -> None:
        """Fill `best` for `option` as a first or middle stage, which leaves at least one layer to later ones."""
        table, most = self.table, self.num_layers - 1
        cap = min(int(table.cap_middle[option]), most)
        if cap >= 1 and np.isfinite(before).any():
            costs = table.layer_s[option] * np.arange(cap, 0, -1)
            padded = np.concatenate([np.full((*before.shape[:2], cap), np.inf), before], axis=2)
            # Window j holds `before` at j-cap .. j-1, that is k = cap .. 1 layers taken.
            windows = np.lib.stride_tricks.sliding_window_view(padded, cap, axis=2)[:, :, 1 : most + 1]
            values = self.op(windows, costs)
            winner = values.argmin(axis=3)
            taken = cap - winner
            layers = np.arange(1, most + 1)
            self.best[option, :, :, 1 : most + 1] = np.take_along_axis(values, winner[..., None], axis=3)[..., 0]
            self.taken[option, :, :, 1 : most + 1] = taken
            self.parent[option, :, :, 1 : most + 1] = np.take_along_axis(parent, layers - taken, axis=2)
        state = self._first_state(option)
        cap = min(int(table.cap_first[option]), most)
        if state is not None and cap >= 1:
            counts = np.arange(1, cap + 1)
            costs = table.first_s[option] + table.layer_s[option] * counts
            target = (option, *state, slice(1, cap + 1))
            is_better = costs < self.best[target]
            self.best[target] = np.where(is_better, costs, self.best[target])
            self.taken[target] = np.where(is_better, counts, self.taken[target])
            self.parent[target] = np.where(is_better, -1, self.parent[target])

    def _finish(self, option: int, before: Floats, parent: Ints) -> tuple[float, tuple[int, int, int] | None]:
        """The best whole split that ends with `option`: its value, and (option, layers taken, parent state)."""
        table, total = self.table, self.num_layers
        best: tuple[float, tuple[int, int, int] | None] = (np.inf, None)
        cap = min(int(table.cap_last[option]), total - 1)
        if cap >= 1:
            counts = np.arange(1, cap + 1)
            costs = table.last_s[option] + table.layer_s[option] * counts
            values = self.op(before[:, :, total - counts], costs)
            for s in range(self.stages.size):
                for h in range(self.hosts.size):
                    k = int(values[s, h].argmin())
                    if self.stages.accepts(s) and self.hosts.accepts(h) and values[s, h, k] < best[0]:
                        best = float(values[s, h, k]), (option, k + 1, int(parent[s, h, total - k - 1]))
        state = self._first_state(option)
        if state is not None and table.cap_only[option] >= total:
            accepted = self.stages.accepts(state[0]) and self.hosts.accepts(state[1])
            alone = float(table.first_s[option] + table.layer_s[option] * total + table.last_s[option])
            if accepted and alone <= best[0]:
                best = alone, (option, total, -1)
        return best

    def _backtrack(self, value: float, option: int, taken: int, parent: int) -> Split:
        options, layers, left = [option], [taken], self.num_layers - taken
        while parent >= 0:
            rest, h = divmod(parent, self.hosts.size)
            option, s = divmod(rest, self.stages.size)
            taken, parent = int(self.taken[option, s, h, left]), int(self.parent[option, s, h, left])
            options.append(option)
            layers.append(taken)
            left -= taken
        assert left == 0, f"{left} layers left over"
        return Split(options=tuple(reversed(options)), layers=tuple(reversed(layers)), value=value)


def _bounded(table: OptionTable, num_layers: int, slowest_s: float) -> OptionTable:
    """The table with caps and hops that keep every stage within `slowest_s`."""
    if slowest_s == np.inf:
        return table

    def cap(memory: Ints, fixed_s: Floats) -> Ints:
        # A billionth of slack: the bound is a sum of the same terms in another order.
        room = (slowest_s * (1 + 1e-9) - fixed_s) / table.layer_s
        within: Ints = np.minimum(memory, np.clip(np.floor(room), 0, num_layers)).astype(np.int64)
        return within

    none = np.zeros(len(table))
    return OptionTable(
        start=table.start,
        end=table.end,
        layer_s=table.layer_s,
        first_s=table.first_s,
        last_s=table.last_s,
        cap_first=cap(table.cap_first, table.first_s),
        cap_middle=cap(table.cap_middle, none),
        cap_last=cap(table.cap_last, table.last_s),
        cap_only=cap(table.cap_only, table.first_s + table.last_s),
        size=table.size,
        first_host=table.first_host,
        last_host=table.last_host,
        hop_s=np.where(table.hop_s <= slowest_s * (1 + 1e-9), table.hop_s, np.inf),
    )
