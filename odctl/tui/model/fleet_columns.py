"""A snapshot by columns: one list a figure, made when it is first asked for and then shared by all who draw.

Row numbers are those of `snapshot.hosts`. What does not change from one snapshot to the next (names, cores, labels)
is recognised by the identity of the hosts' facts and taken over, so that ten thousand hosts cost a second's tick
what their readings cost and no more.
"""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import compress
from typing import NamedTuple, cast

from agent.facts.cluster import HostFacts
from agent.facts.sample import HostSample
from odctl.fleet.digest import HostDigest, host_digest
from odctl.fleet.history import HostRow
from odctl.fleet.snapshot import FleetSnapshot, HostState, HostView
from odctl.tui.model.device_index import DeviceIndex
from odctl.tui.model.fleet_loads import FleetLoads, Totals, fleet_loads
from odctl.tui.model.marks import Mark

LIVE, NO_DATA, HEALING, WARNING, FAULT = range(5)
"""A host's condition: the higher, the worse."""
CONDITION_MARKS: tuple[Mark, ...] = (
    Mark("●", "live", "ok"),
    Mark("○", "no data", "dim"),
    Mark("↻", "healing", "heal"),
    Mark("▲", "warn", "warn"),
    Mark("✗", "fault", "fault"),
)
UNLABELLED = "(none)"
"""The group of hosts that lack the label, or that never told their facts."""
_BY_STATE: dict[HostState, int] = {
    "live": LIVE,
    "connecting": NO_DATA,
    "stale": WARNING,
    "lost": FAULT,
    "unreachable": FAULT,
}
_DIGITS = re.compile(r"(\d+)")

Figures = Sequence[float | None]


class Group(NamedTuple):
    """Hosts with one value of a label, as row numbers in the order of the snapshot."""

    name: str
    rows: tuple[int, ...]


# Columns are made by these where they can: ten thousand hosts are gone through in C.
_FACTS, _STATE, _SAMPLE, _DIGEST, _LAST_ROW = (
    operator.attrgetter(name) for name in ("facts", "state", "sample", "digest", "history.last")
)
_NOTHING_TOLD = HostDigest()


class _Still:
    """What of a fleet stands still, as long as every host's facts are the very same value."""

    def __init__(self, hosts: Sequence[HostView]) -> None:
        self.names = tuple(host.name for host in hosts)
        self.facts: tuple[HostFacts | None, ...] = tuple(host.facts for host in hosts)
        self._nameless = tuple(row for row, facts in enumerate(self.facts) if facts is None)
        self._groups: dict[str, tuple[Group, ...]] = {}
        self._devices: DeviceIndex | None = None

    def is_of(self, hosts: Sequence[HostView]) -> bool:
        return (
            len(hosts) == len(self.facts)
            and all(map(operator.is_, self.facts, map(_FACTS, hosts)))
            # Facts have their host's name; who told none has nothing else that tells it from others.
            and all(hosts[row].name == self.names[row] for row in self._nameless)
        )

    def devices(self, hosts: Sequence[HostView], digests: Sequence[HostDigest]) -> DeviceIndex:
        """Of these hosts, whose facts are the same; that of the snapshot before where their devices are, too."""
        if self._devices is None or not self._devices.is_of(digests):
            self._devices = DeviceIndex(hosts, digests)
        return self._devices

    @cached_property
    def row_of(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.names)}

    @cached_property
    def cores(self) -> tuple[int, ...]:
        return tuple(facts.cpu_cores if facts else 0 for facts in self.facts)

    @cached_property
    def label_keys(self) -> tuple[str, ...]:
        return tuple(sorted({key for facts in self.facts if facts for key in facts.labels}))

    def groups(self, label: str) -> tuple[Group, ...]:
        if label not in self._groups:
            found: dict[str, list[int]] = {}
            for row, facts in enumerate(self.facts):
                found.setdefault(facts.labels.get(label, UNLABELLED) if facts else UNLABELLED, []).append(row)
            names = sorted(found, key=lambda name: (name == UNLABELLED, natural_key(name)))
            self._groups[label] = tuple(Group(name, tuple(found[name])) for name in names)
        return self._groups[label]


class FleetColumns:
    """The columns of one snapshot. Percentages are 0 to 100, as the table sorts and filters them."""

    def __init__(self, snapshot: FleetSnapshot, *, before: FleetColumns | None = None) -> None:
        self.snapshot = snapshot
        self.hosts = snapshot.hosts
        kept = before.still if before is not None and before.still.is_of(self.hosts) else None
        self.still: _Still = kept if kept is not None else _Still(self.hosts)
        self._figures: dict[str, Figures] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return self.still.names

    @cached_property
    def states(self) -> list[HostState]:
        return list(map(_STATE, self.hosts))

    @cached_property
    def state_counts(self) -> Counter[HostState]:
        return Counter(self.states)

    @cached_property
    def samples(self) -> list[HostSample | None]:
        return list(map(_SAMPLE, self.hosts))

    @cached_property
    def last_rows(self) -> list[HostRow | None]:
        """The newest row of each host's history."""
        return list(map(_LAST_ROW, self.hosts))

    @cached_property
    def digests(self) -> list[HostDigest]:
        """An empty one of a host that never sent a sample."""
        found: list[HostDigest | None] = list(map(_DIGEST, self.hosts))
        for row in compress(range(len(found)), map(operator.not_, found)):
            found[row] = digest_of(self.hosts[row]) or _NOTHING_TOLD
        return cast(list[HostDigest], found)

    @cached_property
    def devices(self) -> DeviceIndex:
        return self.still.devices(self.hosts, self.digests)

    @cached_property
    def loads(self) -> FleetLoads:
        return fleet_loads(self.states, self.samples, self.still.cores, self.digests, self.last_rows)

    @property
    def totals(self) -> Totals:
        return self.loads.totals

    def prepare_as(self, before: FleetColumns) -> None:
        """Make all that was asked of the snapshot before."""
        for name in tuple(vars(before)):
            if isinstance(getattr(FleetColumns, name, None), cached_property):
                getattr(self, name)
        for figure in tuple(before._figures):
            self.figures(figure)

    @cached_property
    def open_faults(self) -> dict[str, list[str]]:
        """Messages by host; `fault_rank` has how bad the worst is."""
        return self._faults[0]

    @cached_property
    def _faults(self) -> tuple[dict[str, list[str]], dict[str, int]]:
        said: dict[str, list[str]] = {}
        worst: dict[str, int] = {}
        for fault in self.snapshot.faults:
            if fault.healed_at_s is None:
                rank = WARNING if fault.severity == "warning" else FAULT
                said.setdefault(fault.host, []).append(fault.message)
                worst[fault.host] = max(rank, worst.get(fault.host, LIVE))
        return said, worst

    @cached_property
    def conditions(self) -> list[int]:
        """How bad each host is: by its state, its devices, its open faults, and the deployments that heal on it."""
        out = list(map(_BY_STATE.__getitem__, self.states))
        for row in self.loads.troubled:
            out[row] = max(out[row], FAULT if self.digests[row].trouble == "fault" else WARNING)
        for row in self.loads.full:
            out[row] = max(out[row], WARNING)
        row_of = self.still.row_of
        for host, rank in self._faults[1].items():
            if (at := row_of.get(host)) is not None:
                out[at] = max(out[at], rank)
        for host in self.healing:
            if (at := row_of.get(host)) is not None:
                out[at] = max(out[at], HEALING)
        return out

    @cached_property
    def healing(self) -> dict[str, str]:
        """By host, the deployment that heals and holds ranks there. An old word of a silent controller is none."""
        return {
            rank.host: view.name
            for view in self.snapshot.deployments
            if view.error is None and view.status is not None and view.status.state == "healing"
            for rank in view.status.ranks
        }

    @cached_property
    def tokens_per_s(self) -> list[float | None]:
        """Tokens a second of the deployments whose ranks a host holds; None for hosts that hold none."""
        out: list[float | None] = [None] * len(self.hosts)
        for view in self.snapshot.deployments:
            if view.error is not None or view.status is None or view.status.backend is None:
                continue
            rate = view.status.backend.tokens_per_s
            for host in {rank.host for rank in view.status.ranks}:
                if (at := self.still.row_of.get(host)) is not None:
                    out[at] = (out[at] or 0.0) + rate
        return out

    def has(self, figure: str) -> bool:
        return figure in _READERS

    def figures(self, figure: str) -> Figures:
        """One figure of every host, None where there is none. Raises KeyError for one that `has` denies."""
        if figure not in self._figures:
            self._figures[figure] = _READERS[figure](self)
        return self._figures[figure]


_latest: tuple[FleetColumns, ...] = ()


def fleet_columns(snapshot: FleetSnapshot) -> FleetColumns:
    """The columns of a snapshot: the same value for all who draw it, recognised by identity.

    Only the latest two are kept: that which is shown, and that which is made ready meanwhile. Whoever asks for
    another gets it anew, so the answer depends on the snapshot alone.
    """
    global _latest  # noqa: PLW0603 - a memo of two: what it answers does not depend on it
    kept = _latest
    for columns in kept:
        if columns.snapshot is snapshot:
            return columns
    made = FleetColumns(snapshot, before=kept[0] if kept else None)
    _latest = (made, *kept[:1])
    return made


def prepare_columns(snapshot: FleetSnapshot) -> None:
    """Make a new snapshot's columns ready, as far as they were asked for of the latest one.

    On the feed's thread: a key that is pressed meanwhile waits for a turn of the interpreter, not for all of them.
    """
    kept = _latest
    columns = fleet_columns(snapshot)
    if kept and kept[0] is not columns:
        columns.prepare_as(kept[0])


def digest_of(host: HostView) -> HostDigest | None:
    """The host's digest, or made from its sample; None where it never sent one."""
    if host.digest is not None:
        return host.digest
    return host_digest(host.sample) if host.sample is not None else None


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """`r2` before `r10`: numbers within names compare as numbers."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in _DIGITS.split(name) if part)


def _vram(columns: FleetColumns) -> Figures:
    return [
        digest.gpu_used_bytes / digest.gpu_total_bytes * 100
        if digest.gpu_used_bytes is not None and digest.gpu_total_bytes
        else None
        for digest in columns.digests
    ]


def _util(columns: FleetColumns) -> Figures:
    """What a host is there for: its GPUs where they tell, else its CPU."""
    return [
        gpu if gpu is not None else cpu
        for gpu, cpu in zip(columns.figures("gpu"), columns.figures("cpu"), strict=True)
    ]


def _memory(columns: FleetColumns) -> Figures:
    return [
        gpu if gpu is not None else ram
        for gpu, ram in zip(columns.figures("vram"), columns.figures("ram"), strict=True)
    ]


def _net(columns: FleetColumns) -> Figures:
    return [
        row.received_bytes_per_s + row.sent_bytes_per_s if row is not None else None for row in columns.last_rows
    ]


def _power(columns: FleetColumns) -> Figures:
    return [row.power_w if row is not None else None for row in columns.last_rows]


_READERS: dict[str, Callable[[FleetColumns], Figures]] = {
    "cpu": lambda columns: columns.loads.cpu,
    "ram": lambda columns: columns.loads.ram,
    "gpu": lambda columns: columns.loads.gpu,
    "vram": _vram,
    "util": _util,
    "memory": _memory,
    "temp": lambda columns: [digest.temperature_c for digest in columns.digests],
    "net": _net,
    "power": _power,
    "load": lambda columns: [sample.load_1m if sample is not None else None for sample in columns.samples],
    "tokens": lambda columns: columns.tokens_per_s,
}
