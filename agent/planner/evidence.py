"""Measured runs of a cluster to the constants of its cost model: what a run should have taken, against what it did.

Pure. Predictions are made anew from the facts as they are, so that a device that was probed since is not corrected
for what was wrong before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from agent.errors import FleetError
from agent.facts.cluster import ClusterFacts
from agent.facts.model import ModelSpec
from agent.facts.run import MeasuredRun
from agent.planner.calibration import (
    AT,
    FORMERLY,
    LINK,
    PRIOR,
    Calibration,
    MeasuredTime,
    Parts,
    corrections_of,
    fit_calibration,
    link_factors,
    scale_parts,
    sum_parts,
)
from agent.planner.cost import REQUEST_PART, Estimate, StageCosts, estimate_layout
from agent.planner.file import plan_from_toml
from agent.planner.layout import Layout, layouts_of_plan
from agent.planner.plan import Plan, Serving
from agent.planner.rates import LinkTable
from agent.planner.regimes import CHANGE, Regimes, Told, find_regimes

MAX_RUNS = 64
"""The newest that count: a cluster's machines are maintained, and what they did long ago says little."""
NOTICED_LINK = CHANGE
"""A link that differs by less is like the others: a plan does not move for the noise of its own runs."""
GATEWAY_PART = "gateway messages"
"""A step's way from the gateway to the first stage and back from the last."""


def calibrate(facts: ClusterFacts) -> Calibration:
    """The constants after the cluster's own runs; those of `planner.rates` where there are none.

    A run on devices that are not there any more is left out. Of one from before a change, what it tells of the
    links that changed is told of other links, which are not there any more: so the rest of its time still says that
    the devices were as they are now, and the change is laid on the links. Without links, it is left out. What
    one tells that met busy hosts is told of no single link, but of what all of them have in common.
    """
    if not facts.runs:
        return PRIOR
    told = _told(facts)
    regimes = find_regimes(facts.runs[-MAX_RUNS:], told)
    fitted = _fit(told, regimes)
    if not link_factors(fitted):
        return fitted
    # A link as slow as runs say may be what a pipeline of chunks waits for, and then has a part in each of them.
    return _fit(_told(facts, fitted), regimes)


def _fit(told: Sequence[Told], regimes: Regimes) -> Calibration:
    times = [time for at, each in enumerate(told) for time in _still_true(each, regimes, at)]
    fitted = fit_calibration(times if _tells_links_apart(times) else [_of_any_link(time) for time in times])
    kept = {
        name: value
        for name, value in fitted.corrections.items()
        if not name.startswith(LINK) or abs(value) >= NOTICED_LINK
    }
    return msgspec.structs.replace(fitted, corrections=kept)


def changes(facts: ClusterFacts) -> dict[str, float]:
    """Of plans on what changed for good, since when: seconds since the epoch by plan hash.

    What was measured of them before says nothing of the cluster as it is.
    """
    runs = facts.runs[-MAX_RUNS:]
    told = _told(facts)
    begins = find_regimes(runs, told).begins
    latest = {
        run.plan_hash: max((begins.get(name, 0) for name in each.touched), default=0)
        for run, each in zip(runs, told, strict=True)
    }
    return {name: runs[begin].measured_at_s for name, begin in latest.items() if begin}


def _told(facts: ClusterFacts, calibration: Calibration = PRIOR) -> list[Told]:
    """What runs tell where the constants are about these: they decide what a run waits for."""
    return [_told_by(run, facts, calibration) for run in facts.runs[-MAX_RUNS:]]


def _still_true(told: Told, regimes: Regimes, index: int) -> list[MeasuredTime]:
    """What a run's times say now, given since when what it touched is as it is."""
    if index in regimes.busy:
        return [_of_any_link(time) for time in told.times]
    changed = {name for name in told.touched if index < regimes.begins.get(name, 0)}
    if not changed:
        return list(told.times)
    if not any(name.startswith(LINK) for name in changed):
        return []
    return [
        msgspec.structs.replace(
            time,
            parts={
                f"{part}{FORMERLY}" if changed & set(corrections_of(part)) else part: seconds
                for part, seconds in time.parts.items()
            },
        )
        for time in told.times
    ]


def _tells_links_apart(times: Sequence[MeasuredTime]) -> bool:
    """Whether there are two links, or one before and after a change.

    What runs over a single link show may be its carrier's, or the model's: it says nothing against that link.
    """
    return len({part.partition(AT)[2] for time in times for part in time.parts if AT in part}) > 1


def _of_any_link(time: MeasuredTime) -> MeasuredTime:
    return msgspec.structs.replace(
        time, parts=sum_parts(*({part.partition(AT)[0]: seconds} for part, seconds in time.parts.items()))
    )


def model_key(spec: ModelSpec, serving: Serving) -> str:
    """Runs with the same key have what is peculiar to a model's kernels in common: digest and precision."""
    return f"{spec.digest[:12] or spec.name} {serving.precision}"


def gateway_way_s(layout: Layout, links: LinkTable, *, gateway: str) -> float:
    """Seconds from the gateway to a replica's first stage and back from its last, without any message.

    What the gateway does there takes as much longer as its host is slower than the table's.
    """
    first, last = layout.stages[0].places[0], layout.stages[-1].places[0]
    there = links.between(gateway, first.host, "cpu").latency_s
    return there + links.between(last.host, gateway, "cpu").latency_s + links.gateway_longer_s(gateway)


def ttft_parts(estimate: Estimate, *, way_s: float) -> Parts:
    """Of a first token, the gateway's way included: chunks follow each other without waiting for it."""
    return sum_parts(estimate.ttft_parts, {GATEWAY_PART: way_s})


def time_per_token_parts(estimate: Estimate, *, way_s: float) -> Parts:
    return sum_parts(estimate.time_per_token_parts, {GATEWAY_PART: way_s})


def streams_of(run: MeasuredRun) -> list[tuple[int, float]]:
    """How many streams there were, and for which share of the tokens; none where nobody counted.

    Numbers within a factor of two count as their mean: an estimate is made for each.
    """
    alike: dict[int, list[tuple[int, int]]] = {}
    for streams, tokens in sorted(run.tokens_by_streams.items()):
        alike.setdefault(streams.bit_length(), []).append((streams, tokens))
    total = sum(run.tokens_by_streams.values())
    found = []
    for pairs in alike.values():
        tokens = sum(each for _, each in pairs)
        found.append((round(sum(streams * each for streams, each in pairs) / tokens), tokens / total))
    return found


def _told_by(run: MeasuredRun, facts: ClusterFacts, calibration: Calibration) -> Told:
    """Against the replica that should be slowest: a gateway's figures are those of all together."""
    plan = plan_from_toml(run.plan_toml, file=f"plan {run.plan_hash[:12]}")
    try:
        layouts = layouts_of_plan(plan, facts)
    except FleetError:
        return Told()
    links = LinkTable(facts, is_network_trusted=plan.serving.trusted_network)
    costs = StageCosts(run.spec, links, dtype=plan.serving.dtype, quantisation=plan.serving.quantisation)

    def slowest(streams: int) -> tuple[Estimate, Layout]:
        estimated = [
            (
                estimate_layout(
                    run.spec,
                    layout,
                    msgspec.structs.replace(plan.serving, batch=streams),
                    prompt_tokens=run.prompt_tokens,
                    calibration=calibration,
                    answer_tokens=run.answer_tokens,
                    links=links,
                    known=costs,
                ),
                layout,
            )
            for layout in layouts
        ]
        return max(estimated, key=lambda pair: pair[0].time_per_token_s)

    estimate, layout = slowest(max(1, -(-run.streams // len(layouts))))
    way_s = gateway_way_s(layout, links, gateway=plan.gateway_host)
    times = _against(run, plan, estimate, lambda streams: slowest(streams)[0], way_s=way_s)
    crossed = {name for time in times for part in time.parts for name in corrections_of(part)[1:]}
    return Told(
        times=tuple(times),
        touched=frozenset(crossed or {place.name for place in layout.places}),
        series=(model_key(run.spec, plan.serving), *(stage.name for stage in layout.stages)),
        hosts=frozenset({plan.gateway_host, *(place.host for place in layout.places)}),
    )


def _against(
    run: MeasuredRun, plan: Plan, estimate: Estimate, with_streams: Callable[[int], Estimate], *, way_s: float
) -> list[MeasuredTime]:
    """`estimate` is for the run's streams on average, `with_streams` makes one for another number."""
    model = model_key(run.spec, plan.serving)
    times = []
    if run.streams == 1 and run.time_per_token_s > 0:
        parts = time_per_token_parts(estimate, way_s=way_s)
        times.append(MeasuredTime(parts=parts, measured_s=run.time_per_token_s, model=model))
    elif run.tokens_per_s > 0 and run.answer_tokens:
        # Seconds per token of one replica, which gave its part of what all gave together.
        mix = [(with_streams(streams), share) for streams, share in streams_of(run)] or [(estimate, 1.0)]
        parts = sum_parts(*(scale_parts(each.round_parts, share / each.round_tokens) for each, share in mix))
        times.append(MeasuredTime(parts=parts, measured_s=len(plan.replicas) / run.tokens_per_s, model=model))
    elif run.time_per_token_s > 0:
        # An earlier release said no more: as if answers had been long, and prompts rare between them.
        parts = estimate.round_parts
        times.append(MeasuredTime(parts=parts, measured_s=run.time_per_token_s, model=model))
    if run.ttft_s > 0 and run.streams == 1:
        # Beside other streams a first token waits for its turn, which no constant of the cost model explains.
        parts = _gateway_ttft_parts(run, estimate, way_s=way_s)
        times.append(MeasuredTime(parts=parts, measured_s=run.ttft_s, model=model))
    return times


def _gateway_ttft_parts(run: MeasuredRun, estimate: Estimate, *, way_s: float) -> Parts:
    """Of a first token as a gateway's clock sees it: between the client's request and its answer.

    A check's prompts follow each other at once, so that its ranks have not rested.
    """
    if run.source == "check":
        at_once = msgspec.structs.replace(estimate.last_chunk, longer_s=())
        estimate = msgspec.structs.replace(estimate, last_chunk=at_once)
    parts = ttft_parts(estimate, way_s=way_s)
    return {name: seconds for name, seconds in parts.items() if name != REQUEST_PART}
