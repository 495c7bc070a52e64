"""What scripts get of the screens: every column has keys, units are in them, and what is unknown says why."""

from __future__ import annotations

import msgspec
import pytest

from agent.errors import ErrorDetail
from odctl.tui.model.device_rows import DeviceRows
from odctl.tui.model.host_rows import HostRows
from odctl.tui.model.index import FilterError
from odctl.tui.model.metric_rows import deployment_metrics, host_metrics
from odctl.tui.model.plain import chosen_rows, left_out, table_lines
from odctl.tui.model.records import (
    DEVICE_KEYS,
    HOST_KEYS,
    Record,
    deployment_record,
    device_records,
    host_record,
    host_records,
)
from tests.odctl.tui import frozen_fleet as frozen

HOST_RECORD = {
    "host", "state", "reason", "way_out", "sample_age_s", "sampled_at_s", "labels", "note", "unknown",
    "cpu_fraction", "memory_used_bytes", "memory_total_bytes", "swap_used_bytes", "swap_total_bytes", "load_1m",
    "uptime_s", "gpu_fraction", "gpu_memory_used_bytes", "gpu_memory_total_bytes", "temperature_c", "power_w",
    "received_bytes_per_s", "sent_bytes_per_s", "read_bytes_per_s", "written_bytes_per_s", "num_ranks",
}  # fmt: skip
DEVICE_RECORD = {
    "host", "device", "kind", "name", "state", "sample_age_s", "utilisation_fraction", "memory_used_bytes",
    "memory_total_bytes", "temperature_c", "power_w", "power_limit_w", "sm_clock_hz", "memory_clock_hz",
    "ecc_uncorrected", "ecc_corrected", "usable_bytes", "throttle_reasons", "xid", "num_processes",
    "num_foreign_processes", "stale_s", "unknown",
}  # fmt: skip
DEPLOYMENT_RECORD = {
    "deployment", "state", "reason", "generation", "plan_hash", "controller", "gateway_host", "listen", "num_ranks",
    "num_ranks_linked", "tokens_per_s", "ttft_s_p50", "ttft_s_p95", "time_per_token_s_p50", "time_per_token_s_p95",
    "running", "queued", "slots", "finished", "failed", "cancelled", "prompt_tokens", "generated_tokens",
    "kv_tokens_held", "kv_tokens_total", "predicted_tokens_per_s", "predicted_ttft_s", "predicted_time_per_token_s",
    "unknown",
}  # fmt: skip


def hosts() -> list[Record]:
    snapshot = frozen.snapshot()
    rows = HostRows(snapshot)
    return host_records(snapshot, rows, range(len(rows.keys)))


def devices() -> dict[tuple[str, str], Record]:
    snapshot = frozen.snapshot()
    rows = DeviceRows(snapshot)
    found = device_records(snapshot, rows, range(len(rows.keys)))
    return {(record["host"], record["device"]): record for record in found}


def test_the_keys_of_records_stay() -> None:
    """Scripts hang on them: a key may be added, none may go."""
    assert all(set(record) == HOST_RECORD for record in hosts())
    assert all(set(record) == DEVICE_RECORD for record in devices().values())
    assert set(deployment_record(frozen.deployment())) == DEPLOYMENT_RECORD


def test_what_every_column_shows_has_its_keys() -> None:
    assert {column.id for column in HostRows.columns} == set(HOST_KEYS), "name the keys of a new column"
    assert {column.id for column in DeviceRows.columns} == set(DEVICE_KEYS), "name the keys of a new column"
    assert {key for keys in HOST_KEYS.values() for key in keys} <= HOST_RECORD
    assert {key for keys in DEVICE_KEYS.values() for key in keys} <= DEVICE_RECORD


def test_a_live_hosts_record_is_what_its_row_shows() -> None:
    record = next(record for record in hosts() if record["host"] == "gpu01")
    assert record["state"] == "live"
    assert record["cpu_fraction"] == 0.31
    assert record["memory_used_bytes"] == 9 * 2**30
    assert record["gpu_fraction"] == pytest.approx((0.82 + 0.79) / 2), "the lost GPU has no say"
    assert record["num_ranks"] == 1
    assert record["sent_bytes_per_s"] == 2.5e6
    assert record["labels"] == {"rack": "a"}
    assert record["note"] == "✗ cuda:2 fell off the bus"


def test_a_host_without_figures_says_why_and_never_zero() -> None:
    record = next(record for record in hosts() if record["host"] == "cpu04")
    assert (record["state"], record["way_out"]) == ("unreachable", "`odctl bootstrap cpu04` installs and starts it")
    assert record["cpu_fraction"] is None
    assert record["unknown"]["cpu_fraction"] == "no agent answers on this host"
    assert record["sample_age_s"] is None
    live = next(record for record in hosts() if record["host"] == "cpu01")
    assert live["gpu_fraction"] is None
    assert live["unknown"]["gpu_fraction"] == "no driver"
    stale = next(record for record in hosts() if record["host"] == "cpu02")
    assert (stale["state"], stale["sample_age_s"]) == ("stale", 12.0)
    assert stale["cpu_fraction"] == 0.25, "its last value, with its age"


def test_every_reading_without_a_fresh_value_says_why() -> None:
    found = devices()
    throttled = found["gpu01", "cuda:1"]
    assert (throttled["utilisation_fraction"], throttled["stale_s"]) == (0.79, {"utilisation_fraction": 7.0})
    assert throttled["throttle_reasons"] == ["HW thermal"]
    assert (throttled["ecc_uncorrected"], throttled["unknown"]["ecc_uncorrected"]) == (None, "not supported")
    lost = found["gpu01", "cuda:2"]
    assert (lost["state"], lost["xid"]) == ("device lost", [79])
    assert lost["power_w"] is None
    assert lost["unknown"]["power_w"] == "GPU is lost (Xid 79)"
    assert found["gpu01", "cuda:0"]["num_foreign_processes"] == 1
    assert found["gpu01", "cuda:0"]["sm_clock_hz"] == 2.52e9


def test_a_deployments_record_is_measured_beside_predicted() -> None:
    record = deployment_record(frozen.deployment())
    assert (record["tokens_per_s"], record["predicted_tokens_per_s"]) == (57.5, 210.0)
    assert (record["ttft_s_p95"], record["time_per_token_s_p50"]) == (0.61, 0.033)
    assert (record["num_ranks_linked"], record["num_ranks"]) == (2, 2)
    assert record["kv_tokens_total"] == frozen.plan().serving.kv_blocks * 16
    assert record["unknown"] == {}


def test_a_deployment_that_finished_nothing_has_no_times_yet() -> None:
    backend = frozen.status().backend
    assert backend is not None
    idle = msgspec.structs.replace(backend, finished=0, ttft_s_p50=0.0, ttft_s_p95=0.0)
    record = deployment_record(frozen.deployment(status=frozen.status(backend=idle)))
    assert record["ttft_s_p50"] is None
    assert record["unknown"]["ttft_s_p50"] == "no request has finished"
    silent = ErrorDetail(code="E211", message="the agent did not answer in time")
    record = deployment_record(frozen.deployment(status=None, error=silent))
    assert (record["state"], record["tokens_per_s"]) == ("unknown", None)
    assert record["unknown"]["tokens_per_s"] == "the agent did not answer in time"


def test_metrics_are_the_records_as_tables() -> None:
    deployments, found = deployment_metrics(frozen.snapshot()), host_metrics(frozen.snapshot())
    text = "\n".join(table_lines(deployments, [0], width=None))
    for said in ("chat", "● serving", "57.5", "210", "440 ms", "33.0 ms", "2/8"):
        assert said in text
    assert [record["host"] for record in found.records] == list(found.keys)
    assert found.records[0] == host_record(frozen.snapshot().hosts[0])
    text = "\n".join(table_lines(found, range(len(found.keys)), width=None))
    assert "no agent answers on this host" in text
    assert "1.4M" in text, "what it receives a second"


def test_without_a_width_no_cell_is_cut() -> None:
    rows = HostRows(frozen.snapshot())
    lines = table_lines(rows, range(len(rows.keys)), width=None)
    assert len(lines) == 1 + len(rows.keys)
    assert not any("…" in text for text in lines)
    assert all(column.title in lines[0] for column in rows.columns)
    assert "✗ cuda:2 fell off the bus" in lines[-1]
    assert left_out(rows, width=10_000) == ()


def test_within_a_width_columns_leave_and_are_named() -> None:
    rows = HostRows(frozen.snapshot())
    lines = table_lines(rows, range(len(rows.keys)), width=80)
    assert all(len(text) <= 80 for text in lines)
    gone = left_out(rows, width=80)
    assert gone
    assert not any(f" {title} " in f" {lines[0]} " for title in gone)


def test_rows_are_chosen_as_on_a_screen() -> None:
    rows = HostRows(frozen.snapshot())
    assert [rows.keys[row] for row in chosen_rows(rows, filter_text="cpu>30")] == ["gpu01"]
    assert "cpu01" not in [rows.keys[row] for row in chosen_rows(rows, filter_text="!live")]
    assert rows.keys[chosen_rows(rows, sort="cpu")[0]] == "gpu01", "the largest first, as the screen sorts it"
    assert rows.keys[chosen_rows(rows, sort="-cpu")[0]] == "cpu01"
    with pytest.raises(FilterError, match=r"no column (or label )?`speed`"):
        chosen_rows(rows, sort="speed")
    with pytest.raises(FilterError, match=r"no column (or label )?`speed`"):
        chosen_rows(rows, filter_text="speed>5")
