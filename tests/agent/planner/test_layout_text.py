from __future__ import annotations

import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.planner.interval import Interval
from agent.planner.layout_text import layer_bar, memory_bar, predicted_lines, preview_lines, preview_rows
from agent.planner.plan import ShardBytes
from agent.planner.words import (
    bytes_interval_words,
    bytes_words,
    joules_interval_words,
    layers_words,
    list_words,
    rate_words,
    seconds_interval_words,
    seconds_words,
)
from tests.agent.planner.clusters import LLAMA_1B, LLAMA_70B, MIXED_GPUS, THREE_CPUS, drafting, plan_for


@given(num_layers=st.integers(1, 200), width=st.integers(1, 90), data=st.data())
def test_a_layer_bar_is_as_wide_as_asked_and_never_empty(num_layers: int, width: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, num_layers - 1))
    end = data.draw(st.integers(first + 1, num_layers))
    bar = layer_bar((first, end), num_layers, width)
    assert len(bar) == width
    assert "█" in bar


def test_one_column_a_layer_shows_exactly_the_stage() -> None:
    assert layer_bar((2, 5), 8, 8) == "··███···"


@given(parts=st.tuples(*[st.integers(0, 10**12)] * 4), capacity=st.integers(1, 10**12), width=st.integers(1, 40))
def test_a_memory_bar_is_as_wide_as_asked(parts: tuple[int, int, int, int], capacity: int, width: int) -> None:
    weights, kv_cache, activations, headroom = parts
    held = ShardBytes(weights=weights, kv_cache=kv_cache, activations=activations, headroom=headroom)
    assert len(memory_bar(held, capacity, width)) == width


def test_a_memory_bar_shows_weights_cache_rest_and_what_is_free() -> None:
    held = ShardBytes(weights=50, kv_cache=20, activations=5, headroom=5)
    assert memory_bar(held, 100, 10) == "█████▓▓▒··"
    assert memory_bar(held, 40, 10) == "██████████", "over its capacity, it is full"


@pytest.mark.parametrize("width", [70, 80, 120])
def test_a_preview_keeps_within_its_width_and_names_every_rank(width: int) -> None:
    plan = plan_for(LLAMA_70B, MIXED_GPUS)
    lines = preview_lines(plan, width=width)
    table = lines[2 : 2 + 1 + 8]
    assert max(map(len, table)) <= width
    assert sum("big" in line for line in table) == 8
    assert any("◀" in line for line in table)


def test_a_preview_names_the_carrier_of_every_link() -> None:
    plan = plan_for(LLAMA_1B, THREE_CPUS, stages=3)
    assert "links  s0>s1 tls, s1>s2 tls" in preview_lines(plan, width=80)
    assert not any(
        line.startswith("links") for line in preview_lines(plan_for(LLAMA_1B, THREE_CPUS, stages=1), width=80)
    )


def test_a_preview_names_the_draft_model_and_where_it_stands() -> None:
    plan = plan_for(LLAMA_1B, THREE_CPUS, tensor_parallel_sizes=(1, 2), **drafting())
    leader = plan.replicas[0].stages[-1].shards[0]
    where = f"{leader.host}/{leader.device}"
    assert f"draft  llama-tiny, 150 MB of weights on {where}" in preview_lines(plan, width=80)
    (told,) = [line for line in plan.why if line.startswith("draft model")]
    assert where in told
    assert "predicted times are those without guesses" in told


def test_a_preview_measures_against_usable_memory_where_it_is_known() -> None:
    plan = plan_for(LLAMA_1B, THREE_CPUS, stages=3)
    usable = {(h.name, d.id): d.usable_bytes for h in THREE_CPUS.hosts for d in h.devices}
    rows = preview_rows(plan, layer_width=16, usable=usable)
    for row in rows:
        shard = row.place.shard
        assert row.used_fraction == pytest.approx(shard.bytes.total / usable[shard.host, shard.device])
    assert sum(row.is_bottleneck for row in rows) == 1
    joined = [max(cells) for cells in zip(*(row.layer_bar for row in rows), strict=True)]
    assert set(joined) == {"█"}, "every layer is somewhere"
    assert preview_rows(plan, layer_width=16)[0].used_fraction is None


def test_replicas_are_told_apart() -> None:
    lines = preview_lines(plan_for(LLAMA_1B, THREE_CPUS, replicas=2), width=80)
    assert any(line.startswith("r0 0") for line in lines)
    assert any(line.startswith("r1 0") for line in lines)


def test_quantities_in_words() -> None:
    assert [bytes_words(n) for n in (999, 512e6, 24e9, 1.5e12)] == ["999 B", "512 MB", "24.0 GB", "1.5 TB"]
    assert [seconds_words(s) for s in (1.5, 0.0412, 180e-6)] == ["1.50 s", "41.2 ms", "180 us"]
    assert [rate_words(r) for r in (39.71, 2046)] == ["39.7 tok/s", "2046 tok/s"]
    assert [layers_words(r) for r in ((0, 10), (4, 5))] == ["layers 0-9", "layer 4"]
    assert list_words(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
    assert list_words(["a", "b"]) == "a and b"
    seconds = Interval(low=0.048, expected=0.0693, high=0.0996)
    assert seconds_interval_words(seconds) == "69.3 ms (48..100)"
    energy = Interval(low=0.2, expected=0.34, high=0.61)
    assert joules_interval_words(energy) == "340 mJ (200..610)"
    assert joules_interval_words(Interval(low=12.4, expected=12.4, high=12.4)) == "12.4 J"
    room = Interval(low=23.44e9, expected=24e9, high=24.51e9)
    assert bytes_interval_words(room) == "24.0 GB (23.4..24.5)"
    assert bytes_interval_words(Interval(low=-2e9, expected=512e6, high=600e6)) == "512 MB (-2000..600)"


def test_a_preview_says_what_a_token_costs_and_a_plan_of_an_earlier_release_does_not() -> None:
    plan = plan_for(LLAMA_1B, THREE_CPUS)
    told = "\n".join(predicted_lines(plan))
    assert re.search(r"energy +[\d.]+ m?J \([\d.]+\.\.[\d.]+\) per token", told)
    assert re.search(r"fullest device +[\d.]+ GB \([\d.]+\.\.[\d.]+\), least and most", told)
    old = msgspec.structs.replace(plan.predicted, joules_per_token=(), peak_bytes=())
    assert "energy" not in "\n".join(predicted_lines(msgspec.structs.replace(plan, predicted=old)))
