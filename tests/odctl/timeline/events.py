"""Journals for tests: events in the agents' own words, with the times and clocks that a test sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from agent.facts.fault import Fault
from agent.wire.agent import Event
from odctl.timeline import HostJournal

RECORDED = Path(__file__).parent / "recorded"
T0 = 1_700_000_000.0


class Journals:
    """Events of several hosts, in the order in which they are told here. `clocks`: seconds a host's is ahead."""

    def __init__(self, **clocks: float) -> None:
        self.clocks = clocks
        self.events: dict[str, list[Event]] = {}

    def tell(
        self,
        host: str,
        at_s: float,
        kind: str,
        body: object = None,
        *,
        deployment: str = "chat",
        generation: int = 1,
    ) -> Journals:
        """`at_s` is seconds of true time after T0; the event carries the host's own."""
        events = self.events.setdefault(host, [])
        events.append(
            Event(
                event_id=len(events) + 1,
                at_s=T0 + at_s + self.clocks.get(host, 0.0),
                host=host,
                kind=kind,
                deployment=deployment,
                generation=generation,
                plan_hash="ab" * 32,
                body=msgspec.json.encode({} if body is None else body).decode(),
            )
        )
        return self

    def fault(self, host: str, at_s: float, fault_id: str, kind: str, /, **changes: Any) -> Journals:
        """`FaultObserved`, as `FaultBook.record` writes it."""
        observed = fault_of(host, at_s + self.clocks.get(host, 0.0), fault_id, kind, **changes)
        return self.tell(
            host, at_s, "FaultObserved", observed, deployment=observed.deployment, generation=observed.generation
        )

    def healed(self, host: str, at_s: float, fault_id: str, after_s: float) -> Journals:
        return self.tell(host, at_s, "FaultHealed", {"fault_id": fault_id, "kind": "rank_lost", "after_s": after_s})

    def state(self, host: str, at_s: float, phase: str, reason: str = "", way_out: str = "") -> Journals:
        body = {"phase": phase, "reason": reason, "way_out": way_out}
        return self.tell(host, at_s, "DeploymentStateChanged", body)

    def read(self, *, are_clocks_known: bool = True) -> dict[str, HostJournal]:
        return {
            host: HostJournal(
                events=tuple(events),
                read_at_s=T0 + 1000,
                ahead_s=self.clocks.get(host, 0.0) if are_clocks_known else None,
            )
            for host, events in self.events.items()
        }


def fault_of(host: str, at_s: float, fault_id: str, kind: str, /, **changes: Any) -> Fault:
    fault = Fault(
        fault_id=fault_id,
        kind=kind,  # type: ignore[arg-type] # tests tell kinds of later releases, too
        severity="fault",
        observed_at_s=T0 + at_s,
        observed_by=host,
        host="h3",
        deployment="chat",
        generation=1,
        rank_id="r1s1t0",
        message="rank r1s1t0 on h3 is gone",
        evidence={"signal": "SIGKILL", "pid": 41},
        way_out="it is restarted in place",
    )
    return msgspec.structs.replace(fault, **changes)


def killed_rank(**clocks: float) -> Journals:
    """What the journals of a controller h1, its gateway there and the members h2 and h3 say of a killed rank.

    Kinds, fields and order are those of the recorded labs; the times are round.
    """
    told = Journals(**clocks)
    told.tell("h1", -60.0, "AgentStarted", {"pid": 10, "release": "r1"}, deployment="", generation=0)
    told.tell("h2", -60.0, "AgentStarted", {"pid": 11, "release": "r1"}, deployment="", generation=0)
    told.tell("h3", -60.0, "AgentStarted", {"pid": 12, "release": "r1"}, deployment="", generation=0)
    broken = {
        "deployment": "chat",
        "generation": 1,
        "rank_id": "r1s1t0",
        "host": "h3",
        "error": {"code": "E802", "message": "the channel to r1s1t0 ended", "hint": "", "host": ""},
        "failed_streams": 4,
    }
    told.tell("h2", 0.1, "BackendBroken", broken)
    told.fault("h1", 0.3, "F-1", "rank_lost")
    told.state("h1", 0.3, "healing", "restarting r1s1t0")
    told.state("h1", 2.3, "rebuilding", "restarting r1s1t0")
    served = {"applied_at_s": T0 - 50, "cause": "healing", "by": "h1", "reason": "rank_lost: gone", "apply_s": 0.0}
    told.tell("h1", 3.3, "GenerationServed", served, generation=2)
    told.tell("h1", 3.31, "GenerationCommitted", {"name": "chat", "controller": "h1"}, generation=2)
    told.tell("h2", 3.32, "GenerationCommitted", {"name": "chat", "controller": "h1"}, generation=2)
    told.tell("h3", 3.33, "GenerationCommitted", {"name": "chat", "controller": "h1"}, generation=2)
    told.healed("h1", 3.4, "F-1", 3.1)
    told.state("h1", 3.4, "serving")
    return told


def recorded(name: str) -> dict[str, HostJournal]:
    """Journals of a real lab, as its agents told them, by host."""
    found = msgspec.json.decode((RECORDED / f"{name}.json").read_bytes(), type=dict[str, tuple[Event, ...]])
    return {host: HostJournal(events=events, ahead_s=0.0) for host, events in found.items()}
