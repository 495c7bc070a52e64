"""Every device of a fleet by its row in the table of devices."""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple, overload

import msgspec

from odctl.fleet.digest import HostDigest
from odctl.fleet.snapshot import HostView

_DEVICE_ID, _DEVICE_IDS = operator.attrgetter("id"), operator.attrgetter("device_ids")


class DevicePlace(msgspec.Struct, frozen=True, gc=False):
    """Where a device's sample and facts lie. An index of None: the sample, or the facts, lack the device."""

    host: int
    device: str
    sample: int | None
    facts: int | None


class DeviceIndex:
    """Every device of a fleet in the order of the table, as long as each host's sample has the same devices.

    Ninety thousand of them: nothing is made for each, and hosts with devices of the same names share the rest.
    """

    def __init__(self, hosts: Sequence[HostView], digests: Sequence[HostDigest]) -> None:
        self._sample_ids = list(map(_DEVICE_IDS, digests))
        alike: dict[tuple[tuple[str, ...], tuple[str, ...]], _HostDevices] = {}
        self._of_hosts: list[_HostDevices] = []
        for host, ids in zip(hosts, self._sample_ids, strict=True):
            facts = tuple(map(_DEVICE_ID, host.facts.devices)) if host.facts else ()
            found = alike.get((facts, ids))
            if found is None:
                found = alike[facts, ids] = _HostDevices.of(facts, ids)
            self._of_hosts.append(found)
        self.keys = DeviceKeys(tuple(host.name for host in hosts), tuple(found.names for found in self._of_hosts))

    def place(self, row: int) -> DevicePlace:
        host, at = self.keys.place(row)
        found = self._of_hosts[host]
        return DevicePlace(host=host, device=found.names[at], sample=found.samples[at], facts=found.facts[at])

    def is_of(self, digests: Sequence[HostDigest]) -> bool:
        return all(map(operator.eq, self._sample_ids, map(_DEVICE_IDS, digests)))


class DeviceKeys(Sequence[str]):
    """`host/device` of every row: made for the rows that are asked for, and found by its host."""

    def __init__(self, hosts: tuple[str, ...], devices: tuple[tuple[str, ...], ...]) -> None:
        self._hosts = hosts
        self._devices = devices
        self._begins = list(accumulate(map(len, devices), initial=0))
        """The row of each host's first device; behind them the number of rows."""

    def place(self, row: int) -> tuple[int, int]:
        """Of a row: the host, and which of its devices."""
        host = bisect_right(self._begins, row) - 1
        return host, row - self._begins[host]

    def __len__(self) -> int:
        return self._begins[-1]

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> tuple[str, ...]: ...
    def __getitem__(self, row: int | slice) -> str | tuple[str, ...]:
        # A range counts from the end, cuts, and refuses, as a list of all keys would.
        rows = range(len(self))[row]
        return self._key(rows) if isinstance(rows, int) else tuple(map(self._key, rows))

    def _key(self, row: int) -> str:
        host, device = self.place(row)
        return f"{self._hosts[host]}/{self._devices[host][device]}"

    def __iter__(self) -> Iterator[str]:
        for host, devices in zip(self._hosts, self._devices, strict=True):
            yield from map(f"{host}/".__add__, devices)

    def index(self, value: str, start: int = 0, stop: int | None = None) -> int:
        name, _, device = value.partition("/")
        host = self._hosts.index(name)
        row = self._begins[host] + self._devices[host].index(device)
        if row not in range(len(self))[start:stop]:
            raise ValueError(f"{value} has another row")
        return row

    def __contains__(self, value: object) -> bool:
        try:
            return isinstance(value, str) and self.index(value) >= 0
        except ValueError:
            return False


class _HostDevices(NamedTuple):
    """A host's devices by name, and where in its sample and in its facts each stands."""

    names: tuple[str, ...]
    samples: tuple[int | None, ...]
    facts: tuple[int | None, ...]

    @classmethod
    def of(cls, facts: Sequence[str], samples: Sequence[str]) -> _HostDevices:
        names = tuple(sorted({*facts, *samples}))
        in_facts = {name: index for index, name in enumerate(facts)}
        in_sample = {name: index for index, name in enumerate(samples)}
        return cls(names, tuple(map(in_sample.get, names)), tuple(map(in_facts.get, names)))
