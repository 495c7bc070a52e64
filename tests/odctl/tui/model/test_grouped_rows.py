from __future__ import annotations

import msgspec

from odctl.fleet import FleetSnapshot, HostView
from odctl.tui.model.fleet_columns import FleetColumns
from odctl.tui.model.grouped_rows import GroupedRows, group_key, is_group_key
from odctl.tui.model.host_rows import HostRows
from odctl.tui.model.index import Sort, row_order
from odctl.tui.model.text import line_text
from tests.odctl.fleet import values
from tests.odctl.tui import frozen_fleet as frozen


def racks() -> FleetSnapshot:
    def host(name: str, rack: str, state: str = "live", cpu: float = 0.25) -> HostView:
        facts = msgspec.structs.replace(frozen.gpu_facts(name), labels={"rack": rack})
        return frozen.host(name, state, facts=facts, sample=values.sample(name, cpu=cpu))

    hosts = (
        host("a1", "r2"),
        host("a2", "r10", cpu=0.95),
        host("a3", "r2", cpu=0.7),
        host("a4", "r10", "lost"),
    )
    return frozen.snapshot(hosts=hosts, faults=(), deployments=())


def grouped(*, collapsed: frozenset[str] = frozenset(), sort: Sort | None = None) -> GroupedRows:
    snapshot = racks()
    rows = HostRows(snapshot)
    return GroupedRows(rows, row_order(rows, sort=sort), FleetColumns(snapshot), label="rack", collapsed=collapsed)


def shown(rows: GroupedRows) -> list[str]:
    return [rows.keys[row] for row in rows.order]


def test_hosts_stand_under_their_groups_sorted_within_them() -> None:
    r2, r10 = group_key("rack", "r2"), group_key("rack", "r10")
    assert shown(grouped()) == [r2, "a1", "a3", r10, "a2", "a4"]
    down = grouped(sort=Sort(column="cpu", is_descending=True))
    assert shown(down) == [r2, "a3", "a1", r10, "a2", "a4"]
    assert is_group_key(r2)
    assert not is_group_key("a1")


def test_a_header_counts_its_hosts_and_says_how_bad_the_worst_is() -> None:
    rows = grouped()
    banner = rows.banner(rows.keys.index(group_key("rack", "r10")))
    assert banner is not None
    column, words = banner
    assert column == rows.columns[0].id
    text = line_text(words)
    assert "▾ rack=r10  2 hosts" in text
    assert "✗1 fault" in text
    assert "CPU 60%" in text
    assert rows.banner(rows.keys.index("a1")) is None


def test_a_folded_group_keeps_its_header_and_hides_its_hosts() -> None:
    r2, r10 = group_key("rack", "r2"), group_key("rack", "r10")
    rows = grouped(collapsed=frozenset({r2}))
    assert shown(rows) == [r2, r10, "a2", "a4"]
    banner = rows.banner(rows.keys.index(r2))
    assert banner is not None
    assert "▸ rack=r2  2 hosts" in line_text(banner[1])


def test_a_group_of_which_nothing_passes_the_filter_has_no_header() -> None:
    snapshot = racks()
    rows = HostRows(snapshot)
    only = GroupedRows(rows, [1], FleetColumns(snapshot), label="rack")
    assert shown(only) == [group_key("rack", "r10"), "a2"]
    assert len(only.values("cpu")) == len(only.keys)
