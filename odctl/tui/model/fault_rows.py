"""Faults as a table, open ones first, and one of them with its evidence."""

from __future__ import annotations

from collections.abc import Sequence

from agent.facts.fault import Fault
from odctl.fleet.snapshot import FleetSnapshot
from odctl.tui.model.marks import fault_mark
from odctl.tui.model.table import Banner, Column, Value
from odctl.tui.model.text import Line, Span, line, wrap
from odctl.tui.model.units import age_text, seconds_text

COLUMNS = (
    Column(id="state", title="STATE", width=10),
    Column(id="age", title="AGE", width=5, is_right=True),
    Column(id="host", title="HOST", width=12, grow_to=20),
    Column(id="kind", title="KIND", width=12, priority=1),
    Column(id="rank", title="RANK", width=7, priority=3),
    Column(id="deployment", title="DEPLOYMENT", width=12, priority=4, grow_to=20),
    Column(id="healed", title="HEALED IN", width=9, priority=2, is_right=True, sorts_down=True),
    Column(id="message", title="WHAT", width=16, priority=0, grow_to=90),
)


class FaultRows:
    """Every fault of a snapshot, in the snapshot's order."""

    columns = COLUMNS

    def __init__(self, snapshot: FleetSnapshot) -> None:
        self._faults = snapshot.faults
        self._now_s = snapshot.taken_at_s
        self.keys: Sequence[str] = tuple(fault.fault_id for fault in snapshot.faults)

    def values(self, column: str) -> Sequence[Value]:
        return [self._value(fault, column) for fault in self._faults]

    def text(self, row: int) -> str:
        fault = self._faults[row]
        return (
            f"{fault.host} {fault.kind} {fault.deployment} {fault.rank_id} {fault.message} {fault_mark(fault).word}"
        )

    def labels(self, row: int) -> dict[str, str]:  # noqa: ARG002 - faults have none
        return {}

    def banner(self, row: int) -> Banner | None:  # noqa: ARG002 - every row has its cells
        return None

    def cell(self, row: int, column: str, width: int) -> Line:  # noqa: ARG002 - no cell draws a bar
        fault = self._faults[row]
        match column:
            case "state":
                return line(fault_mark(fault).span)
            case "age":
                return line(age_text(max(0.0, self._now_s - fault.observed_at_s)))
            case "healed":
                is_healed = fault.healed_at_s is not None
                return line(seconds_text((fault.healed_at_s or 0.0) - fault.observed_at_s) if is_healed else "")
            case _:
                return line(str(self._value(fault, column)))

    def _value(self, fault: Fault, column: str) -> Value:
        match column:
            case "state":
                return fault_mark(fault).word
            case "age":
                return self._now_s - fault.observed_at_s
            case "host":
                return fault.host
            case "kind":
                return fault.kind
            case "rank":
                return fault.rank_id
            case "deployment":
                return fault.deployment
            case "healed":
                return None if fault.healed_at_s is None else fault.healed_at_s - fault.observed_at_s
            case _:
                return fault.message


def fault_page(snapshot: FleetSnapshot, fault_id: str, *, width: int) -> tuple[Line, ...]:
    """One fault: who saw what, the evidence, and the way out."""
    fault = next((found for found in snapshot.faults if found.fault_id == fault_id), None)
    if fault is None:
        return ()
    mark = fault_mark(fault)
    about = " ".join(part for part in (fault.deployment, fault.rank_id) if part)
    where = f"{fault.host} {about}".rstrip()
    lines = [
        line(" ", mark.span, "  ", Span(fault.kind, "bold"), f"  {where}  generation {fault.generation}"),
        *(line(f"   {text}") for text in wrap(fault.message, width - 4)),
        line(Span(f"   seen by {fault.observed_by}, fault {fault.fault_id}", "dim")),
    ]
    for name, value in sorted(fault.evidence.items()):
        lines += [line(Span(f"   {name} ", "dim"), text) for text in wrap(str(value), width - len(name) - 5)]
    lines += [line(Span(f"   → {text}", "heal")) for text in wrap(fault.way_out, width - 6) if text]
    return tuple(lines)


def fault_summary(snapshot: FleetSnapshot) -> Line:
    """` 1 open  3 healed  repair 1.20 s median`."""
    healed = sorted(
        fault.healed_at_s - fault.observed_at_s for fault in snapshot.faults if fault.healed_at_s is not None
    )
    num_open = len(snapshot.faults) - len(healed)
    spans = [Span(f" {num_open} open", "fault" if num_open else "ok"), Span(f"   {len(healed)} healed")]
    if healed:
        spans.append(Span(f"   healed in {seconds_text(healed[len(healed) // 2])} (median)"))
    return tuple(spans)
