from __future__ import annotations

import msgspec

from odctl.fleet import FleetSnapshot
from odctl.tui.model.device_rows import DeviceRows
from odctl.tui.model.fleet_columns import (
    FAULT,
    HEALING,
    LIVE,
    NO_DATA,
    UNLABELLED,
    WARNING,
    FleetColumns,
    fleet_columns,
    natural_key,
    prepare_columns,
)
from odctl.tui.model.host_rows import HostRows
from odctl.tui.model.text import line_text
from tests.odctl.fleet import values
from tests.odctl.tui import frozen_fleet as frozen


def test_one_snapshot_has_one_set_of_columns_whoever_asks() -> None:
    snapshot = frozen.snapshot()
    assert fleet_columns(snapshot) is fleet_columns(snapshot)
    assert fleet_columns(frozen.snapshot()) is not fleet_columns(snapshot)


def test_what_was_asked_of_the_last_snapshot_is_ready_in_the_next_before_anybody_asks() -> None:
    shown = frozen.snapshot()
    fleet_columns(shown).figures("gpu")
    totals = fleet_columns(shown).totals
    coming = msgspec.structs.replace(shown, taken_at_s=shown.taken_at_s + 1)
    prepare_columns(coming)
    assert fleet_columns(shown).totals is totals, "who draws it meanwhile is not slowed down"
    ready = fleet_columns(coming)
    assert ready.totals == totals
    assert {"loads", "last_rows", "digests"} <= vars(ready).keys()
    assert not {"conditions", "tokens_per_s", "devices"} & vars(ready).keys(), "nobody asked"
    assert ready.figures("gpu") == fleet_columns(shown).figures("gpu")


def test_what_stands_still_is_taken_over_only_while_the_hosts_are_the_same() -> None:
    snapshot = frozen.snapshot()
    first = FleetColumns(snapshot)
    later = msgspec.structs.replace(snapshot, taken_at_s=snapshot.taken_at_s + 1)
    assert FleetColumns(later, before=first).still is first.still
    fewer = msgspec.structs.replace(snapshot, hosts=snapshot.hosts[1:])
    assert FleetColumns(fewer, before=first).still is not first.still
    moved = msgspec.structs.replace(snapshot.hosts[0], facts=frozen.gpu_facts("cpu01"))
    relabelled = msgspec.structs.replace(snapshot, hosts=(moved, *snapshot.hosts[1:]))
    assert FleetColumns(relabelled, before=first).still.groups("rack") != first.still.groups("rack")


def test_conditions_come_from_states_devices_faults_memory_and_healing() -> None:
    conditions = _conditions(frozen.snapshot())
    assert conditions == {
        "cpu01": LIVE,
        "cpu02": WARNING,
        "cpu03": FAULT,
        "cpu04": FAULT,
        "cpu05": NO_DATA,
        "gpu01": FAULT,
    }
    healing = frozen.deployment(status=frozen.status(state="healing"))
    assert _conditions(frozen.snapshot(deployments=(healing,)))["cpu01"] == HEALING
    unheard = frozen.deployment(status=frozen.status(state="healing"), error=frozen.no_answer())
    assert _conditions(frozen.snapshot(deployments=(unheard,)))["cpu01"] == LIVE, "yesterday's word is none"
    full = msgspec.structs.replace(
        frozen.host("cpu01"), sample=values.sample("cpu01", memory_used_bytes=int(15.9 * values.GIB))
    )
    assert _conditions(frozen.snapshot(hosts=(full,), faults=()))["cpu01"] == WARNING


def test_the_table_sorts_by_the_very_figures_that_its_cells_show() -> None:
    rows = HostRows(frozen.snapshot())
    for column in ("cpu", "gpu", "vram", "temp", "net", "power", "load", "ram"):
        values = rows.values(column)
        assert len(values) == len(rows.keys)
        for row, value in enumerate(values):
            text = "".join(span.text for span in rows.cell(row, column, 12)).strip()
            assert (value is None) == (not any(sign.isdigit() for sign in text)), (rows.keys[row], column, text)


def test_groups_are_in_the_order_people_count_and_hosts_without_the_label_come_last() -> None:
    def labelled(name: str, rack: str) -> object:
        return frozen.host(name, facts=msgspec.structs.replace(frozen.gpu_facts(name), labels={"rack": rack}))

    hosts = (labelled("a", "r10"), labelled("b", "r2"), labelled("c", "r10"), frozen.host("d"))
    still = FleetColumns(frozen.snapshot(hosts=hosts)).still
    assert [(group.name, group.rows) for group in still.groups("rack")] == [
        ("r2", (1,)),
        ("r10", (0, 2)),
        (UNLABELLED, (3,)),
    ]
    assert still.label_keys == ("rack",)
    assert sorted(["r10", "r2", "a1"], key=natural_key) == ["a1", "r2", "r10"]


def _conditions(snapshot: FleetSnapshot) -> dict[str, int]:
    columns = FleetColumns(snapshot)
    return dict(zip(columns.names, columns.conditions, strict=True))


def test_devices_are_indexed_once_and_anew_when_one_comes_or_goes() -> None:
    """90,000 devices are not to be sorted every second; and a card that appears is not to be missed for that."""
    first = frozen.snapshot()
    keys = DeviceRows(first).keys
    assert "gpu01/cuda:2" in keys
    later = msgspec.structs.replace(first, taken_at_s=first.taken_at_s + 1)
    assert DeviceRows(later).keys is keys
    *others, gpu = first.hosts
    assert gpu.name == "gpu01"
    assert gpu.sample is not None
    new = frozen.gpu(7)
    sample = msgspec.structs.replace(gpu.sample, devices=(*gpu.sample.devices[:-1], new))
    changed = msgspec.structs.replace(first, hosts=(*others, msgspec.structs.replace(gpu, sample=sample)))
    rows = DeviceRows(changed)
    assert {"gpu01/cuda:2", "gpu01/cuda:7"} <= set(rows.keys), "what the facts name stays, without a sample"
    by_key = {key: line_text(rows.cell(row, "util", 12)) for row, key in enumerate(rows.keys)}
    assert "82%" in by_key["gpu01/cuda:7"]
    assert by_key["gpu01/cuda:2"].strip() == "—"
    assert tuple(DeviceRows(first).keys) == tuple(keys)
