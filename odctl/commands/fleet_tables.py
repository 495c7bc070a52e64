"""How the verbs that print the fleet make text of the rows that screens show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import msgspec

from agent.errors import FleetError
from odctl.commands.options import BAD_USAGE, ViewOptions, seconds_of
from odctl.fleet.snapshot import FleetSnapshot
from odctl.result import Result
from odctl.tui.model.frame import fleet_lines
from odctl.tui.model.index import FilterError
from odctl.tui.model.plain import chosen_rows, left_out, table_lines
from odctl.tui.model.records import Record
from odctl.tui.model.scrub import clock_text
from odctl.tui.model.table import Rows
from odctl.tui.model.text import line_text

if TYPE_CHECKING:
    from odctl.inventory import Inventory
    from odctl.viewing import Following

TableRows = TypeVar("TableRows", bound=Rows)
WIDEST = 10_000
"""Cells of a line that nobody has to see at once."""


def show_table(
    inventory_path: str,
    selector: str,
    view: ViewOptions,
    *,
    kind: str,
    rows_of: Callable[[FleetSnapshot], TableRows],
    records_of: Callable[[FleetSnapshot, TableRows, Sequence[int]], list[Record]],
) -> Result:
    """One table over the selected hosts. Its JSON has a record a row under `kind`.

    Raises FleetError E108 for a selector that matches nothing, E109 for an option that means nothing.
    """
    from odctl.inventory import select
    from odctl.viewing import exit_code_for, view_fleet

    def show(_inventory: Inventory, snapshot: FleetSnapshot, width: int | None) -> Result:
        snapshot = _decided_here(snapshot)
        rows = rows_of(snapshot)
        order = rows_in_order(rows, filter_text=view.filter_text, sort=view.sort)
        table = table_prose(rows, order, width=width, empty=f"no {kind.removesuffix('s')}")
        return Result(
            kind=kind,
            data={
                "cluster": snapshot.cluster,
                "taken_at_s": snapshot.taken_at_s,
                kind: records_of(snapshot, rows, order),
            },
            prose=f"{fleet_head(snapshot, width)}\n{table}",
            exit_code=exit_code_for(snapshot),
        )

    return view_fleet(
        inventory_path,
        show,
        following=following_of(view),
        hosts=lambda inventory: [host.name for host in select(inventory, selector)],
        is_wide=view.is_wide,
    )


def following_of(view: ViewOptions) -> Following | None:
    """None where once is enough. Raises FleetError E109."""
    from odctl.viewing import Following

    every_s = seconds_of("--every", view.every)
    return Following(every_s=every_s, as_json=view.as_json) if view.watches else None


def rows_in_order(rows: Rows, *, filter_text: str, sort: str) -> Sequence[int]:
    """Raises FleetError E109 for a filter or a column that means nothing."""
    try:
        return chosen_rows(rows, filter_text=filter_text, sort=sort)
    except FilterError as error:
        raise FleetError(BAD_USAGE, str(error), hint="--filter 'cpu>50 !idle', --sort COLUMN or -COLUMN") from error


def _decided_here(snapshot: FleetSnapshot) -> FleetSnapshot:
    """Without the deployments whose controllers were not asked: of these nothing is known, and nothing is wrong."""
    names = {host.name for host in snapshot.hosts}
    known = tuple(view for view in snapshot.deployments if view.record.controller in names)
    return msgspec.structs.replace(snapshot, deployments=known)


def fleet_head(snapshot: FleetSnapshot, width: int | None) -> str:
    """The cluster, when it was looked at, and the fleet in a line or two."""
    when = f"{snapshot.cluster}  {clock_text(snapshot.taken_at_s)} UTC"
    lines = fleet_lines(snapshot, width=width or WIDEST)
    return "\n".join([when, *[line_text(spans).strip() for spans in lines]])


def table_prose(rows: Rows, order: Sequence[int], *, width: int | None, empty: str) -> str:
    """The table, or why it is empty; below it the columns that have no room."""
    if not order:
        return f"{empty} passes the filter" if len(rows.keys) else empty
    lines = table_lines(rows, order, width=width)
    if width is not None and (titles := left_out(rows, width=width)):
        lines.append(f"no room for {', '.join(titles)} (--wide)")
    return "\n".join(lines)
