"""An edit against a plan: the new plan with bytes, digest and predictions as the planner computes them. Pure.

A caller keeps the `Edited` values it got; going back is taking an earlier one. Edits there and back give the plan
that was there before, to the byte: nothing in a plan tells how it was reached, only how it differs from what the
planner made.
"""

from __future__ import annotations

import difflib
from typing import Any, assert_never

import msgspec

from agent.errors import FleetError
from agent.planner.check import check_shape, raise_problems
from agent.planner.edit.edited import Basis, Edited, asked_hosts, problems_of
from agent.planner.edit.edits import (
    AddStage,
    Edit,
    MoveBoundary,
    PlaceStage,
    RemoveStage,
    Replan,
    SetServing,
    SetTensor,
    ShareHeads,
)
from agent.planner.edit.layouts import (
    Layouts,
    add_stage,
    joinable_places,
    move_boundary,
    place_stage,
    remove_stage,
    set_tensor,
    share_heads,
    stage_at,
    unused_places,
)
from agent.planner.edit.replan import replan
from agent.planner.file import ServingTable
from agent.planner.layout import Place, layouts_of_plan
from agent.planner.make import lay_out_plan
from agent.planner.plan import Learning, Plan, Replica, Serving, rank_places
from agent.planner.problem import DEFAULT_PROMPT_TOKENS, PlanRequest, Problem, allowed_places
from agent.planner.words import layers_words, list_words

BY_HAND = "edited by hand: "
AS_PLANNED = "as planned: "
SETTABLE = (
    "context",
    "batch",
    "dtype",
    "quantisation",
    "exact",
    "speculation",
    "max_drafts",
    "kv_cache_tokens",
    "prefill_chunk",
    "queue",
    "listen",
    "gateway",
)
"""Fields of [serving] that may be edited: not what the inventory says of its network."""
SHOWN_STAGES = 6


def begin_edit(plan: Plan, basis: Basis) -> Edited:
    """The plan with its figures as of today's facts, ready to be edited.

    Where a device of it is not in the cluster any more, figures stay as recorded: `Replan` gets it going again.
    Raises the problems of a plan that does not cover its model (E106, E107) or is for another one (E401).
    """
    raise_problems(check_shape(plan, basis.spec))
    try:
        layouts = layouts_of_plan(plan, basis.facts)
    except FleetError:
        fresh = plan
    else:
        fresh = _laid_out(plan, layouts, basis)
    excluded, pinned = asked_hosts(plan.asked)
    return Edited(plan=fresh, planned=fresh, problems=problems_of(fresh, basis), excluded=excluded, pinned=pinned)


def apply_edit(edited: Edited, edit: Edit, basis: Basis) -> Edited:
    """The plan after an edit. What does not fit is told in `problems`, with device and bytes.

    Raises FleetError E106, E107, E601 or E602 for an edit that gives no plan at all; nothing has changed then.
    """
    if isinstance(edit, Replan):
        return replan(edited, edit, basis)
    plan = edited.plan
    if isinstance(edit, SetServing):
        plan = _with_serving(edited, edit)
    problem = _problem(plan, basis, without=edited.excluded)
    layouts = _edited_layouts(problem, _layouts(plan, basis), edit)
    made = _laid_out(plan, layouts, basis)
    marked = _told_apart(made, edited.planned)
    return msgspec.structs.replace(edited, plan=marked, problems=problems_of(marked, basis))


def adopt_plan(plan: Plan, before: Edited, basis: Basis) -> Edited:
    """A plan that was changed as text, with bytes and predictions anew: whatever was typed for them does not count.

    It has to cover its model (`check_shape`). Raises FleetError E106 and E107 for what gives no plan.
    """
    made = _laid_out(plan, _layouts(plan, basis), basis)
    said = _differences(made, before.planned)
    adopted = _marked(made, before.planned, said) if said else made
    return msgspec.structs.replace(before, plan=adopted, problems=problems_of(adopted, basis))


def possible_sizes(edited: Edited, basis: Basis, *, replica: int, stage: int) -> tuple[int, ...]:
    """Tensor-parallel sizes that a stage could have with the devices that are spare.

    Raises FleetError E106 where there is no such stage, or a device of the plan is not in the cluster.
    """
    problem = _problem(edited.plan, basis, without=edited.excluded)
    layouts = _layouts(edited.plan, basis)
    held = stage_at(layouts, replica, stage)
    most = len(held.places) + len(joinable_places(problem, layouts, held))
    return tuple(range(1, min(most, basis.spec.num_kv_heads) + 1))


def spare_places(edited: Edited, basis: Basis) -> tuple[Place, ...]:
    """Devices of the cluster that hold nothing of the plan."""
    used = {(place.shard.host, place.shard.device) for place in rank_places(edited.plan)}
    places = unused_places(_problem(edited.plan, basis), [])
    return tuple(place for place in places if (place.host, place.device.id) not in used)


def _edited_layouts(problem: Problem, layouts: Layouts, edit: Edit) -> Layouts:
    match edit:
        case MoveBoundary(replica=r, stage=s, layers=layers):
            return move_boundary(layouts, r, s, layers)
        case SetTensor(replica=r, stage=s, size=size):
            return set_tensor(problem, layouts, r, s, size)
        case PlaceStage(replica=r, stage=s, devices=devices):
            return place_stage(problem, layouts, r, s, devices)
        case AddStage(replica=r, stage=s, devices=devices):
            return add_stage(problem, layouts, r, s, devices)
        case RemoveStage(replica=r, stage=s):
            return remove_stage(problem, layouts, r, s)
        case ShareHeads(replica=r, stage=s, kv_heads=kv_heads):
            return share_heads(problem, layouts, r, s, kv_heads)
        case SetServing():
            return layouts
        case Replan():
            raise AssertionError("the planner lays out anew, not an edit")
        case _:
            assert_never(edit)


def _layouts(plan: Plan, basis: Basis) -> Layouts:
    try:
        return layouts_of_plan(plan, basis.facts)
    except FleetError as error:
        raise FleetError(
            error.code, error.message, hint="exclude its host to plan without it, or bring it back"
        ) from error


def _problem(plan: Plan, basis: Basis, *, without: tuple[str, ...] = ()) -> Problem:
    """Every device of the cluster but those of some hosts, under the plan's serving settings."""
    request = PlanRequest(
        name=plan.name,
        model=plan.model,
        spec=basis.spec,
        facts=basis.facts,
        objective=plan.objective,
        serving=plan.serving,
        prompt_tokens=plan.predicted.prompt_tokens,
        draft=plan.draft,
        draft_spec=basis.draft if plan.draft is not None else None,
        excluded=tuple(
            f"{host.name}/{device.id}"
            for host in basis.facts.hosts
            for device in host.devices
            if host.name in without
        ),
    )
    return Problem(request, allowed_places(request), plan.serving, calibration=basis.calibration)


def _laid_out(plan: Plan, layouts: Layouts, basis: Basis) -> Plan:
    draft = basis.draft if plan.draft is not None else None
    return lay_out_plan(plan, layouts, basis.spec, basis.facts, draft=draft, calibration=basis.calibration)


# --- serving ------------------------------------------------------------------------------------------


def _with_serving(edited: Edited, edit: SetServing) -> Plan:
    plan, planned = edited.plan, edited.planned
    serving = set_serving(plan.serving, edit.field, edit.value)
    draft = planned.draft if serving.speculation == "draft_model" else None
    if serving.speculation == "draft_model" and draft is None:
        raise FleetError(
            "E107",
            "speculation = draft_model needs a draft model, and the plan names none",
            hint="plan again with --draft MODEL, or set it to none or prompt_lookup",
        )
    prompt = planned.predicted.prompt_tokens
    if prompt > serving.context:
        prompt = max(1, min(DEFAULT_PROMPT_TOKENS, serving.context // 2))
    predicted = msgspec.structs.replace(plan.predicted, prompt_tokens=prompt)
    return msgspec.structs.replace(plan, serving=serving, draft=draft, predicted=predicted)


def set_serving(serving: Serving, field: str, value: Any) -> Serving:
    """A serving table with one field changed. Raises E106 naming the field, its value and what it may be."""
    if field not in SETTABLE:
        near = difflib.get_close_matches(field, SETTABLE, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"settings: {', '.join(SETTABLE)}"
        raise FleetError("E106", f"`{field}` is no serving setting to edit", hint=hint)
    kind = next(each.type for each in msgspec.structs.fields(ServingTable) if each.name == field)
    try:
        converted = msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as error:
        said = str(error)
        raise FleetError("E106", f"{field} = {value}: {said[:1].lower()}{said[1:]}", hint=_allowed(kind)) from error
    return msgspec.structs.replace(serving, **{field: converted})


def _allowed(kind: Any) -> str:
    values = getattr(kind, "__args__", ())
    return f"one of: {', '.join(map(str, values))}" if values and isinstance(values[0], str) else "a whole number"


# --- what was edited ----------------------------------------------------------------------------------


def _told_apart(made: Plan, planned: Plan) -> Plan:
    """The plan with what was edited among its reasons; the planner's own where nothing is left of the edits."""
    said = _differences(made, planned)
    return _marked(made, planned, said) if said else planned


def _marked(made: Plan, planned: Plan, said: list[str]) -> Plan:
    why = [f"{BY_HAND}{text}" for text in said]
    why += [line if line.startswith((BY_HAND, AS_PLANNED)) else f"{AS_PLANNED}{line}" for line in planned.why]
    records = planned.learning is None or planned.learning.records
    return msgspec.structs.replace(
        made,
        objective=msgspec.structs.replace(made.objective, strategy="manual"),
        why=tuple(why),
        # It was chosen by its editor, not drawn: learning must not take it for a choice with a likelihood.
        learning=None if records else Learning(records=False),
    )


def _differences(made: Plan, planned: Plan) -> list[str]:
    said = []
    if len(made.replicas) != len(planned.replicas):
        said.append(f"{len(made.replicas)} replicas, in the place of {len(planned.replicas)}")
    for index, (new, old) in enumerate(zip(made.replicas, planned.replicas, strict=False)):
        now, before = _stage_words(new), _stage_words(old)
        came = [words for words in now if words not in before]
        went = [words for words in before if words not in now]
        if _holdings(new) != _holdings(old):
            which = f"replica {index}, " if len(made.replicas) > 1 else ""
            said.append(f"{which}{_list(came or now)}, in the place of {_list(went or before)}")
    for field in SETTABLE:
        value, old_value = getattr(made.serving, field), getattr(planned.serving, field)
        if value != old_value:
            said.append(f"{field} {value}, in the place of {old_value}")
    return said


def _holdings(replica: Replica) -> list[tuple[object, ...]]:
    """Who holds what: bytes and predictions follow from it."""
    return [
        (stage.layers, shard.host, shard.device, shard.kv_heads, shard.columns, shard.vocab)
        for stage in replica.stages
        for shard in stage.shards
    ]


def _stage_words(replica: Replica) -> list[str]:
    stages = []
    for stage in replica.stages:
        names = " + ".join(f"{shard.host}/{shard.device}" for shard in stage.shards)
        units = ":".join(str(shard.kv_heads[1] - shard.kv_heads[0]) for shard in stage.shards)
        shares = f" (KV heads {units})" if len(stage.shards) > 1 else ""
        stages.append(f"{names} {layers_words(stage.layers)}{shares}")
    return stages


def _list(stages: list[str]) -> str:
    return list_words(stages, most=SHOWN_STAGES)
