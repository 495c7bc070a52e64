"""The names that a line at the bottom can be completed with, out of what is known now."""

from __future__ import annotations

from odctl.fleet.snapshot import FleetSnapshot
from odctl.tui.model import device_rows, host_rows
from odctl.tui.model.completion import Vocabulary
from odctl.tui.model.plans import PlanChoice, plan_choices


def vocabulary_of(
    snapshot: FleetSnapshot | None,
    preview: PlanChoice | None,
    *,
    columns: tuple[str, ...] = (),
    themes: tuple[str, ...] = (),
) -> Vocabulary:
    """`columns` are those of the table that is shown."""
    tables = {
        "": columns,
        "fleet": tuple(column.id for column in host_rows.COLUMNS),
        "devices": tuple(column.id for column in device_rows.COLUMNS),
    }
    if snapshot is None:
        return Vocabulary(columns=tables, themes=themes)
    facts = [host.facts for host in snapshot.hosts if host.facts is not None]
    labels = {f"{key}={value}" for host in facts for key, value in host.labels.items()}
    plans = [choice.plan.name for choice in plan_choices(snapshot, preview)]
    return Vocabulary(
        hosts=tuple(host.name for host in snapshot.hosts),
        deployments=tuple(view.name for view in snapshot.deployments),
        plans=tuple(dict.fromkeys(plans)),
        columns=tables,
        labels=tuple(sorted(labels)),
        themes=themes,
    )
