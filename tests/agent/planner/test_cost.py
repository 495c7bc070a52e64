from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.facts.cluster import LinkFacts
from agent.planner.carriers import CarrierKind, End, carrier_of
from agent.planner.cost import (
    EXPERT_OVERHEAD,
    PipelineTimes,
    StageCost,
    StageCosts,
    all_reduce_s,
    attended_positions,
    bubble,
    concurrent_sequences,
    covered_experts,
    cycle_s,
    decode_step,
    estimate_layout,
    layer_flops,
    layer_overheads,
    layer_parameters,
    layer_read_bytes,
    pipeline_times,
    prefill_step,
    saturated_round,
    stage_cost,
    time_to_first_token_s,
    transfer_s,
)
from agent.planner.layout import Layout, Place, StageLayout, cut_shares
from agent.planner.plan import Serving
from agent.planner.rates import CARRIERS, EFFICIENCY, LinkTable, rates_of
from agent.planner.step_shape import StepShape
from tests.agent.planner.clusters import (
    LLAMA_1B,
    LLAMA_70B,
    MIXED_MOE,
    MIXTRAL,
    THREE_CPUS,
    cluster,
    cpu,
    gpu,
    host,
    link,
    places_of,
)

WHOLE_70B = cut_shares(LLAMA_70B, (8,))[0]
NO_LINKS = LinkTable(cluster())


def test_a_decode_step_reads_the_weights_once_and_every_sequences_cache() -> None:
    one = layer_read_bytes(LLAMA_70B, WHOLE_70B, decode_step(1, 1000), "bfloat16")
    eight = layer_read_bytes(LLAMA_70B, WHOLE_70B, decode_step(8, 1000), "bfloat16")
    assert eight - one == 7 * 1000 * 327_680 // 80
    assert one > 1.7e9


def test_fewer_bits_are_read_sooner() -> None:
    step = decode_step(1, 1000)
    weights = layer_parameters(LLAMA_70B, WHOLE_70B, num_experts=0)
    plain, int8, int4 = (
        layer_read_bytes(LLAMA_70B, WHOLE_70B, step, "bfloat16", quantisation)
        for quantisation in ("none", "int8", "int4")
    )
    assert plain - int8 == weights
    assert plain - int4 == weights * (2 - 0.625)


def test_a_sliding_window_caps_what_is_read_and_computed() -> None:
    windowed = msgspec.structs.replace(LLAMA_70B, sliding_window=100)
    step, short = decode_step(1, 4000), decode_step(1, 100)
    assert layer_read_bytes(windowed, WHOLE_70B, step, "bfloat16") == layer_read_bytes(
        LLAMA_70B, WHOLE_70B, short, "bfloat16"
    )
    assert layer_flops(windowed, WHOLE_70B, step) == layer_flops(LLAMA_70B, WHOLE_70B, short)


def test_layers_without_a_window_read_everything() -> None:
    mixed = msgspec.structs.replace(LLAMA_70B, sliding_window=100, full_layers=tuple(range(0, 80, 2)))
    assert attended_positions(mixed, 4000) == (100 + 4000) / 2
    assert attended_positions(mixed, 50) == 50
    assert attended_positions(LLAMA_70B, 4000) == 4000


def test_one_token_reads_and_computes_with_its_own_experts_alone() -> None:
    share = cut_shares(MIXTRAL, (8,))[0]
    expert, router = 3 * 4096 * 14336, 8 * 4096
    attention = 4096 * (2 * 32 * 128 + 2 * 8 * 128)
    step = decode_step(1, 1)
    assert layer_read_bytes(MIXTRAL, share, step, "bfloat16") == pytest.approx(
        2 * (attention + router + 2 * expert + 2 * 8 * 128), rel=1e-12
    )
    assert layer_flops(MIXTRAL, share, step) == 2 * (attention + router + 2 * expert) + 4 * 32 * 128


def test_larger_batches_cover_more_experts_up_to_all() -> None:
    covered = [covered_experts(MIXTRAL, rows) for rows in (1, 2, 4, 64)]
    assert covered[:2] == [2.0, 2 + 2 * (1 - 2 / 8)]
    assert covered == sorted(covered)
    assert covered[-1] == pytest.approx(8, rel=1e-6)
    assert covered_experts(LLAMA_1B, 4) == 0


def test_every_expert_that_is_touched_is_launched() -> None:
    assert layer_overheads(LLAMA_1B, decode_step(8, 64)) == 1
    assert layer_overheads(MIXTRAL, decode_step(1, 64)) == 1 + EXPERT_OVERHEAD * 2
    assert layer_overheads(MIXED_MOE, decode_step(1, 64)) == pytest.approx(1 + EXPERT_OVERHEAD * 2 * 4 / 6)


def test_dense_layers_among_those_with_experts_count_as_what_they_are() -> None:
    whole, half = cut_shares(MIXED_MOE, (4,))[0], cut_shares(MIXED_MOE, (2, 2))[0]
    attention = 64 * (2 * 8 * 8 + 2 * 4 * 8)
    sparse, dense = 16 * 64 + 2 * 3 * 64 * 40, 3 * 64 * 160
    assert layer_parameters(MIXED_MOE, whole, num_experts=2) == pytest.approx(
        attention + 2 / 3 * sparse + 1 / 3 * dense
    )
    router = 2 / 3 * 16 * 64
    assert layer_parameters(MIXED_MOE, half, num_experts=2) - router == pytest.approx(
        (layer_parameters(MIXED_MOE, whole, num_experts=2) - router) / 2
    )


def test_decoding_is_bound_by_memory_and_a_long_chunk_by_compute() -> None:
    (place,) = places_of(cluster(host("a", gpu(0, "A100", 80))))
    decode, prefill = (
        stage_cost(LLAMA_70B, [place], [8], step=step, dtype="bfloat16", links=NO_LINKS)
        for step in (decode_step(1, 512), prefill_step(Serving(context=4096, prefill_chunk=2048), 2048))
    )
    assert decode.limit == "memory bandwidth"
    assert prefill.limit == "compute"


def test_a_measured_rate_counts_and_a_missing_one_comes_from_the_table() -> None:
    measured = rates_of(cpu(8, read_gb_per_s=10), "bfloat16")
    assert measured.is_measured
    assert measured.read_bytes_per_s == pytest.approx(10e9 * EFFICIENCY["cpu"].memory)
    assert not rates_of(cpu(8), "bfloat16").is_measured
    h100, l4, l40s = (rates_of(gpu(0, name, 80), "bfloat16") for name in ("H100 80GB HBM3", "L4", "NVIDIA L40S"))
    assert h100.read_bytes_per_s > l40s.read_bytes_per_s > l4.read_bytes_per_s
    assert rates_of(gpu(0, "never heard of", 80), "bfloat16").read_bytes_per_s > 0


def test_a_message_takes_latency_plus_bytes_over_rate() -> None:
    assert transfer_s(link("a", "b", latency_s=1e-3, bytes_per_s=1e6), 5000) == pytest.approx(6e-3)


def test_an_all_reduce_takes_the_faster_of_ring_and_tree() -> None:
    quick = LinkFacts(source="a", target="b", latency_s=1e-3, bytes_per_s=1e9)
    small = all_reduce_s(quick, 8, 8, carrier="nccl")
    assert small == pytest.approx(2 * 3 * 1e-3 + CARRIERS["nccl"].all_reduce_s, rel=1e-3), (
        "few bytes: the tree's 2 log2 p latencies"
    )
    large = all_reduce_s(quick, 10**9, 8, carrier="nccl")
    assert large == pytest.approx(2 * 7 * 1e-3 + 2 * 7 / 8, rel=1e-4), "many bytes: the ring's 2 (p-1)/p of them"
    assert all_reduce_s(quick, 10**9, 1, carrier="tls") == 0.0


def test_sockets_sum_in_one_hop_while_the_sums_are_small() -> None:
    quick = LinkFacts(source="a", target="b", latency_s=1e-3, bytes_per_s=1e9)
    own = CARRIERS["tls"]
    assert all_reduce_s(quick, 8, 4, carrier="tls") == pytest.approx(1e-3 + own.all_reduce_s, rel=1e-3)
    two = all_reduce_s(quick, 10**9, 2, carrier="tls")
    assert two == pytest.approx(1e-3 + own.all_reduce_s + 1 + 1e9 * own.seconds_per_byte), "an exchange"
    four = all_reduce_s(quick, 10**9, 4, carrier="tls")
    assert four == pytest.approx(2e-3 + own.all_reduce_s + 1.5 * (1 + 1e9 * own.seconds_per_byte)), "by parts"


@pytest.mark.parametrize(
    ("ends", "is_network_trusted", "carrier"),
    [
        ((("a", "cpu"), ("b", "cpu")), False, "tls"),
        ((("a", "cpu"), ("b", "cpu")), True, "tcp"),
        ((("a", "cuda:0"), ("b", "cpu")), True, "tcp"),
        ((("a", "cuda:0"), ("b", "cuda:0")), False, "tls"),
        ((("a", "cuda:0"), ("b", "cuda:0")), True, "nccl"),
        ((("a", "cuda:0"), ("a", "cuda:1")), False, "nccl"),
        ((("a", "cuda:0"), ("a", "cuda:0")), True, "unix"),
        ((("a", "cpu"), ("a", "cuda:0")), True, "unix"),
        ((("a", "cuda:0"), ("a", "cuda:1"), ("b", "cuda:0")), False, "tls"),
    ],
)
def test_the_carrier_follows_from_where_the_ends_are(
    ends: tuple[End, ...], is_network_trusted: bool, carrier: CarrierKind
) -> None:
    assert carrier_of(ends, is_network_trusted=is_network_trusted) == carrier


def test_a_link_of_the_way_back_stands_in_for_one_that_was_not_measured() -> None:
    known = link("a", "b", latency_s=1.0, bytes_per_s=1.0)
    table = LinkTable(cluster(links=(known,)))
    assert table.between("b", "a", "cpu") is known
    assert not table.between("a", "c", "cpu").is_measured
    assert table.between("a", "a", "cuda").bytes_per_s > table.between("a", "a", "cpu").bytes_per_s


def test_published_figures_of_two_gpus_are_met() -> None:
    """70B fp16 on two 2 TB/s GPUs at C = 4k (FACTS 3.3): about 106 ms a token as a pipeline, 58 ms over NVLink."""
    nvlink = link("a", "a", latency_s=17e-6, bytes_per_s=300e9)
    facts = cluster(host("a", gpu(0, "A100", 80), gpu(1, "A100", 80)), links=(nvlink,))
    first, second = places_of(facts)
    pipeline = Layout(
        stages=(
            StageLayout(layers=(0, 40), places=(first,), units=(8,)),
            StageLayout(layers=(40, 80), places=(second,), units=(8,)),
        )
    )
    tensor = Layout(stages=(StageLayout(layers=(0, 80), places=(first, second), units=(4, 4)),))
    serving = Serving(context=8192, batch=1, dtype="float16")
    pipelined, sharded = (
        estimate_layout(LLAMA_70B, layout, serving, prompt_tokens=4096, links=LinkTable(facts))
        for layout in (pipeline, tensor)
    )
    assert pipelined.time_per_token_s == pytest.approx(0.106, rel=0.05)
    # Each rank launches kernels for every layer: that overhead is not halved here, as it is there.
    assert sharded.time_per_token_s == pytest.approx(0.058, rel=0.1)


def test_chunks_of_one_prompt_follow_each_other_through_the_stages() -> None:
    times = PipelineTimes(stages=(0.3, 0.1), hops=(0.05,), sends=(0.01, 0.0))
    last = PipelineTimes(stages=(0.3, 0.2), hops=(0.05,), sends=(0.01, 0.0))
    assert time_to_first_token_s(times, last, num_chunks=3) == pytest.approx(2 * 0.31 + 0.55)
    alone = PipelineTimes(stages=(0.3,), hops=(), sends=(0.0,))
    assert time_to_first_token_s(alone, alone, num_chunks=4) == pytest.approx(1.2)


@pytest.mark.parametrize(("stages", "micro_batches"), [(2, 2), (3, 2), (4, 8)])
def test_the_bubble_of_equal_stages_short_of_micro_batches(stages: int, micro_batches: int) -> None:
    times = PipelineTimes(stages=(0.1,) * stages, hops=(0.0,) * (stages - 1), sends=(0.0,) * stages)
    assert bubble(times, micro_batches) == pytest.approx(max(0.0, 1 - micro_batches / stages))
    waiting = PipelineTimes(stages=(0.1, 0.1), hops=(0.2,), sends=(0.0, 0.0))
    assert bubble(waiting, 2) == pytest.approx(0.5)


def constant_times(step: StepShape, micro_batches: int = 1) -> PipelineTimes:
    """A token of any sequence a second, and a prompt's row a hundredth of that."""
    seconds = 1.0 + 0.01 * (step.rows - step.sequences)
    cost = StageCost(layer_s=seconds, first_s=0, last_s=0, layer_reads_s=seconds, layer_flops_s=0, layer_reduce_s=0)
    whole = StageLayout(layers=(0, 1), places=places_of(THREE_CPUS)[:1], units=(8,))
    return PipelineTimes(stages=(seconds,), hops=(), sends=(0.0,), layout=Layout(stages=(whole,)), costs=(cost,))


def test_a_saturated_round_gives_tokens_beside_the_chunks_of_others() -> None:
    serving = Serving(context=512, batch=4, prefill_chunk=100)
    work = saturated_round(1, serving, constant_times, prompt_tokens=200, answer_tokens=21)
    assert (work.sequences, work.tokens) == (4, 84)
    # 8 chunks of 100 rows, with 3 other sequences' tokens each; 20 - 6 tokens more of each sequence
    assert work.seconds == pytest.approx(8 * (1 + 0.01 * 99) + 14 * 1.0)
    assert sum(work.parts.values()) == pytest.approx(work.seconds)
    alone = saturated_round(1, serving, constant_times, prompt_tokens=200, answer_tokens=0)
    assert (alone.tokens, alone.seconds) == (4, 1.0)


def test_as_many_sequences_run_as_the_kv_cache_holds() -> None:
    serving = Serving(context=512, batch=8, kv_cache_tokens=512)
    assert concurrent_sequences(serving, 128, 64) == 2
    assert concurrent_sequences(serving, 480, 100) == 1
    assert concurrent_sequences(msgspec.structs.replace(serving, kv_cache_tokens=0), 128, 64) == 8


@given(
    batch=st.integers(1, 32), prompt=st.integers(1, 1500), answer=st.integers(1, 500), chunk=st.integers(16, 512)
)
def test_prompts_only_lower_what_decoding_alone_reaches(batch: int, prompt: int, answer: int, chunk: int) -> None:
    serving = Serving(context=2048, batch=batch, prefill_chunk=chunk)
    work = saturated_round(1, serving, constant_times, prompt_tokens=prompt, answer_tokens=answer)
    assert 0 < work.tokens / work.seconds <= batch * (1 + 1e-9)


def test_measured_products_are_read_between_their_rows() -> None:
    rates = msgspec.structs.replace(rates_of(cpu(8), "bfloat16"), products=((1, 1.0), (8, 1.7), (64, 5.9)))
    assert [rates.product_s(rows) for rows in (0.5, 1, 8, 36, 64, 128)] == pytest.approx(
        [1, 1, 1.7, 3.8, 5.9, 11.8]
    )


def test_a_cycle_is_bound_by_the_round_trip_or_by_the_slowest_stage() -> None:
    even = PipelineTimes(stages=(0.1, 0.1), hops=(0.3,), sends=(0.0, 0.0))
    assert cycle_s(even, 2) == pytest.approx(0.5), "two micro-batches wait for the link"
    uneven = PipelineTimes(stages=(0.3, 0.1), hops=(0.01,), sends=(0.01, 0.0))
    assert cycle_s(uneven, 2) == pytest.approx(0.62), "the first stage serves both, one by one"


def test_a_group_is_as_slow_as_its_slowest_rank() -> None:
    slow, fast = (Place(host="a", device=device) for device in (cpu(8, read_gb_per_s=5), cpu(8, read_gb_per_s=15)))
    costs = {
        units: stage_cost(LLAMA_1B, [fast, slow], units, step=decode_step(1, 64), dtype="bfloat16", links=NO_LINKS)
        for units in ((4, 4), (6, 2), (7, 1))
    }
    assert costs[6, 2].layer_s < costs[4, 4].layer_s
    assert costs[6, 2].layer_s < costs[7, 1].layer_s
    alone = stage_cost(LLAMA_1B, [slow], [8], step=decode_step(1, 64), dtype="bfloat16", links=NO_LINKS)
    assert costs[6, 2].layer_reads_s == pytest.approx(alone.layer_reads_s / 4)


def test_a_pipeline_is_no_faster_for_one_stream_than_its_device_alone() -> None:
    places = places_of(THREE_CPUS)
    alone = Layout(stages=(StageLayout(layers=(0, 16), places=places[:1], units=(8,)),))
    split = Layout(
        stages=tuple(
            StageLayout(layers=layers, places=(place,), units=(8,))
            for layers, place in zip(((0, 5), (5, 11), (11, 16)), places, strict=True)
        )
    )
    single, piped = (
        estimate_layout(LLAMA_1B, layout, Serving(), prompt_tokens=256, links=LinkTable(THREE_CPUS))
        for layout in (alone, split)
    )
    assert piped.time_per_token_s == pytest.approx(single.time_per_token_s + piped.hops_s)
    assert piped.micro_batches == 2, "the scheduler makes no smaller ones than of four sequences"


def test_a_remembered_hop_takes_what_another_s_did_and_names_its_own_hosts() -> None:
    a, b, c = places_of(THREE_CPUS)
    step = decode_step(1, 64)
    known = StageCosts(LLAMA_1B, NO_LINKS, dtype="bfloat16")

    def chain(*places: Place) -> Layout:
        stages = (((0, 8), places[0]), ((8, 16), places[1]))
        return Layout(
            stages=tuple(StageLayout(layers=layers, places=(place,), units=(8,)) for layers, place in stages)
        )

    there, further = (
        pipeline_times(LLAMA_1B, chain(*pair), step=step, dtype="bfloat16", links=NO_LINKS, known=known)
        for pair in ((a, b), (b, c))
    )
    alone = pipeline_times(LLAMA_1B, chain(b, c), step=step, dtype="bfloat16", links=NO_LINKS)
    assert further.hop_costs[0] is there.hop_costs[0]
    assert further.parts == alone.parts
    assert {part for part in further.hop_parts(0) if "messages" in part} == {"tls messages @ b+c"}
    assert {part for part in there.hop_parts(0) if "messages" in part} == {"tls messages @ a+b"}
    assert sum(further.hop_parts(0).values()) == pytest.approx(further.hops[0])
