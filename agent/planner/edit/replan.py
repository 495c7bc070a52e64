"""A plan made anew by the planner: other hosts, and all else as it was asked for. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

import msgspec

from agent.errors import FleetError
from agent.planner.asked import ask_again, asked_words
from agent.planner.edit.edited import Basis, Edited, problems_of
from agent.planner.edit.edits import Replan
from agent.planner.make import make_plan
from agent.planner.plan import Asked
from agent.planner.problem import PlanRequest
from agent.planner.words import list_words

DOES_NOT_FIT = ("E601", "E602", "E107")
"""What a request with too many constraints is refused with: with fewer of them there may be a plan."""
SHAPE = ("stages", "tensor", "tensor_parallel_sizes", "min_hosts", "max_hosts")
"""Constraints on a layout's shape, which hosts that are gone may have made impossible."""


def replan(edited: Edited, edit: Replan, basis: Basis) -> Edited:
    """The planner's plan of what is left, under the constraints that the plan was asked for.

    Excluded and pinned hosts are the edit's; single devices that were asked for stay so. Where no layout has the
    shape that was asked for, one of another shape is made, and the plan says so. Raises E106, E107, E601, E602.
    """
    left = _left(edited, edit, basis)
    asked = _asked(edited.plan.asked, edit)
    refusal: FleetError | None = None
    for request, recorded, remark in _requests(edited, basis, left, asked):
        try:
            made = make_plan(request)
        except FleetError as error:
            if error.code not in DOES_NOT_FIT:
                raise
            refusal = error
            continue
        made = msgspec.structs.replace(made, asked=recorded, why=(*made.why, *([remark] if remark else [])))
        return Edited(
            plan=made,
            planned=made,
            problems=problems_of(made, basis),
            excluded=tuple(sorted(set(edit.excluded))),
            pinned=tuple(sorted(set(edit.pinned))),
        )
    assert refusal is not None, "there is a request at least"
    raise refusal


def _left(edited: Edited, edit: Replan, basis: Basis) -> tuple[str, ...]:
    """Hosts that may be used: those that were selected and pinned ones, without the excluded."""
    known = [host.name for host in basis.facts.hosts]
    for name in (*edit.excluded, *edit.pinned):
        # What was asked for, or has a part in the plan, may be a host that is gone.
        if name not in known and name not in (*edited.plan.hosts, *edited.excluded, *edited.pinned):
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(known[:12])}"
            raise FleetError("E106", f"no host `{name}` in the cluster", hint=hint)
    if both := set(edit.excluded) & set(edit.pinned):
        raise FleetError("E107", f"{list_words(sorted(both))} both pinned and excluded", hint="choose one")
    usable = set(known) if basis.selected is None else {*basis.selected, *edit.pinned}
    left = tuple(name for name in known if name in usable and name not in edit.excluded)
    if not left:
        raise FleetError("E602", "every host is excluded", hint="take one back")
    return left


def _asked(asked: Asked | None, edit: Replan) -> Asked:
    """What the plan was asked for, with the edit's hosts in the place of those before."""
    asked = asked or Asked()
    excluded = {name for name in asked.excluded if "/" in name and name.partition("/")[0] not in edit.pinned}
    pinned = {name for name in asked.pinned if "/" in name and name.partition("/")[0] not in edit.excluded}
    return msgspec.structs.replace(
        asked,
        excluded=tuple(sorted({*edit.excluded, *excluded})),
        pinned=tuple(sorted({*edit.pinned, *pinned})),
    )


def _requests(
    edited: Edited, basis: Basis, left: tuple[str, ...], asked: Asked
) -> Iterator[tuple[PlanRequest, Asked | None, str]]:
    """Requests to try, the strictest first, what to keep of each in its plan, and what that plan has to say.

    Where nobody asked for a number of hosts, as many as before are tried first: the plan was spread for a reason.
    """
    replicas = edited.plan.replicas
    spread = min(len({shard.host for stage in r.stages for shard in stage.shards}) for r in replicas)
    spread = min(spread, len(left) // len(replicas) or 1, asked.max_hosts or spread)
    request = _request(edited, basis, left, asked)
    if asked.min_hosts is None and spread > 1:
        yield msgspec.structs.replace(request, min_hosts=spread), _recorded(asked), ""
    yield request, _recorded(asked), ""
    usual = Asked()
    free = msgspec.structs.replace(asked, **{name: getattr(usual, name) for name in SHAPE})
    if free != asked:
        words = [each for each in asked_words(asked) if each not in asked_words(free)]
        remark = f"asked for {', '.join(words)}, which no layout of what is left has: planned without"
        relaxed = _request(edited, basis, left, free)
        yield msgspec.structs.replace(relaxed, min_hosts=spread), _recorded(free), remark
        yield relaxed, _recorded(free), remark


def _recorded(asked: Asked) -> Asked | None:
    return None if asked == Asked() else asked


def _request(edited: Edited, basis: Basis, left: tuple[str, ...], asked: Asked) -> PlanRequest:
    plan = edited.plan
    strategy = edited.planned.objective.strategy
    objective = msgspec.structs.replace(
        edited.planned.objective, strategy="adaptive" if strategy == "manual" else strategy
    )
    controllers = plan.controllers if set(plan.controllers) <= set(left) else ()
    gateway = plan.serving.gateway if plan.serving.gateway in left else ""
    request = PlanRequest(
        name=plan.name,
        model=plan.model,
        spec=basis.spec,
        facts=basis.facts,
        objective=objective,
        serving=msgspec.structs.replace(plan.serving, gateway=gateway),
        healing=plan.healing,
        hosts=left,
        replicas=len(plan.replicas),
        controllers=controllers,
        prompt_tokens=plan.predicted.prompt_tokens,
        draft=plan.draft,
        draft_spec=basis.draft if plan.draft is not None else None,
        is_recorded=plan.learning is None or plan.learning.records,
    )
    if plan.serving.context != edited.planned.serving.context:
        asked = msgspec.structs.replace(asked, min_context=None)  # it was set by hand since
    again = ask_again(request, asked)
    # Hosts are left out already; what is excluded or reserved beside them are devices of those that are left.
    return msgspec.structs.replace(
        again,
        excluded=tuple(name for name in again.excluded if _is_device_of(name, left)),
        reserved_bytes={name: size for name, size in again.reserved_bytes.items() if _is_device_of(name, left)},
    )


def _is_device_of(name: str, hosts: tuple[str, ...]) -> bool:
    host, sign, _ = name.partition("/")
    return bool(sign) and host in hosts
