"""Is a plan sound? Against the model alone, and against the cluster as it is now. Pure.

`plan_from_toml` has already seen to types and ranges; this looks at what only the whole can tell. Every problem is
returned at once, each with its numbers and a way out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from agent.errors import FleetError
from agent.facts.cluster import ClusterFacts, DeviceFacts
from agent.facts.model import ModelSpec
from agent.planner.layout import extent_of
from agent.planner.memory import rank_bytes
from agent.planner.plan import Plan, Range, Replica, Shard, Stage
from agent.planner.shards import shard_weight_bytes, whole_extent
from agent.planner.staleness import what_moved
from agent.planner.words import bytes_words


class PlanProblem(msgspec.Struct, frozen=True, kw_only=True):
    """One trouble. `path` names its place in the plan file (`replica[0].stage[1].layers`).

    Codes: E106 and E107 for a plan that is wrong by itself, E401 for a cluster that has moved, E601 for memory.
    """

    code: str
    path: str
    message: str
    way_out: str
    host: str = ""


def check_plan(
    plan: Plan, spec: ModelSpec, facts: ClusterFacts, *, draft: ModelSpec | None = None
) -> list[PlanProblem]:
    """Every problem of a plan, in the order of its file; empty when it can be applied. `draft` is of [draft]."""
    problems = check_shape(plan, spec)
    problems += _check_draft(plan, draft)
    problems += _check_hosts(plan, facts)
    devices = {(host.name, device.id): device for host in facts.hosts for device in host.devices}
    seen: dict[tuple[str, str], str] = {}
    for r, replica in enumerate(plan.replicas):
        for s, stage in enumerate(replica.stages):
            for t, shard in enumerate(stage.shards):
                path = f"replica[{r}].stage[{s}].shard[{t}]"
                leads_last = s == len(replica.stages) - 1 and t == 0
                problems += _check_device(
                    plan,
                    spec,
                    stage,
                    shard,
                    path=path,
                    devices=devices,
                    seen=seen,
                    draft=draft if leads_last else None,
                )
    problems += [
        PlanProblem(
            code="E401",
            path="facts_digest",
            message=f"{moved} since the plan was made",
            way_out="plan anew, or look at it with `odctl plan --check`",
        )
        for moved in what_moved(plan, facts)
    ]
    return problems


def check_shape(plan: Plan, spec: ModelSpec) -> list[PlanProblem]:
    """What the model alone can tell: digest, context, and that layers and shares cover it exactly once."""
    problems: list[PlanProblem] = []
    if plan.model.digest and spec.digest and plan.model.digest != spec.digest:
        problems.append(
            PlanProblem(
                code="E401",
                path="model.digest",
                message=f"the plan is for {plan.model.name} {plan.model.digest[:12]}, this is {spec.digest[:12]}",
                way_out="plan anew for the model as it is now",
            )
        )
    if plan.serving.context > spec.max_context:
        problems.append(
            PlanProblem(
                code="E106",
                path="serving.context",
                message=f"context {plan.serving.context} is above the {spec.max_context} that {spec.name} knows",
                way_out=f"set it to {spec.max_context} or less",
            )
        )
    for r, replica in enumerate(plan.replicas):
        problems += _check_layers(replica, spec, path=f"replica[{r}]")
        for s, stage in enumerate(replica.stages):
            problems += _check_shares(stage, spec, path=f"replica[{r}].stage[{s}]")
    return problems


def raise_problems(problems: Sequence[PlanProblem]) -> None:
    """Raise the first problem's code with all of them told; nothing when there are none."""
    if problems:
        first = problems[0]
        rest = "".join(f"\n  {problem.path}: {problem.message} ({problem.way_out})" for problem in problems[1:])
        raise FleetError(first.code, f"{first.path}: {first.message}{rest}", hint=first.way_out, host=first.host)


def _check_draft(plan: Plan, draft: ModelSpec | None) -> Iterator[PlanProblem]:
    ref, serving = plan.draft, plan.serving
    if ref is None:
        return
    assert draft is not None, "whoever checks a plan has looked its draft model up"
    if ref.digest and draft.digest and ref.digest != draft.digest:
        yield PlanProblem(
            code="E401",
            path="draft.digest",
            message=f"the plan drafts with {ref.name} {ref.digest[:12]}, this is {draft.digest[:12]}",
            way_out="plan anew for the model as it is now",
        )
    if serving.context > draft.max_context:
        yield PlanProblem(
            code="E106",
            path="serving.context",
            message=f"context {serving.context} is above the {draft.max_context} that its draft model {draft.name} "
            "knows",
            way_out=f"set it to {draft.max_context} or less",
        )
    weights = shard_weight_bytes(draft, whole_extent(draft), serving.dtype, serving.quantisation)
    if ref.weight_bytes != weights:
        yield PlanProblem(
            code="E107",
            path="draft.weight_bytes",
            message=f"draft model {draft.name} is said to weigh {ref.weight_bytes} bytes, it takes {weights}",
            way_out=f"plan anew, or correct it: weight_bytes = {weights}",
        )


def _check_layers(replica: Replica, spec: ModelSpec, *, path: str) -> Iterator[PlanProblem]:
    expected = 0
    for s, stage in enumerate(replica.stages):
        first, end = stage.layers
        if first != expected or end <= first:
            yield PlanProblem(
                code="E107",
                path=f"{path}.stage[{s}].layers",
                message=f"stage {s} holds layers [{first}, {end}), but layer {expected} comes next",
                way_out=f"let it begin at {expected}: each layer is held once, in order",
            )
        expected = end
    if expected != spec.num_layers:
        yield PlanProblem(
            code="E107",
            path=f"{path}.stage[{len(replica.stages) - 1}].layers",
            message=f"the last stage ends at layer {expected}, but {spec.name} has {spec.num_layers}",
            way_out=f"let it end at {spec.num_layers}",
        )


def _check_shares(stage: Stage, spec: ModelSpec, *, path: str) -> Iterator[PlanProblem]:
    totals = {
        "heads": spec.num_heads,
        "kv_heads": spec.num_kv_heads,
        "columns": spec.mlp_columns,
        "vocab": spec.vocab_size,
    }
    for field, total in totals.items():
        ranges: list[Range] = [getattr(shard, field) for shard in stage.shards]
        ends = [0, *(end for _, end in ranges)]
        for t, (begin, end) in enumerate(ranges):
            if begin != ends[t] or end <= begin:
                yield PlanProblem(
                    code="E107",
                    path=f"{path}.shard[{t}].{field}",
                    message=f"{field} [{begin}, {end}) do not follow on {ends[t]}",
                    way_out=f"begin at {ends[t]}: the shards of a stage share its {field} without gap or overlap",
                )
        if ends[-1] != total:
            yield PlanProblem(
                code="E107",
                path=f"{path}.shard[{len(ranges) - 1}].{field}",
                message=f"{field} end at {ends[-1]}, but {spec.name} has {total}",
                way_out=f"let the last shard end at {total}",
            )
    group = spec.queries_per_kv_head
    for t, shard in enumerate(stage.shards):
        expected = (shard.kv_heads[0] * group, shard.kv_heads[1] * group)
        if shard.heads != expected:
            yield PlanProblem(
                code="E107",
                path=f"{path}.shard[{t}].heads",
                message=f"heads {list(shard.heads)} do not belong to KV heads {list(shard.kv_heads)}",
                way_out=f"{group} query heads share a KV head: make them {list(expected)}",
            )


def _check_hosts(plan: Plan, facts: ClusterFacts) -> Iterator[PlanProblem]:
    known = {host.name for host in facts.hosts}
    for index, name in enumerate(plan.controllers):
        if name not in known:
            yield PlanProblem(
                code="E106",
                path=f"controllers[{index}]",
                message=f"controller `{name}` is not a host of this cluster",
                way_out=f"name some of: {', '.join(sorted(known))}",
                host=name,
            )
    if plan.serving.gateway and plan.serving.gateway not in known:
        yield PlanProblem(
            code="E106",
            path="serving.gateway",
            message=f"gateway `{plan.serving.gateway}` is not a host of this cluster",
            way_out="leave it empty for the first controller",
            host=plan.serving.gateway,
        )


def _check_device(
    plan: Plan,
    spec: ModelSpec,
    stage: Stage,
    shard: Shard,
    *,
    path: str,
    devices: dict[tuple[str, str], DeviceFacts],
    seen: dict[tuple[str, str], str],
    draft: ModelSpec | None,
) -> Iterator[PlanProblem]:
    name, device = f"{shard.host}/{shard.device}", devices.get((shard.host, shard.device))
    if (shard.host, shard.device) in seen:
        yield PlanProblem(
            code="E107",
            path=f"{path}.device",
            message=f"{name} already holds {seen[shard.host, shard.device]}",
            way_out="each device holds one shard of one plan",
            host=shard.host,
        )
    seen.setdefault((shard.host, shard.device), path)
    if device is None:
        yield PlanProblem(
            code="E106",
            path=f"{path}.device",
            message=f"{name} is not in the cluster",
            way_out="name a device of `odctl status`, or plan anew",
            host=shard.host,
        )
        return
    extent = extent_of(spec, stage.layers, shard)
    computed = rank_bytes(spec, extent, plan.serving, device.kind, draft=draft)
    held = "its shard" if draft is None else f"its shard with draft model {draft.name}"
    if computed != shard.bytes:
        yield PlanProblem(
            code="E107",
            path=f"{path}.bytes",
            message=f"{name} is said to hold {shard.bytes.total} bytes, but {held} takes {computed.total}",
            way_out="plan anew, or correct it: "
            + ", ".join(f"{field} = {getattr(computed, field)}" for field in computed.__struct_fields__),
            host=shard.host,
        )
    if computed.total > device.usable_bytes:
        yield PlanProblem(
            code="E601",
            path=path,
            message=f"{name} is {bytes_words(computed.total - device.usable_bytes)} short: {held} takes "
            f"{bytes_words(computed.total)}, {bytes_words(device.usable_bytes)} are usable",
            way_out="give it fewer layers, shorten the context or shrink the batch",
            host=shard.host,
        )
