"""Faults that this agent observed: open and healed ones, durable, each with its entry in the journal."""

from __future__ import annotations

import time

import msgspec

from agent.facts.fault import Fault
from agent.healing.state import FaultKey, ReportState
from agent.journal import Journal

_PREFIX = "fault/"
MAX_HEALED = 500
"""Healed faults kept for `odctl faults`; the journal's events go back further."""


class FaultBook:
    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def all(self) -> tuple[Fault, ...]:
        """Open ones first, then healed ones, newest first."""
        faults = [msgspec.msgpack.decode(value, type=Fault) for value in self._journal.list_state(_PREFIX).values()]
        return tuple(sorted(faults, key=lambda fault: (fault.healed_at_s is not None, -fault.observed_at_s)))

    def open_keys(self, deployment: str) -> tuple[FaultKey, ...]:
        return tuple(
            FaultKey(fault.kind, fault.host, fault.rank_id)
            for fault in self.all()
            if fault.deployment == deployment and fault.healed_at_s is None
        )

    def record(self, fault: Fault, *, plan_hash: str) -> None:
        self._put(fault)
        self._journal.append(
            "FaultObserved",
            deployment=fault.deployment,
            generation=fault.generation,
            plan_hash=plan_hash,
            body=fault,
        )

    def close(self, deployment: str, keys: tuple[FaultKey, ...], *, plan_hash: str = "") -> None:
        """The trouble behind these keys is over."""
        now = time.time()
        for fault in self.all():
            key = FaultKey(fault.kind, fault.host, fault.rank_id)
            if fault.deployment != deployment or fault.healed_at_s is not None or key not in keys:
                continue
            healed = msgspec.structs.replace(fault, healed_at_s=now)
            self._put(healed)
            self._journal.append(
                "FaultHealed",
                deployment=deployment,
                generation=fault.generation,
                plan_hash=plan_hash,
                body={"fault_id": fault.fault_id, "kind": fault.kind, "after_s": now - fault.observed_at_s},
            )
        self._prune()

    def close_all(self, deployment: str) -> None:
        """The deployment is gone, and its troubles with it."""
        self.close(deployment, self.open_keys(deployment))

    def report_state(self, deployment: str, report: ReportState, generation: int, plan_hash: str) -> None:
        self._journal.append(
            "DeploymentStateChanged",
            deployment=deployment,
            generation=generation,
            plan_hash=plan_hash,
            body=report,
        )

    def _prune(self) -> None:
        healed = [fault for fault in self.all() if fault.healed_at_s is not None]
        for fault in healed[MAX_HEALED:]:
            self._journal.delete_state(_PREFIX + fault.fault_id)

    def _put(self, fault: Fault) -> None:
        self._journal.put_state(_PREFIX + fault.fault_id, msgspec.msgpack.encode(fault))
