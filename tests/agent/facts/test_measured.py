from __future__ import annotations

import msgspec
import pytest

from agent.facts.measured import hardware_hash, with_probes
from agent.facts.probe import GroupProbe, LinkProbe, SumProbe
from agent.planner.cost import all_reduce_s, group_link
from agent.planner.layout import Place
from agent.planner.rates import LinkTable
from tests.agent.facts.probes import device_probe, group_probe, link_probe, record_of
from tests.agent.planner.clusters import cluster, cpu, gpu, host
from tests.agent.planner.test_rehearsal import rehearsed

ALPHA, BETA = host("alpha", cpu(8)), host("beta", cpu(8))


def test_the_hash_follows_hardware_and_torch_and_nothing_that_moves_by_itself() -> None:
    replace = msgspec.structs.replace
    same = replace(ALPHA, disk_free_bytes=5, boot_id="another", labels={"rack": "r1"}, name="renamed")
    assert hardware_hash(same) == hardware_hash(ALPHA)
    for other in (
        replace(ALPHA, torch="2.14.0"),
        replace(ALPHA, driver="600.1"),
        replace(ALPHA, cpu_cores=4),
        replace(ALPHA, devices=(cpu(8, cores=2),)),
        replace(ALPHA, devices=(*ALPHA.devices, gpu(0, "L4", 24))),
    ):
        assert hardware_hash(other) != hardware_hash(ALPHA)


def test_figures_of_other_hardware_are_left_out() -> None:
    facts = cluster(ALPHA, BETA)
    stale_link = msgspec.structs.replace(link_probe(ALPHA, BETA), target_hardware="gone")
    records = [
        record_of(ALPHA, device_probe(), links=(stale_link,)),
        record_of(BETA, device_probe(), hardware="gone"),
    ]
    measured = with_probes(facts, records)
    assert [device.probe is not None for each in measured.hosts for device in each.devices] == [True, False]
    assert measured.links == ()


def test_equal_devices_that_differ_by_noise_are_taken_as_equal_and_a_slow_one_is_not() -> None:
    hosts = [host(name, cpu(8)) for name in ("a", "b", "c", "d")]
    rates = dict(zip("abcd", (10e9, 10.4e9, 9.7e9, 5e9), strict=True))
    records = [record_of(each, device_probe(read_bytes_per_s=rates[each.name])) for each in hosts]
    probes = {each.name: each.devices[0].probe for each in with_probes(cluster(*hosts), records).hosts}
    read = {name: probe and probe.gemms[0].weight_bytes_per_s for name, probe in probes.items()}
    assert read == pytest.approx({"a": 10e9, "b": 10e9, "c": 10e9, "d": 5e9})
    assert probes["a"] == probes["b"] == probes["c"]


def test_rehearsals_of_equal_devices_are_pooled_and_serve_those_that_have_none() -> None:
    hosts = [host(name, cpu(8)) for name in ("a", "b", "c", "d")]
    levels = {"a": 1.0, "b": 1.1, "c": 0.9}
    records = [
        record_of(
            each,
            msgspec.structs.replace(
                device_probe(), models=(rehearsed(level=levels[each.name]),) if each.name in levels else ()
            ),
        )
        for each in hosts
    ]
    found = [each.devices[0].probe for each in with_probes(cluster(*hosts), records).hosts]
    assert all(probe is not None and probe.models == (rehearsed(),) for probe in found)


def test_who_rehearses_slower_is_no_equal_though_another_has_rehearsed_nothing() -> None:
    hosts = [host(name, cpu(8)) for name in ("a", "b", "c", "d")]
    models = {"a": (rehearsed(),), "b": (rehearsed(level=1.3),), "c": (rehearsed(),), "d": ()}
    records = [record_of(each, msgspec.structs.replace(device_probe(), models=models[each.name])) for each in hosts]
    a, b, c, d = (each.devices[0].probe for each in with_probes(cluster(*hosts), records).hosts)
    assert a == c == d
    assert b is not None
    assert b.models == models["b"]


@pytest.mark.parametrize(("product", "level", "is_equal"), [(0.6, 1.05, True), (1.0, 2.0, False)])
def test_equal_is_what_rehearses_equally_whatever_a_product_did_in_one_moment(
    product: float, level: float, *, is_equal: bool
) -> None:
    hosts = [host(name, cpu(8)) for name in ("a", "b", "c")]
    usual = msgspec.structs.replace(device_probe(), models=(rehearsed(),))
    other = msgspec.structs.replace(
        device_probe(read_bytes_per_s=product * 10e9), models=(rehearsed(level=level), rehearsed(parts=2))
    )
    records = [record_of(each, other if each.name == "c" else usual) for each in hosts]
    a, _, c = (each.devices[0].probe for each in with_probes(cluster(*hosts), records).hosts)
    assert (a == c) == is_equal


@pytest.mark.parametrize(("product", "is_equal"), [(1.3, True), (1.8, False)])
def test_who_rehearsed_nothing_is_held_against_the_others_by_products(product: float, *, is_equal: bool) -> None:
    """Products of 1.25 times the usual rate while rehearsals are as usual: that moment was a quick one for all."""
    hosts = [host(name, cpu(8)) for name in ("a", "b", "c", "d")]
    told = msgspec.structs.replace(device_probe(read_bytes_per_s=12.5e9), models=(rehearsed(),))
    untold = device_probe(read_bytes_per_s=product * 10e9)
    records = [record_of(each, untold if each.name == "d" else told) for each in hosts]
    a, *_, d = (each.devices[0].probe for each in with_probes(cluster(*hosts), records).hosts)
    assert (a == d) == is_equal


def test_a_link_carries_its_direction_and_its_sums() -> None:
    group = group_probe(ALPHA, BETA, small_s=100e-6, large_s=1132e-6)
    records = [
        record_of(ALPHA, links=(link_probe(ALPHA, BETA, latency_s=40e-6),), groups=(group,)),
        record_of(BETA, links=(link_probe(BETA, ALPHA, latency_s=90e-6),)),
    ]
    there, back = with_probes(cluster(ALPHA, BETA), records).links
    assert (there.source, there.latency_s, back.source, back.latency_s) == ("alpha", 40e-6, "beta", 90e-6)
    assert there.is_measured
    assert there.carrier == "tls"
    assert there.measured_at_s == 1000.0
    assert all_reduce_s(there, 4 << 10, 2, carrier="tls") == pytest.approx(100e-6)
    assert all_reduce_s(there, 16 << 10, 2, carrier="tls") == pytest.approx(100e-6)
    assert all_reduce_s(there, (512 + 8) << 10, 2, carrier="tls") == pytest.approx(616e-6)
    assert all_reduce_s(there, 1 << 20, 2, carrier="tls") == pytest.approx(1132e-6)


def test_a_sum_takes_what_those_of_its_size_took() -> None:
    """A line through the smallest and the largest would say otherwise where a link lets a few packets through."""
    sizes = ((1024, 0.9), (2, 1e-3), (16, 8e-3), (64, 7e-3))
    group = msgspec.structs.replace(
        group_probe(ALPHA, BETA, small_s=0.0, large_s=0.0),
        sums=tuple(SumProbe(num_bytes=size << 10, seconds=seconds) for size, seconds in sizes),
    )
    records = [record_of(ALPHA, links=(link_probe(ALPHA, BETA),), groups=(group,))]
    [there] = with_probes(cluster(ALPHA, BETA), records).links

    def sum_s(kib: int) -> float:
        return all_reduce_s(there, kib << 10, 2, carrier="tls")

    assert sum_s(0) == sum_s(2) == pytest.approx(1e-3)
    assert sum_s(9) == pytest.approx(4.5e-3)
    assert sum_s(40) == pytest.approx(8e-3), "more bytes are never quicker"
    assert sum_s(1984) == pytest.approx(0.9 + 0.892), "behind the largest along the last line"


def test_links_of_equal_hardware_that_differ_by_noise_are_taken_as_equal_and_a_slow_one_is_not() -> None:
    hosts = {name: host(name, cpu(8)) for name in "abcd"}
    pairs = {
        "ab": (0.83, 1.0),
        "ac": (1.05, 1.2),
        "bc": (1.45, 0.9),
        "ad": (1.0, 1.0),
        "bd": (1.0, 1.1),
        "cd": (20.0, 1),
    }

    def links_from(name: str) -> tuple[LinkProbe, ...]:
        return tuple(
            link_probe(hosts[name], hosts[other], latency_s=50e-6 * factor)
            for pair, (_, factor) in pairs.items()
            if name in pair
            for other in pair.replace(name, "")
        )

    def groups_of(name: str) -> tuple[GroupProbe, ...]:
        return tuple(
            group_probe(hosts[pair[0]], hosts[pair[1]], small_s=small_ms / 1e3, large_s=small_ms / 1e2)
            for pair, (small_ms, _) in pairs.items()
            if pair[0] == name
        )

    records = [record_of(hosts[name], links=links_from(name), groups=groups_of(name)) for name in hosts]
    links = {link.source + link.target: link for link in with_probes(cluster(*hosts.values()), records).links}
    assert links["ab"].sums == links["ca"].sums == ((16 << 10, 1e-3), (1 << 20, 10e-3))
    assert links["ab"].latency_s == links["cb"].latency_s == pytest.approx(50e-6)
    assert links["bc"].sums == links["ab"].sums
    assert links["cd"].sums == links["dc"].sums == ((16 << 10, 20e-3), (1 << 20, 0.2))
    assert links["cd"].latency_s == pytest.approx(50e-6)  # each figure by itself


def test_a_figure_of_a_bad_moment_leaves_the_others_of_its_link_typical_and_its_sums_in_order() -> None:
    hosts = {name: host(name, cpu(8)) for name in "abc"}
    small_and_large_s = {"ab": (1.0, 10.0), "ac": (11.0, 11.5), "bc": (1.25, 10.5)}
    groups = {
        name: tuple(
            group_probe(hosts[pair[0]], hosts[pair[1]], small_s=small_s, large_s=large_s)
            for pair, (small_s, large_s) in small_and_large_s.items()
            if pair[0] == name
        )
        for name in hosts
    }
    links = {
        name: tuple(link_probe(hosts[name], hosts[other], rate=1e9) for other in hosts if other != name)
        for name in hosts
    }
    records = [record_of(hosts[name], links=links[name], groups=groups[name]) for name in hosts]
    sums = {link.source + link.target: link.sums for link in with_probes(cluster(*hosts.values()), records).links}
    small, large = 16 << 10, 1 << 20
    assert sums["ab"] == sums["cb"] == ((small, 1.125), (large, 10.5))
    assert sums["ac"] == ((small, 11.0), (large, 11.0))


def test_links_of_unequal_devices_and_the_two_directions_of_one_stay_as_they_were_measured() -> None:
    a, b, c = (host(name, cpu(8)) for name in "abc")
    one_pair = [
        record_of(a, links=(link_probe(a, b, rate=1e9),)),
        record_of(b, links=(link_probe(b, a, rate=1.2e9),)),
    ]
    assert [link.bytes_per_s for link in with_probes(cluster(a, b), one_pair).links] == [1e9, 1.2e9]
    records = [
        record_of(a, device_probe(), links=(link_probe(a, b, rate=1e9), link_probe(a, c, rate=1.2e9))),
        record_of(b, device_probe()),
        record_of(c, device_probe(read_bytes_per_s=3e9)),
    ]
    assert [link.bytes_per_s for link in with_probes(cluster(a, b, c), records).links] == [1e9, 1.2e9]


def test_a_group_is_as_slow_as_its_slowest_pair_at_every_size() -> None:
    a, b, c = hosts = [host(name, cpu(8)) for name in ("a", "b", "c")]
    groups = (
        group_probe(a, b, small_s=1e-3, large_s=2e-3),
        group_probe(a, c, small_s=0.5e-3, large_s=9e-3),
        group_probe(b, c, small_s=0.1e-3, large_s=1e-3),
    )
    records = [
        record_of(a, links=(link_probe(a, b), link_probe(a, c)), groups=groups),
        record_of(b, links=(link_probe(b, c),)),
    ]
    links = LinkTable(with_probes(cluster(*hosts), records))
    group = group_link([Place(host=each.name, device=each.devices[0]) for each in hosts], links)
    assert group.sums == ((16 << 10, 1e-3), (1 << 20, 9e-3))
