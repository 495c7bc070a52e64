from __future__ import annotations

import math
from itertools import pairwise

import msgspec
import pytest

from agent.facts.cluster import ClusterFacts
from agent.facts.measured import with_probes
from agent.facts.probe import HeadProbe, ModelProbe, RestProbe, StepProbe
from agent.planner.cost import decode_step, estimate_layout, prefill_step, rank_cost
from agent.planner.layout import Layout, StageLayout, cut_shares
from agent.planner.plan import Serving
from agent.planner.rates import WARM_REQUEST_S, LinkTable, turn_s
from agent.planner.rehearsal import layer_s, on_line, rehearsal_of, rest_s, rests_of, rows_at_once
from agent.planner.step_shape import StepShape
from tests.agent.facts.probes import device_probe, record_of
from tests.agent.planner.clusters import LLAMA_1B, cluster, cpu, host, places_of

WHOLE = cut_shares(LLAMA_1B, (LLAMA_1B.num_kv_heads,))[0]


def rehearsed(*, parts: int = 1, level: float = 1.0, rests: bool = True) -> ModelProbe:
    """A token 10 ms a layer, each further one 1 ms; prompts of 96 and 192 rows; others beside a chunk 2 ms each."""
    ms = level * 1e-3 / parts
    return ModelProbe(
        widths=LLAMA_1B.widths,
        dtype="bfloat16",
        quantisation="none",
        parts=parts,
        num_layers=4,
        steps=(
            StepProbe(rows=1, sequences=1, context=256, seconds=10 * ms),
            StepProbe(rows=8, sequences=8, context=256, seconds=17 * ms),
            StepProbe(rows=96, sequences=1, context=96, seconds=20 * ms),
            StepProbe(rows=192, sequences=1, context=192, seconds=30 * ms),
            StepProbe(rows=199, sequences=8, context=256, seconds=44 * ms),
        ),
        heads=(HeadProbe(rows=1, seconds=4 * ms), HeadProbe(rows=8, seconds=11 * ms)),
        rests=(RestProbe(idle_s=0.01, seconds=1e-3), RestProbe(idle_s=0.05, seconds=3e-3)) if rests else (),
        measured_at_s=1000.0,
    )


def facts(*models: ModelProbe) -> ClusterFacts:
    hosts = [host(name, cpu(64)) for name in ("a", "b")]
    probe = msgspec.structs.replace(device_probe(), models=models)
    return with_probes(cluster(*hosts), [record_of(each, probe) for each in hosts])


def flat(_point: StepShape) -> float:
    """A cost model to which all steps are equal."""
    return 1.0


def test_a_chunk_that_was_not_full_counts_for_what_kernels_filled_it_up_to() -> None:
    uneven = rehearsed()
    steps = tuple(msgspec.structs.replace(each, rows=95) if each.rows == 96 else each for each in uneven.steps)
    uneven = msgspec.structs.replace(uneven, steps=steps)
    for rows, sequences in ((81, 1), (96, 1), (150, 1), (99, 4)):
        step = StepShape(rows=rows, sequences=sequences, context=rows, sampled=0)
        assert layer_s(uneven, step, flat, filled_to=16) == layer_s(rehearsed(), step, flat, filled_to=16)


def test_where_kernels_fill_nothing_up_each_row_counts() -> None:
    for rows, expected_ms in ((96, 20), (48, 10 + 47 / 95 * 10), (144, 25)):
        step = StepShape(rows=rows, sequences=1, context=rows, sampled=0)
        assert layer_s(rehearsed(), step, flat, filled_to=1) == pytest.approx(expected_ms * 1e-3)
    plain = device_probe()
    packed = msgspec.structs.replace(
        plain,
        gemms=tuple(
            msgspec.structs.replace(each, kernel="packed") if each.dtype == "bfloat16" else each
            for each in plain.gemms
        ),
    )
    assert rows_at_once(plain, "bfloat16", "none") == 1
    assert rows_at_once(packed, "bfloat16", "none") == 16
    assert rows_at_once(packed, "float32", "none") == 1


def test_between_two_points_there_is_a_line_and_behind_the_last_it_goes_on() -> None:
    points = [(1.0, 10.0), (8.0, 17.0), (18.0, 37.0)]
    assert [on_line(points, at) for at in (0.5, 1, 2, 8, 13, 28)] == [10.0, 10.0, 11.0, 17.0, 27.0, 57.0]


@pytest.mark.parametrize(
    ("rows", "sequences", "expected_ms"),
    [
        (1, 1, 10),
        (4, 4, 13),
        (15, 15, 24),
        (96, 1, 20),
        (81, 1, 20),
        (144, 1, 25),
        (288, 1, 40),
        (192 + 7, 8, 44),
        (180 + 7, 8, 44),
        (96 + 3, 4, 20 + 3 * 2),
    ],
)
def test_steps_between_those_that_were_measured(rows: int, sequences: int, expected_ms: float) -> None:
    point = StepShape(rows=rows, sequences=sequences, context=256, sampled=0)
    assert layer_s(rehearsed(), point, flat, filled_to=16) == pytest.approx(expected_ms * 1e-3)


def test_a_few_rows_cost_what_they_were_measured_to_and_one_more_what_it_adds_to_several() -> None:
    """One row alone has a kernel of its own: what a second one adds to it says nothing of an eighth."""
    known = rehearsed()
    few = tuple(StepProbe(rows=rows, sequences=rows, context=256, seconds=15e-3) for rows in (2, 4))
    mixed = msgspec.structs.replace(known.steps[-1], seconds=known.steps[-2].seconds)
    known = msgspec.structs.replace(known, steps=(known.steps[0], *few, *known.steps[1:-1], mixed))
    for rows, sequences, expected_ms in ((1, 1, 10), (2, 2, 15), (4, 4, 15), (6, 6, 16), (96 + 3, 4, 20 + 3 / 3)):
        step = StepShape(rows=rows, sequences=sequences, context=256, sampled=0)
        assert layer_s(known, step, flat, filled_to=16) == pytest.approx(expected_ms * 1e-3)


def test_another_context_differs_by_what_the_cost_model_says() -> None:
    def per_position(point: StepShape) -> float:
        return 1e-6 * point.context * point.sequences

    longer = StepShape(rows=2, sequences=2, context=1256, sampled=0)
    shorter = StepShape(rows=8, sequences=8, context=1, sampled=0)
    assert layer_s(rehearsed(), longer, per_position, filled_to=16) == pytest.approx(11e-3 + 2 * 1000 * 1e-6)
    assert layer_s(rehearsed(), shorter, lambda p: p.context, filled_to=16) > 0


def test_the_nearest_share_stands_in_for_another() -> None:
    probe = msgspec.structs.replace(device_probe(), models=(rehearsed(parts=2), rehearsed()))
    for parts, nearest in ((1, 1), (1.3, 1), (2, 2), (8, 2)):
        found = rehearsal_of(probe, LLAMA_1B, "bfloat16", "none", parts=parts)
        assert found is not None
        assert found.parts == nearest
    assert rehearsal_of(probe, LLAMA_1B, "float32", "none", parts=1) is None
    other = msgspec.structs.replace(LLAMA_1B, hidden_size=64)
    assert rehearsal_of(probe, other, "bfloat16", "none", parts=1) is None


def test_a_rest_takes_what_was_measured_and_never_less_after_a_longer_one() -> None:
    curve = rests_of(rehearsed())
    assert [rest_s(curve, idle_s) for idle_s in (0, 0.005, 0.01, 0.03, 0.05, math.inf)] == pytest.approx(
        [0, 0.5e-3, 1e-3, 2e-3, 3e-3, 3e-3]
    )
    noisy = msgspec.structs.replace(
        rehearsed(), rests=(RestProbe(idle_s=0.01, seconds=2e-3), RestProbe(idle_s=0.05, seconds=1e-3))
    )
    assert rests_of(noisy) == ((0.01, 2e-3), (0.05, 2e-3))
    assert rest_s((), 1.0) == 0


def test_a_rank_takes_what_its_device_took_in_rehearsal() -> None:
    device = facts(rehearsed()).hosts[0].devices[0]
    one = rank_cost(LLAMA_1B, device, WHOLE, step=decode_step(1, 256), dtype="bfloat16")
    assert one.layer_s == pytest.approx(10e-3)
    assert one.head_s == pytest.approx(4e-3)
    assert one.device == "rehearsed cpu"
    chunk = StepShape(rows=192, sequences=1, context=96, sampled=0)
    assert rank_cost(LLAMA_1B, device, WHOLE, step=chunk, dtype="bfloat16").layer_s == pytest.approx(30e-3)


def test_a_smaller_share_takes_as_much_less_as_the_cost_model_says() -> None:
    device = facts(rehearsed(rests=False)).hosts[0].devices[0]
    plain = facts().hosts[0].devices[0]
    half, *_ = cut_shares(LLAMA_1B, (LLAMA_1B.num_kv_heads // 2,) * 2)
    step = decode_step(1, 256)
    modelled = [rank_cost(LLAMA_1B, plain, share, step=step, dtype="bfloat16").layer_s for share in (WHOLE, half)]
    ours = [rank_cost(LLAMA_1B, device, share, step=step, dtype="bfloat16").layer_s for share in (WHOLE, half)]
    assert ours[1] / ours[0] == pytest.approx(modelled[1] / modelled[0])


def test_stages_rest_while_others_compute_and_a_request_finds_all_of_them_at_rest() -> None:
    layers, turn = LLAMA_1B.num_layers, turn_s(1)

    def estimate(known: ClusterFacts, *cuts: int) -> tuple[float, float]:
        stages = tuple(
            StageLayout(layers=(begin, end), places=(place,), units=(LLAMA_1B.num_kv_heads,))
            for (begin, end), place in zip(pairwise((0, *cuts, layers)), places_of(known), strict=False)
        )
        serving = Serving(context=512, batch=1)
        assert prefill_step(serving, 192).rows == 192
        found = estimate_layout(
            LLAMA_1B,
            Layout(stages=stages),
            serving,
            prompt_tokens=192,
            answer_tokens=128,
            links=LinkTable(known),
        )
        return found.time_per_token_s, found.ttft_s

    token_s, first_s = estimate(facts(rehearsed()))
    assert token_s == pytest.approx(layers * (10e-3 + turn / 0.01 * 1e-3) + 4e-3 + turn, rel=1e-3)
    assert first_s == pytest.approx(layers * (30e-3 + 3e-3) + 4e-3 + turn + WARM_REQUEST_S, rel=1e-3)
    # each of two stages waits more than 50 ms for the other
    rested_s, _ = estimate(facts(rehearsed()), layers // 2)
    unrested_s, _ = estimate(facts(rehearsed(rests=False)), layers // 2)
    assert rested_s - unrested_s == pytest.approx(layers * 3e-3)
