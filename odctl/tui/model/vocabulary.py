"""The names that a line at the bottom can be completed with, out of what is known now."""

from __future__ import annotations

import msgspec

from odctl.fleet.snapshot import FleetSnapshot
from odctl.tui.model.completion import Vocabulary
from odctl.tui.model.device_rows import DeviceRows
from odctl.tui.model.host_rows import HostRows
from odctl.tui.model.plans import PlanChoice, plan_choices
from odctl.tui.model.table import Column


def vocabulary_of(
    snapshot: FleetSnapshot | None,
    preview: PlanChoice | None,
    *,
    columns: tuple[Column, ...] = (),
    themes: tuple[str, ...] = (),
) -> Vocabulary:
    """`columns` are those of the table that is shown."""
    tables = {"": columns, "fleet": HostRows.columns, "devices": DeviceRows.columns}
    words = Vocabulary(
        columns={name: tuple(column.id for column in found) for name, found in tables.items()},
        # Those that begin with the largest when they are sorted: they are figures.
        figures=frozenset(column.id for found in tables.values() for column in found if column.sorts_down),
        themes=themes,
    )
    if snapshot is None:
        return words
    facts = [host.facts for host in snapshot.hosts if host.facts is not None]
    labels = {f"{key}={value}" for host in facts for key, value in host.labels.items()}
    plans = [choice.plan.name for choice in plan_choices(snapshot, preview)]
    return msgspec.structs.replace(
        words,
        hosts=tuple(host.name for host in snapshot.hosts),
        deployments=tuple(view.name for view in snapshot.deployments),
        plans=tuple(dict.fromkeys(plans)),
        labels=tuple(sorted(labels)),
    )
