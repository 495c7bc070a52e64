"""What speaks against a plan is found, named with its reason, and never called well."""

from __future__ import annotations

import msgspec
import pytest

from agent.facts.probe import LinkProbe, ProbeRecord
from agent.planner.plan import Asked
from agent.planner.staleness import facts_digest
from odctl.fleet.snapshot import FleetSnapshot
from odctl.tui.model.plan_checks import Check, check_lines, plan_checks
from odctl.tui.model.plans import PlanChoice, cluster_facts
from odctl.tui.model.text import line_text, line_width
from tests.odctl.tui import frozen_fleet as frozen


def preview(snapshot: FleetSnapshot, **changes: object) -> PlanChoice:
    """A plan that was made of this very snapshot."""
    plan = msgspec.structs.replace(frozen.plan(), **changes)
    digest = facts_digest(cluster_facts(snapshot, hosts=plan.hosts), plan.hosts)
    return PlanChoice(
        origin="plan.toml", plan=msgspec.structs.replace(plan, facts_digest=digest), plan_hash="f" * 64
    )


def found(choice: PlanChoice, snapshot: FleetSnapshot | None) -> dict[str, Check]:
    return {check.name: check for check in plan_checks(choice, snapshot)}


def calm() -> FleetSnapshot:
    """Nothing is wrong here."""
    hosts = (frozen.host("cpu01"), frozen.host("gpu01", facts=frozen.gpu_facts("gpu01")))
    return frozen.snapshot(hosts=hosts, faults=())


def test_where_all_is_well_every_check_says_what_is() -> None:
    checks = found(preview(calm()), calm())
    assert {name: check.state for name, check in checks.items()} == {
        "hosts": "ok",
        "memory": "ok",
        "since": "ok",
        "links": "warn",
    }
    assert checks["hosts"].text == "2 of 2 live"
    assert "on cpu01/cpu" in checks["memory"].text
    assert "0 of 1 between stages measured; not gpu01 → cpu01: odctl probe" in checks["links"].text


def test_before_the_first_snapshot_nothing_is_known() -> None:
    assert [check.state for check in plan_checks(preview(calm()), None)] == ["unknown"]


@pytest.mark.parametrize(("state", "expected"), [("lost", "fault"), ("stale", "warn"), ("connecting", "warn")])
def test_a_host_that_is_not_live_is_named(state: str, expected: str) -> None:
    hosts = (
        frozen.host("cpu01", state, reason="reset by peer"),
        frozen.host("gpu01", facts=frozen.gpu_facts("gpu01")),
    )
    check = found(preview(calm()), frozen.snapshot(hosts=hosts))["hosts"]
    assert check.state == expected
    assert f"1 of 2 live; cpu01 {state} (reset by peer)" in check.text


def test_a_host_that_never_told_its_facts_leaves_memory_unknown() -> None:
    hosts = (frozen.host("cpu01", "connecting", facts=None), frozen.host("gpu01", facts=frozen.gpu_facts("gpu01")))
    snapshot = frozen.snapshot(hosts=hosts)
    checks = found(preview(calm()), snapshot)
    assert (checks["memory"].state, checks["memory"].text) == ("unknown", "no facts of cpu01/cpu")
    assert checks["since"].state == "unknown"


def test_hosts_of_another_inventory_and_other_hardware_are_faults() -> None:
    gone = frozen.snapshot(hosts=(frozen.host("cpu01"),))
    assert found(preview(calm()), gone)["hosts"].text == "the inventory does not have gpu01"
    moved = preview(calm())
    bare = msgspec.structs.replace(moved.plan, facts_digest=moved.plan.facts_digest.replace("gpu01:", "gpu01:0"))
    check = found(msgspec.structs.replace(moved, plan=bare), calm())["since"]
    assert check.state == "fault"
    assert check.text.startswith("host gpu01 has other devices or memory")


def test_what_was_asked_for_is_held_against_the_plan() -> None:
    kept = found(preview(calm(), asked=Asked(pinned=("gpu01",))), calm())["asked"]
    assert (kept.state, kept.text) == ("ok", "keeps what it was asked for")
    broken = found(preview(calm(), asked=Asked(excluded=("cpu01",))), calm())["asked"]
    assert (broken.state, broken.text) == ("warn", "not kept: cpu01 was to be left out")


def test_lost_throttled_and_used_devices_and_faults_are_told() -> None:
    snapshot = frozen.snapshot()
    plan = frozen.plan()
    first = plan.replicas[0].stages[0]

    def on(device: str) -> dict[str, Check]:
        shards = (msgspec.structs.replace(first.shards[0], device=device),)
        stages = (msgspec.structs.replace(first, shards=shards), plan.replicas[0].stages[1])
        replica = msgspec.structs.replace(plan.replicas[0], stages=stages)
        return found(preview(snapshot, replicas=(replica,)), snapshot)

    assert on("cuda:2")["devices"].text == "gpu01/cuda:2: GPU is lost (Xid 79)"
    assert on("cuda:1")["clocks"].text == "slowed down: gpu01/cuda:1 (HW thermal)"
    checks = on("cuda:0")
    assert checks["foreign"].text == "gpu01/cuda:0: python train.py of bob"
    assert checks["faults"].text == "1 open fault on its hosts: gpu01: cuda:2 fell off the bus"


def test_a_measured_link_counts() -> None:
    probe = LinkProbe(
        source="gpu01",
        target="cpu01",
        source_device="cpu",
        target_device="cpu",
        carrier="tls",
        latency_s=1e-4,
        bytes_per_s=1e9,
        streamed_bytes=1,
        measured_at_s=frozen.NOW_S,
    )
    record = ProbeRecord(host="gpu01", hardware="h", links=(probe,))
    hosts = (frozen.host("cpu01"), frozen.host("gpu01", facts=frozen.gpu_facts("gpu01"), probes=record))
    snapshot = frozen.snapshot(hosts=hosts, faults=())
    assert found(preview(snapshot), snapshot)["links"].text == "1 of 1 between stages measured"


@pytest.mark.parametrize("width", [60, 78, 138])
def test_lines_have_glyph_word_and_reason_and_fit(width: int) -> None:
    lines = check_lines(plan_checks(preview(calm()), frozen.snapshot()), width)
    assert all(line_width(spans) <= width for spans in lines)
    text = "\n".join(line_text(spans) for spans in lines)
    assert "✓ hosts" in text
    assert "▲ links     warning: 0 of 1" in text
