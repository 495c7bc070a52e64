from __future__ import annotations

from itertools import combinations

import msgspec

from agent.facts.cluster import HostFacts
from agent.facts.measured import with_probes
from odctl.probing import MAX_PAIRS, host_pairs, link_steps, measured_line
from tests.agent.facts.probes import device_probe, link_probe, record_of
from tests.agent.planner.clusters import cluster, cpu, gpu, host


def hosts_of(number: int, **labels: int) -> list[HostFacts]:
    """Each a machine of its own; a label's figure is how many hosts share a value."""
    return [
        msgspec.structs.replace(
            host(f"h{index:03d}", cpu(8)),
            boot_id=f"boot{index}",
            labels={name: f"{name}{index // size}" for name, size in labels.items()},
        )
        for index in range(number)
    ]


def test_all_pairs_of_sixteen_hosts_are_measured_in_rounds_without_a_host_twice() -> None:
    for number in (2, 3, 5, 16):
        names = [each.name for each in hosts_of(number)]
        pairs = host_pairs(hosts_of(number))
        assert sorted(pairs) == sorted(combinations(names, 2))
        in_a_round = number // 2
        for begin in range(0, len(pairs), in_a_round):
            used = [name for pair in pairs[begin : begin + in_a_round] for name in pair]
            assert len(used) == len(set(used))


def test_more_hosts_are_sampled_within_their_domains_and_between_them() -> None:
    hosts = hosts_of(40, rack=10)
    pairs = host_pairs(hosts)
    racks = {each.name: each.labels["rack"] for each in hosts}
    across = {frozenset((racks[a], racks[b])) for a, b in pairs if racks[a] != racks[b]}
    assert len(across) == 6, "every two of the four racks"
    within = [racks[a] for a, b in pairs if racks[a] == racks[b]]
    assert {rack: within.count(rack) for rack in set(within)} == dict.fromkeys(racks.values(), 9)
    assert {name for pair in pairs for name in pair} == set(racks)


def test_the_sample_stays_bounded() -> None:
    for hosts in (hosts_of(1000), hosts_of(1000, rack=2), hosts_of(17)):
        pairs = host_pairs(hosts)
        assert len(pairs) == len(set(pairs)) <= MAX_PAIRS


def test_steps_of_one_machine_wait_for_each_other_and_those_of_others_do_not() -> None:
    alone = {step.members: step for step in link_steps(hosts_of(4), is_network_trusted=False)}
    first, second = alone["h000/cpu", "h003/cpu"], alone["h001/cpu", "h002/cpu"]
    assert first.after == second.after == ()
    lab = [msgspec.structs.replace(each, boot_id="one") for each in hosts_of(4)]
    steps = link_steps(lab, is_network_trusted=False)
    assert [step.after for step in steps] == [(), *((step.name,) for step in steps[:-1])]


def test_candidate_groups_and_carriers_are_those_that_would_serve() -> None:
    big = msgspec.structs.replace(host("big", *(gpu(index, "L4", 24) for index in range(4))), boot_id="b")
    small = msgspec.structs.replace(host("small", cpu(8)), boot_id="s")
    kinds = {(step.members, step.carrier) for step in link_steps([big, small], is_network_trusted=False)}
    assert kinds == {
        (("big/cuda:0", "small/cpu"), "tls"),
        (("big/cuda:0", "big/cuda:1"), "nccl"),
        (("big/cuda:0", "big/cuda:1", "big/cuda:2", "big/cuda:3"), "nccl"),
    }
    trusted = {step.carrier for step in link_steps([small, *hosts_of(1)], is_network_trusted=True)}
    assert trusted == {"tcp", "tls"}
    sizes = [len(step.members) for step in link_steps(hosts_of(5), is_network_trusted=False)]
    assert sizes == [2] * 10 + [3, 4]


def test_the_line_under_a_plan_tells_the_age_or_the_way_to_figures() -> None:
    one, two = hosts_of(2)
    assert measured_line(cluster(one, two), ["h000"], now_s=0) == "devices not measured: odctl probe"
    records = [
        record_of(one, device_probe(), links=(link_probe(one, two),)),
        record_of(two, device_probe(), links=(link_probe(two, one),)),
    ]
    measured = with_probes(cluster(one, two), records)
    words = measured_line(measured, ["h000", "h001"], now_s=1200.0)
    assert words == "devices measured 3 min ago, links measured 3 min ago"
    half = with_probes(cluster(one, two), records[:1])
    words = measured_line(half, ["h000", "h001"], now_s=1200.0)
    assert words == "1 of 2 devices not measured, links measured 3 min ago: odctl probe"
