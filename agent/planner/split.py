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
Minimise = Literal["sum", "max", "squares"]
_End = tuple[int, int, int, int]
"""Option, index of stages, index of hosts, layers taken."""


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
    """A counter from 1 as an axis: it saturates at `low` without an upper bound, and ends at `high` with one."""

    low: int
    high: int | None

    @property
    def size(self) -> int:
        return self.low if self.high is None else self.high

    def index(self, count: int) -> int | None:
        """Where a count stands on the axis; None when it is too high."""
        if self.high is None:
            return min(count, self.size) - 1
        return count - 1 if count <= self.high else None

    def after(self, index: int, amount: int) -> int | None:
        """Where the axis stands `amount` later."""
        return self.index(index + 1 + amount)

    def accepts(self, index: int) -> bool:
        return index + 1 >= self.low


def split_layers(
    table: OptionTable,
    num_layers: int,
    *,
    minimise: Minimise,
    limits: SplitLimits | None = None,
    slowest_s: float = np.inf,
) -> Split | None:
    """The optimal split of `num_layers`, or None when memory or limits allow none.

    With `slowest_s`, no stage and no hop may take longer: the least sum among the layouts of a given throughput.
    `squares` adds the squares of stage times, hops left out: the most even split among equal ones.
    """
    return _Programme(table, num_layers, minimise, limits or SplitLimits(), slowest_s).solve()


def least_values(
    table: OptionTable, orders: Ints, starts: Ints, ends: Ints, num_layers: int, *, minimise: Literal["sum", "max"]
) -> Floats:
    """What `split_layers` without limits finds as least, for many orders of the same options at once.

    `orders` is [order, position]: rows of the table, sorted by the start that they have in that order; `starts` and
    `ends` (inclusive) are their positions there. Infinite where memory allows no split.
    """
    op = np.maximum if minimise == "max" else np.add
    count, num_options = orders.shape
    most, total = num_layers - 1, num_layers
    reached = np.full((count, num_options, total + 1), np.inf)
    value = np.full(count, np.inf)
    # Columns of the table in each order, by position.
    layer_s, first_s, last_s = table.layer_s[orders], table.first_s[orders], table.last_s[orders]
    cap_first, cap_middle = np.minimum(table.cap_first[orders], most), np.minimum(table.cap_middle[orders], most)
    cap_last, cap_only = np.minimum(table.cap_last[orders], most), table.cap_only[orders]
    ks = np.arange(1, total + 1)
    for option in range(num_options):
        seconds = layer_s[:, option, None] * ks
        before = np.full((count, total + 1), np.inf)
        if option > 0:
            hops = table.hop_s[orders[:, :option], orders[:, option, None]]
            hops = np.where(ends[:, :option] < starts[:, option, None], hops, np.inf)
            before = op(reached[:, :option], hops[:, :, None]).min(axis=1)
            widest = int(cap_middle[:, option].max())
            if widest >= 1:
                costs = np.where(ks[:widest] <= cap_middle[:, option, None], seconds[:, :widest], np.inf)
                padded = np.concatenate([np.full((count, widest), np.inf), before], axis=1)
                windows = np.lib.stride_tricks.sliding_window_view(padded, widest, axis=1)[:, 1 : most + 1]
                reached[:, option, 1 : most + 1] = op(windows, costs[:, None, ::-1]).min(axis=2)
            if most >= 1:
                costs = last_s[:, option, None] + seconds[:, :most]
                costs = np.where(ks[:most] <= cap_last[:, option, None], costs, np.inf)
                value = np.minimum(value, op(before[:, total - ks[:most]], costs).min(axis=1))
        first = first_s[:, option, None] + seconds[:, :most]
        first = np.where(ks[:most] <= cap_first[:, option, None], first, np.inf)
        reached[:, option, 1 : most + 1] = np.minimum(reached[:, option, 1 : most + 1], first)
        alone = first_s[:, option] + layer_s[:, option] * total + last_s[:, option]
        value = np.minimum(value, np.where(cap_only[:, option] >= total, alone, np.inf))
    return value


class _Programme:
    def __init__(
        self, table: OptionTable, num_layers: int, minimise: Minimise, limits: SplitLimits, slowest_s: float
    ) -> None:
        self.table = _bounded(table, num_layers, slowest_s)
        self.num_layers = num_layers
        self.op = np.maximum if minimise == "max" else np.add
        self.power = 2 if minimise == "squares" else 1
        self.hop_s = np.where(np.isfinite(self.table.hop_s), 0.0, np.inf) if self.power == 2 else self.table.hop_s
        self.sizes = limits.stage_sizes
        pinned = len(self.sizes) or None
        self.stages = _Count(pinned or limits.min_stages, pinned or limits.max_stages)
        self.hosts = _Count(limits.min_hosts, limits.max_hosts)
        shape = (len(table), self.stages.size, self.hosts.size, num_layers + 1)
        self.best = np.full(shape, np.inf)
        """[option, stages, hosts, layers so far], the option being the last stage so far."""
        self.taken = np.zeros(shape, dtype=np.int64)
        """Layers that the option takes there."""
        self.came_from = np.zeros(shape, dtype=np.int64)
        """[option, stages, hosts, layers before it]: flat (option, stages, hosts) of the stage before."""

    def solve(self) -> Split | None:
        best_value, best_trace = np.inf, None
        for option in range(len(self.table)):
            before = self._before(option)
            self._extend(option, before)
            value, trace = self._finish(option, before)
            if value < best_value:
                best_value, best_trace = value, trace
        return None if best_trace is None else self._backtrack(best_value, best_trace)

    def _before(self, option: int) -> Floats:
        """Best value for reaching `option` with j layers placed before it, counts already advanced."""
        table = self.table
        before = np.full(self.best.shape[1:], np.inf)
        if option == 0:
            return before
        # Options are sorted by start, so those that end before this one begins stand before it.
        hop_s = np.where(table.end[:option] < table.start[option], self.hop_s[:option, option], np.inf)
        values = self.op(self.best[:option], hop_s[:, None, None, None])
        new_hosts = int(table.last_host[option] - table.first_host[option]) + 1
        is_same_host = table.last_host[:option] == table.first_host[option]
        if self.hosts.size == 1 and self.hosts.high is None:
            self._advance(option, before, values, added=0)
        else:
            for group, added in ((is_same_host, new_hosts - 1), (~is_same_host, new_hosts)):
                masked = np.where(group[:, None, None, None], values, np.inf)
                self._advance(option, before, masked, added=added)
        return before

    def _advance(self, option: int, before: Floats, values: Floats, *, added: int) -> None:
        """Merge the best of `values` over the stage before into `before`, one stage and `added` hosts later."""
        winner = values.argmin(axis=0)
        reached = values.min(axis=0)
        for s, h in np.ndindex(reached.shape[:2]):
            to_s, to_h = self.stages.after(s, 1), self.hosts.after(h, added)
            if to_s is None or to_h is None or not self._allows(option, to_s):
                continue
            state = (winner[s, h] * self.stages.size + s) * self.hosts.size + h
            is_better = reached[s, h] < before[to_s, to_h]
            np.copyto(before[to_s, to_h], reached[s, h], where=is_better)
            np.copyto(self.came_from[option, to_s, to_h], state, where=is_better)

    def _allows(self, option: int, stage: int) -> bool:
        return not self.sizes or bool(self.table.size[option] == self.sizes[stage])

    def _first_state(self, option: int) -> tuple[int, int] | None:
        """Counts after `option` as a first stage; None when limits forbid it."""
        new_hosts = int(self.table.last_host[option] - self.table.first_host[option]) + 1
        s, h = self.stages.index(1), self.hosts.index(new_hosts)
        return None if s is None or h is None or not self._allows(option, s) else (s, h)

    def _extend(self, option: int, before: Floats) -> None:
        """Fill `best` for `option` as a first or middle stage, which leaves at least one layer to later ones."""
        table, most = self.table, self.num_layers - 1
        cap = min(int(table.cap_middle[option]), most)
        if cap >= 1 and option > 0:
            costs = (table.layer_s[option] * np.arange(cap, 0, -1)) ** self.power
            padded = np.concatenate([np.full((*before.shape[:2], cap), np.inf), before], axis=2)
            # Window j holds `before` at j-cap .. j-1, that is k = cap .. 1 layers taken.
            windows = np.lib.stride_tricks.sliding_window_view(padded, cap, axis=2)[:, :, 1 : most + 1]
            values = self.op(windows, costs)
            self.best[option, :, :, 1 : most + 1] = values.min(axis=3)
            self.taken[option, :, :, 1 : most + 1] = cap - values.argmin(axis=3)
        state = self._first_state(option)
        cap = min(int(table.cap_first[option]), most)
        if state is not None and cap >= 1:
            counts = np.arange(1, cap + 1)
            costs = (table.first_s[option] + table.layer_s[option] * counts) ** self.power
            target = (option, *state, slice(1, cap + 1))
            is_better = costs < self.best[target]
            np.copyto(self.best[target], costs, where=is_better)
            np.copyto(self.taken[target], counts, where=is_better)

    def _finish(self, option: int, before: Floats) -> tuple[float, _End | None]:
        """The best whole split that ends with `option`."""
        table, total = self.table, self.num_layers
        best: tuple[float, _End | None] = (np.inf, None)
        cap = min(int(table.cap_last[option]), total - 1)
        if cap >= 1 and option > 0:
            counts = np.arange(1, cap + 1)
            costs = (table.last_s[option] + table.layer_s[option] * counts) ** self.power
            values = self.op(before[:, :, total - counts], costs)
            for s, h in np.ndindex(values.shape[:2]):
                k = int(values[s, h].argmin())
                if values[s, h, k] < best[0] and self.stages.accepts(s) and self.hosts.accepts(h):
                    best = float(values[s, h, k]), (option, s, h, k + 1)
        state = self._first_state(option)
        if state is not None and table.cap_only[option] >= total:
            alone = (
                float(table.first_s[option] + table.layer_s[option] * total + table.last_s[option]) ** self.power
            )
            if alone <= best[0] and self.stages.accepts(state[0]) and self.hosts.accepts(state[1]):
                best = alone, (option, *state, total)
        return best

    def _backtrack(self, value: float, end: _End) -> Split:
        option, s, h, taken = end
        options, layers, left = [option], [taken], self.num_layers - taken
        while left > 0:
            state = int(self.came_from[option, s, h, left])
            option, s, h = (int(index) for index in np.unravel_index(state, self.best.shape[:3]))
            taken = int(self.taken[option, s, h, left])
            options.append(option)
            layers.append(taken)
            left -= taken
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
