"""What rehearsals of a model say of a layer and of the head, for steps between those that were measured. Pure.

Between two measured points seconds lie on a line; beyond the last they go on along it. A further sequence costs
what one more did in a step of several, or beside a prompt's chunk. Steps with another context differ by what the
cost model says of the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import msgspec

from agent.facts.model import Dtype, ModelSpec, Quantisation
from agent.facts.probe import DeviceProbe, ModelProbe, StepProbe
from agent.planner.step_cost import FILLING_KERNELS, ROWS_AT_ONCE
from agent.planner.step_shape import StepShape

Curve = Sequence[tuple[float, float]]
"""(where, seconds), by where."""
LEAST_SHARE = 0.1
"""Of a measured step, what is left of it at least where a much shorter context takes from it."""


def rehearsal_of(
    probe: DeviceProbe | None, spec: ModelSpec, dtype: Dtype, quantisation: Quantisation, *, parts: float
) -> ModelProbe | None:
    """The rehearsed share nearest to one of so many parts of a layer; None where the model was not rehearsed."""
    if probe is None or not probe.models:
        return None
    known = probe.rehearsals(spec.widths, dtype, quantisation)
    return min(known, key=lambda each: abs(each.parts - parts), default=None)


def rows_at_once(probe: DeviceProbe, dtype: Dtype, quantisation: Quantisation) -> int:
    """Multiples of rows that this device's products of a prompt are filled up to."""
    kernels = {gemm.kernel for gemm in probe.gemms if (gemm.dtype, gemm.quantisation) == (dtype, quantisation)}
    return ROWS_AT_ONCE if kernels & set(FILLING_KERNELS) else 1


def layer_s(
    known: ModelProbe, step: StepShape, modelled_s: Callable[[StepShape], float], *, filled_to: int
) -> float:
    """Seconds of the rehearsed share of a layer; `modelled_s` is the cost model's for that share.

    Rows of a prompt's chunk count as filled up to a multiple of `filled_to`.
    """
    decodes = [(each.sequences, each.seconds) for each in known.steps if not each.is_prefill]
    if not step.is_prefill:
        measured_s, at = on_line(decodes, step.sequences), _decode_context(known)
        reference = StepShape(rows=step.rows, sequences=step.sequences, context=at, sampled=0)
        return _moved(measured_s, modelled_s(step) - modelled_s(reference))
    prompts = [
        (_filled_up(each.rows, filled_to), each.seconds)
        for each in known.steps
        if each.is_prefill and each.sequences == 1
    ]
    chunks = [*decodes[:1], *prompts]
    further = step.sequences - 1
    beside_s = _beside_s(known, chunks, decodes, filled_to)
    measured_s = on_line(chunks, _filled_up(step.rows - further, filled_to)) + further * beside_s
    alone = msgspec.structs.replace(step, sequences=1)
    reference = StepShape(rows=step.rows, sequences=1, context=max(1, step.rows // 2), sampled=0)
    return _moved(measured_s, modelled_s(alone) - modelled_s(reference))


def head_s(known: ModelProbe, rows: int, *, share: float) -> float:
    """Seconds from hidden states to tokens, with `share` of the rehearsed rows of the vocabulary."""
    return share * on_line([(each.rows, each.seconds) for each in known.heads], rows)


def rest_s(rests: Curve, idle_s: float) -> float:
    """What a layer takes longer after so long without work; at most what it took after the longest rest."""
    if not rests or idle_s <= 0:
        return 0.0
    return on_line([(0.0, 0.0), *rests], min(idle_s, rests[-1][0]))


def rests_of(known: ModelProbe) -> tuple[tuple[float, float], ...]:
    """By length, and never shorter after a longer rest."""
    curve: list[tuple[float, float]] = []
    for each in sorted(known.rests, key=lambda rest: rest.idle_s):
        curve.append((each.idle_s, max(each.seconds, curve[-1][1] if curve else 0.0)))
    return tuple(curve)


def on_line(points: Curve, at: float) -> float:
    """Between its neighbours; before the first, its own; behind the last, along the last line."""
    if len(points) == 1 or at <= points[0][0]:
        return points[0][1]
    (low, low_s), (high, high_s) = next(
        ((a, b) for a, b in pairwise(points) if at <= b[0]), (points[-2], points[-1])
    )
    return low_s + (at - low) / (high - low) * (high_s - low_s)


def _filled_up(rows: int, filled_to: int) -> int:
    return -(-rows // filled_to) * filled_to


def _beside_s(known: ModelProbe, chunks: Curve, decodes: Curve, filled_to: int) -> float:
    """Of one more sequence beside a chunk; at least what one more takes in a step of decoding several."""
    several = decodes[1:] if len(decodes) > 2 else decodes  # one alone has a kernel of its own
    (first, first_s), (last, last_s) = several[0], several[-1]
    decoding_s = max(0.0, last_s - first_s) / (last - first) if last > first else 0.0
    for each in known.steps:
        if each.is_prefill and each.sequences > 1:
            beside = each.sequences - 1
            alone_s = on_line(chunks, _filled_up(each.rows - beside, filled_to))
            return max(decoding_s, (each.seconds - alone_s) / beside)
    return decoding_s


def _decode_context(known: ModelProbe) -> int:
    decodes: list[StepProbe] = [each for each in known.steps if not each.is_prefill]
    return decodes[0].context


def _moved(measured_s: float, by_s: float) -> float:
    return max(LEAST_SHARE * measured_s, measured_s + by_s)
