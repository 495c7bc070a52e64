from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from agent.engine import link_probe
from agent.engine.link_probe import measure_links
from agent.facts.probe import ProbedCarrier
from agent.wire.probe import LinkProbeConfig, LinkReport, LinkStep, ProbeLinks, ProbeSizes
from tests.agent.engine.certificates import Authority
from tests.agent.engine.rendezvous import serve_rendezvous

SIZES = ProbeSizes(link_bytes=1 << 20, sum_bytes=(1 << 10, 64 << 10), span_s=0.01)
A, B, C = "a/cpu", "b/cpu", "c/cpu"


def step(name: str, *members: str, carrier: ProbedCarrier = "tcp", after: tuple[str, ...] = ()) -> LinkStep:
    return LinkStep(name=name, members=members, carrier=carrier, after=after)


def measure(folder: Path, steps: Sequence[LinkStep], seats: Sequence[str]) -> dict[str, LinkReport]:
    """Every seat as a thread of this process, over one rendezvous."""
    order = ProbeLinks(
        probe_id="probe-1",
        keeper="host01",
        members=(),
        steps=tuple(steps),
        hardware={"a": "ha", "b": "hb", "c": "hc"},
        sizes=SIZES,
    )
    authority = Authority(folder)
    with serve_rendezvous(folder / "agent.sock"), ThreadPoolExecutor(len(seats)) as pool:
        configs = [
            LinkProbeConfig(
                seat=seat,
                order=order,
                cluster="lab",
                address="127.0.0.1",
                agent_socket=str(folder / "agent.sock"),
                tls=authority.leaf(f"leaf-{seat[0]}", host=seat[0]),
                threads=1,
                limit_s=30,
            )
            for seat in seats
        ]
        return dict(zip(seats, pool.map(measure_links, configs), strict=True))


@pytest.mark.parametrize("carrier", ["tls", "tcp", "gloo"])
def test_two_members_measure_both_directions_and_their_sums(tmp_path: Path, carrier: ProbedCarrier) -> None:
    reports = measure(tmp_path, [step("0", A, B, carrier=carrier)], [A, B])
    assert all(report.failures == () for report in reports.values())
    (there,), (back,) = reports[A].links, reports[B].links
    assert (there.source, there.target, back.source, back.target) == ("a", "b", "b", "a")
    assert (there.source_hardware, there.target_hardware) == ("ha", "hb")
    for link in (there, back):
        assert link.carrier == carrier
        assert 0 < link.latency_s < 0.1
        assert 1e6 < link.bytes_per_s < 1e12
    (group,) = reports[A].groups
    assert reports[B].groups == (), "the first member tells"
    assert [each.num_bytes for each in group.sums] == [1 << 10, 64 << 10]
    assert all(each.seconds > 0 for each in group.sums)
    assert group.hardware == ("ha", "hb")


def test_a_group_of_three_is_summed_and_has_no_links(tmp_path: Path) -> None:
    reports = measure(tmp_path, [step("0", A, B, C)], [A, B, C])
    assert [len(report.groups) for report in reports.values()] == [1, 0, 0]
    assert all(report.links == () for report in reports.values())
    assert all(report.failures == () for report in reports.values())


def test_members_that_reckon_otherwise_sum_equally_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their means differ in the last bits, and sometimes in the number of repeats that they make of them."""
    monkeypatch.setattr(link_probe._Turns, "mean", lambda turns, value: value * 3 ** (turns.index - 1))
    reports = measure(tmp_path, [step("0", A, B, C)], [A, B, C])
    assert all(report.failures == () for report in reports.values())
    assert len(reports[A].groups) == 1


def test_a_member_that_does_not_come_is_named_and_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_probe, "START_LIMIT_S", 1.0)
    steps = [step("0", A, C), step("1", A, C, carrier="tls"), step("2", A, B, after=("1",))]
    reports = measure(tmp_path, steps, [A, B])
    first, second = reports[A].failures
    assert first.members == second.members == (A, C)
    assert first.message == second.message == "c/cpu did not come"
    assert len(reports[A].links) == len(reports[B].links) == 1, "the others are measured all the same"
    assert reports[B].failures == ()


def test_configs_survive_the_way_through_standard_input() -> None:
    order = ProbeLinks(probe_id="p", keeper="a", members=(), steps=(step("0", A, B),), hardware={})
    assert msgspec.json.decode(msgspec.json.encode(order), type=ProbeLinks) == order
