"""Faults: observed trouble, with its evidence. An Error is an exception; a Fault is a value in the journal."""

from __future__ import annotations

from typing import Literal

import msgspec

FaultKind = Literal[
    "rank_lost",
    "rank_hung",
    "link_lost",
    "agent_lost",
    "host_lost",
    "gateway_lost",
    "device_lost",
    "rank_failed",
]
Severity = Literal["warning", "fault"]


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One observed trouble. `observed_at_s` is seconds since the epoch on the host that observed it.

    `evidence` says what was seen, by name: exit code, signal, process state, silence in seconds, the link's
    exception.
    """

    fault_id: str
    kind: FaultKind
    severity: Severity
    observed_at_s: float
    observed_by: str
    host: str
    deployment: str = ""
    generation: int = 0
    rank_id: str = ""
    message: str
    evidence: dict[str, str | int | float] = {}
    healed_at_s: float | None = None
    way_out: str = ""
