"""What this host remembers of deployments: the fence that keeps two operators from overwriting each other.

A record's generation only grows. `prepare` is a compare-and-swap: it takes the deployment's lock on this host only
when the record stands where the operator last saw it.
"""

from __future__ import annotations

import time

import msgspec

from agent.errors import FleetError
from agent.journal import Journal
from agent.wire.agent import Commit, DeploymentRecord, HostAddress, Prepare, Release

_PREFIX = "member/"


class MemberTable:
    def __init__(self, host: str, journal: Journal) -> None:
        self._host = host
        self._journal = journal

    def all(self) -> tuple[DeploymentRecord, ...]:
        return tuple(
            msgspec.msgpack.decode(value, type=DeploymentRecord)
            for _, value in sorted(self._journal.list_state(_PREFIX).items())
        )

    def get(self, deployment: str) -> DeploymentRecord | None:
        value = self._journal.get_state(_PREFIX + deployment)
        return None if value is None else msgspec.msgpack.decode(value, type=DeploymentRecord)

    def running(self, deployment: str, *, told: DeploymentRecord | None) -> DeploymentRecord | None:
        """What runs now: as this host remembers it, or as an operator has told one that has no part in it."""
        record = self.get(deployment)
        return record if record is not None and record.generation else told

    def prepare(self, order: Prepare) -> None:
        """Take the lock. E401 when the host stands at another generation, E501 when another operator holds it."""
        now = time.time()
        record = self.get(order.deployment)
        if record is None:
            record = DeploymentRecord(
                name=order.deployment, generation=0, plan_hash="", controller=order.controller, members=()
            )
        elif record.generation and record.generation != order.expected_generation:
            raise FleetError(
                "E401",
                f"deployment {order.deployment} is at generation {record.generation}, "
                f"not at {order.expected_generation} as when this apply began",
                hint="another operator has changed it: look at `odctl status`, plan again, apply again",
                host=self._host,
            )
        if record.lock_holder not in ("", order.holder) and record.lock_expires_at_s > now:
            left = record.lock_expires_at_s - now
            raise FleetError(
                "E501",
                f"deployment {order.deployment} is locked by {record.lock_holder}",
                hint=f"wait for it, or for the lock to fall in {left:.0f} s",
                host=self._host,
            )
        self._put(
            msgspec.structs.replace(
                record,
                members=_joined(record.members, order.members),
                pending_generation=order.generation,
                lock_holder=order.holder,
                lock_expires_at_s=now + order.lease_s,
            )
        )

    def commit(self, order: Commit) -> None:
        """Remember the record. A generation older than ours is refused: its sender has been fenced off."""
        held = self.get(order.record.name)
        if held is not None and held.generation > order.record.generation:
            raise FleetError(
                "E401",
                f"deployment {order.record.name} is at generation {held.generation} already; "
                f"generation {order.record.generation} comes too late",
                host=self._host,
            )
        self._put(order.record)
        self._journal.append(
            "GenerationCommitted",
            deployment=order.record.name,
            generation=order.record.generation,
            plan_hash=order.record.plan_hash,
            body=order.record,
        )

    def release(self, order: Release) -> None:
        """Give the lock back after a roll-back; a record that never had a generation goes with it."""
        record = self.get(order.deployment)
        if record is None or record.pending_generation not in (0, order.generation):
            return
        if order.holder and record.lock_holder not in ("", order.holder):
            return
        if record.generation == 0:
            self._journal.delete_state(_PREFIX + order.deployment)
            return
        self._put(msgspec.structs.replace(record, pending_generation=0, lock_holder="", lock_expires_at_s=0.0))

    def stands_at(self, deployment: str, generation: int) -> bool:
        """Whether it is a member under this generation or a later one, or held for a later one by its apply.

        Held for this very generation it is not: an apply prepares the hosts that it is about to leave, too. False
        for generation 0.
        """
        record = self.get(deployment)
        if record is None or generation <= 0:
            return False
        return record.generation >= generation or record.pending_generation > generation

    def is_locked(self, deployment: str) -> bool:
        """An apply is under way, on this controller or another one."""
        record = self.get(deployment)
        return record is not None and record.lock_holder != "" and record.lock_expires_at_s > time.time()

    def forget(self, deployment: str) -> None:
        self._journal.delete_state(_PREFIX + deployment)

    def addresses(self, deployment: str) -> tuple[HostAddress, ...]:
        record = self.get(deployment)
        return record.members if record else ()

    def _put(self, record: DeploymentRecord) -> None:
        self._journal.put_state(_PREFIX + record.name, msgspec.msgpack.encode(record))


def _joined(known: tuple[HostAddress, ...], told: tuple[HostAddress, ...]) -> tuple[HostAddress, ...]:
    """Both, by host; what we are told now wins."""
    by_host = {address.host: address for address in (*known, *told)}
    return tuple(by_host[host] for host in sorted(by_host))
