"""Every device of a fleet by its row in the table of devices."""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, chain
from typing import NamedTuple

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

    Ninety thousand of them: only keys are made for all, and hosts with devices of the same names share the rest.
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
        names = [found.names for found in self._of_hosts]
        self._begins = list(accumulate(map(len, names), initial=0))
        prefixes = (f"{host.name}/".__add__ for host in hosts)
        self.keys = tuple(chain.from_iterable(map(map, prefixes, names)))

    def place(self, row: int) -> DevicePlace:
        host = bisect_right(self._begins, row) - 1
        found, at = self._of_hosts[host], row - self._begins[host]
        return DevicePlace(host=host, device=found.names[at], sample=found.samples[at], facts=found.facts[at])

    def is_of(self, digests: Sequence[HostDigest]) -> bool:
        return all(map(operator.eq, self._sample_ids, map(_DEVICE_IDS, digests)))


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
