from __future__ import annotations

import msgspec
import pytest

from agent.facts.cluster import LinkFacts
from agent.facts.measured import with_probes
from agent.facts.probe import LayerProbe
from agent.planner.cost import all_reduce_s, decode_step, hop_s, layer_parameters, own_message_s, stage_cost
from agent.planner.layout import Place, StageLayout, cut_shares
from agent.planner.rates import (
    CARRIERS,
    DISTINCT_HOSTS,
    EFFICIENCY,
    GATEWAY_STEP_S,
    LinkTable,
    probed_overheads,
    rates_of,
)
from agent.planner.staleness import facts_digest, what_moved
from tests.agent.facts.probes import KINDS, device_probe, group_probe, link_probe, record_of
from tests.agent.planner.clusters import LLAMA_1B, THREE_CPUS, cluster, cpu, gpu, host, plan_for

HOSTS = THREE_CPUS.hosts
MEASURED = with_probes(
    THREE_CPUS,
    [
        record_of(
            each,
            device_probe(read_bytes_per_s=8e9, skinny_flops_per_s=50e9, large_flops_per_s=90e9),
            links=tuple(link_probe(each, other) for other in HOSTS if other is not each),
            groups=tuple(
                group_probe(each, other, small_s=200e-6, large_s=2e-3) for other in HOSTS if other.name > each.name
            ),
        )
        for each in HOSTS
    ],
)


def test_probed_rates_are_taken_as_they_are_and_by_what_serves() -> None:
    device = msgspec.structs.replace(cpu(8), probe=device_probe(read_bytes_per_s=8e9, large_flops_per_s=90e9))
    for dtype, quantisation, _ in KINDS:
        rates = rates_of(device, dtype, quantisation)
        assert rates.is_measured
        assert rates.read_bytes_per_s == pytest.approx(8e9)
        assert rates.decode_flops_per_s == pytest.approx(100e9)
        assert rates.prefill_flops_per_s == pytest.approx(90e9)


def test_what_thin_layers_take_beyond_their_products_is_launching_them() -> None:
    probe = device_probe(read_bytes_per_s=8e9)
    one_row_s = 2 / 8e9

    def layer(sequences: int, own_s: float) -> LayerProbe:
        return LayerProbe(
            dtype="bfloat16",
            quantisation="none",
            sequences=sequences,
            context=128,
            seconds=1_000_000 * one_row_s + own_s,
            weight_elements=1_000_000,
            cache_bytes=65536,
        )

    probed = msgspec.structs.replace(probe, layers=(layer(1, 300e-6), layer(8, 1000e-6)))
    device = msgspec.structs.replace(cpu(8), probe=probed)
    rates = rates_of(device, "bfloat16")
    assert rates.layer_overhead_s == pytest.approx(300e-6)
    assert rates.sequence_overhead_s == pytest.approx(100e-6)
    assert rates_of(device, "float32").layer_overhead_s == EFFICIENCY["cpu"].layer_overhead_s, "not probed"
    quick = msgspec.structs.replace(probe, layers=(layer(1, -1e-3), layer(8, -2e-3)))
    assert probed_overheads(quick, "bfloat16", "none") == (0.0, 0.0), "never less than nothing"


def test_a_gateway_takes_longer_on_a_slower_host() -> None:
    def slow(own_s: float) -> LayerProbe:
        return LayerProbe(
            dtype="bfloat16",
            quantisation="none",
            sequences=1 if own_s < 1e-3 else 8,
            context=128,
            seconds=1_000_000 * 2 / 8e9 + own_s,
            weight_elements=1_000_000,
            cache_bytes=65536,
        )

    table_s = EFFICIENCY["cpu"].layer_overhead_s
    probe = msgspec.structs.replace(device_probe(read_bytes_per_s=8e9), layers=(slow(2.5 * table_s), slow(5e-3)))
    a, b = host("a", cpu(8)), host("b", cpu(8))
    links = LinkTable(with_probes(cluster(a, b), [record_of(a, probe)]))
    assert links.gateway_longer_s("a") == pytest.approx(1.5 * GATEWAY_STEP_S)
    assert links.gateway_longer_s("b") == links.gateway_longer_s("nowhere") == 0.0
    assert links.gateway_longer_s("") == 0.0


def test_a_step_of_probed_products_takes_what_they_took() -> None:
    device = msgspec.structs.replace(cpu(8), probe=device_probe(read_bytes_per_s=8e9, skinny_flops_per_s=60e9))
    places, links = (Place(host="a", device=device),), LinkTable(cluster())
    elements = layer_parameters(LLAMA_1B, cut_shares(LLAMA_1B, (8,))[0], num_experts=0)
    rates = rates_of(device, "bfloat16")
    for batch in (1, 8, 64):
        step = decode_step(batch, 1)
        cost = stage_cost(LLAMA_1B, places, (8,), step=step, dtype="bfloat16", links=links)
        assert cost.layer_s == pytest.approx(elements * rates.product_s(batch) + rates.layer_overhead_s, rel=0.02)
        assert cost.limit == ("compute" if batch == 64 else "memory bandwidth")


def test_a_kind_that_was_not_probed_is_taken_from_the_table() -> None:
    device = msgspec.structs.replace(cpu(8), probe=device_probe())
    assert rates_of(device, "bfloat16", "int4") == rates_of(cpu(8), "bfloat16", "int4")
    assert not rates_of(device, "float16").is_measured


def test_a_link_measured_with_its_carrier_does_not_pay_for_it_twice() -> None:
    places = [Place(host=each.name, device=each.devices[0]) for each in HOSTS[:2]]
    sender, receiver = (
        StageLayout(layers=(i, i + 1), places=(place,), units=(1,)) for i, place in enumerate(places)
    )
    measured, tabled = LinkTable(MEASURED), LinkTable(THREE_CPUS)
    assert hop_s(sender, receiver, 10_000, measured) == pytest.approx(50e-6 + 10_000 / 1e9)
    own = CARRIERS["tls"]
    assert hop_s(sender, receiver, 10_000, tabled) == pytest.approx(
        DISTINCT_HOSTS[0] + 10_000 / DISTINCT_HOSTS[1] + own.message_s + 10_000 * own.seconds_per_byte
    )
    wire = LinkFacts(source="a", target="b", latency_s=1e-3, bytes_per_s=1e9, is_measured=True)
    assert own_message_s(wire, "tls", 8) > 0


def test_measured_sums_go_before_the_carriers_own_figures() -> None:
    link = LinkTable(MEASURED).between(HOSTS[0].name, HOSTS[1].name, "cpu")
    assert all_reduce_s(link, 16 << 10, 2, carrier="tls") == pytest.approx(200e-6)
    assert all_reduce_s(link, 1 << 20, 2, carrier="tls") == pytest.approx(2e-3)
    by_parts = all_reduce_s(link, 1 << 20, 4, carrier="tls")
    share = ((3 << 18) - (16 << 10)) / ((1 << 20) - (16 << 10))
    assert by_parts == pytest.approx(2 * (200e-6 + share * 1800e-6)), "two hops of three quarters"
    assert all_reduce_s(link, 8, 2, carrier="unix") >= CARRIERS["unix"].all_reduce_s, "of another carrier"


def test_the_fact_of_the_carrier_that_serves_is_chosen() -> None:
    by_tls = LinkFacts(source="a", target="b", latency_s=9e-5, bytes_per_s=1e9, is_measured=True, carrier="tls")
    by_tcp = msgspec.structs.replace(by_tls, latency_s=5e-5, carrier="tcp")
    by_nccl = msgspec.structs.replace(by_tls, latency_s=2e-5, carrier="nccl")
    facts = cluster(links=(by_tls, by_tcp, by_nccl))
    assert LinkTable(facts).between("a", "b", "cuda") == by_tls
    assert LinkTable(facts, is_network_trusted=True).between("a", "b", "cpu") == by_tcp
    assert LinkTable(facts, is_network_trusted=True).between("a", "b", "cuda") == by_nccl
    own = msgspec.structs.replace(by_nccl, target="a")
    assert LinkTable(cluster(links=(own,))).between("a", "a", "cuda") == own
    assert not LinkTable(cluster(links=(own,))).between("a", "a", "cpu").is_measured


def test_a_plan_is_made_with_what_was_measured_and_says_so() -> None:
    before, after = (plan_for(LLAMA_1B, facts, stages=3) for facts in (THREE_CPUS, MEASURED))
    assert before.predicted.time_per_token_s != after.predicted.time_per_token_s
    assert any(line.endswith("odctl probe measures them") for line in before.why)
    assert "devices measured 1970-01-01 00:16 UTC" in after.why
    assert "links measured 1970-01-01 00:16 UTC" in after.why


def test_a_slower_probe_makes_a_slower_prediction() -> None:
    slow = with_probes(THREE_CPUS, [record_of(each, device_probe(read_bytes_per_s=2e9)) for each in HOSTS])
    quick = with_probes(THREE_CPUS, [record_of(each, device_probe(read_bytes_per_s=20e9)) for each in HOSTS])
    times = [plan_for(LLAMA_1B, facts, stages=3).predicted.time_per_token_s for facts in (slow, quick)]
    assert times[0] > 5 * times[1]


def test_the_digest_covers_measurements_and_measuring_again_makes_no_plan_stale() -> None:
    names = tuple(each.name for each in HOSTS)
    again = with_probes(THREE_CPUS, [record_of(each, device_probe(measured_at_s=2000.0)) for each in HOSTS])
    digests = {facts_digest(facts, names) for facts in (THREE_CPUS, MEASURED, again)}
    assert len(digests) == 3
    assert "~measured" not in facts_digest(THREE_CPUS, names)
    plan = plan_for(LLAMA_1B, MEASURED, stages=3)
    assert "~measured:" in plan.facts_digest
    assert what_moved(plan, again) == ()
    assert what_moved(plan, THREE_CPUS) == ()


def test_a_gpu_without_a_probe_keeps_its_data_sheet() -> None:
    facts = cluster(host("g", gpu(0, "L4", 24)))
    assert with_probes(facts, []) == facts
