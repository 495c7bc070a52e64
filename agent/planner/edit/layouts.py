"""Changes of a plan's layouts: boundaries, devices, groups, shares. Pure; bytes are counted by who asks.

What cannot be laid out at all is refused here (E106, E107, E602), naming place, value and way out. What can be laid
out and does not fit is not: `check_plan` tells by how much.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import msgspec

from agent.errors import FleetError
from agent.planner.cost import decode_step, stage_cost
from agent.planner.layout import Layout, Place, StageLayout, cut_shares
from agent.planner.problem import Problem
from agent.planner.tensor import decode_speed, max_units, share_units

Layouts = list[Layout]


def move_boundary(layouts: Layouts, replica: int, stage: int, layers: int) -> Layouts:
    """Both stages keep a layer. Raises E106 where one would not, or there is no such boundary."""
    stages = _stages(layouts, replica)
    if not 0 <= stage < len(stages) - 1:
        way_out = (
            f"it has {len(stages)} stages: name one of {replica}.0 to {replica}.{len(stages) - 2}"
            if len(stages) > 1
            else "it has one stage; add another first"
        )
        raise FleetError("E106", f"replica {replica} has no boundary behind stage {stage}", hint=way_out)
    left, right = stages[stage], stages[stage + 1]
    least, most = 1 - left.num_layers, right.num_layers - 1
    if not least <= layers <= most:
        giver = stage if layers < 0 else stage + 1
        raise FleetError(
            "E106",
            f"boundary behind stage {replica}.{stage} cannot move by {layers:+d}: stage {replica}.{giver} has "
            f"{stages[giver].num_layers} layers and keeps one",
            hint=f"move it by {least:+d} to {most:+d}, or remove the stage",
        )
    cut = left.layers[1] + layers
    stages[stage] = msgspec.structs.replace(left, layers=(left.layers[0], cut))
    stages[stage + 1] = msgspec.structs.replace(right, layers=(cut, right.layers[1]))
    return _with_stages(layouts, replica, stages)


def place_stage(problem: Problem, layouts: Layouts, replica: int, stage: int, devices: Sequence[str]) -> Layouts:
    """The stage on these devices, shares by speed; it swaps with a stage that has exactly these.

    Raises E106 for an unknown device, E107 for a taken one, for one twice and for GPUs mixed with CPUs.
    """
    old = stage_at(layouts, replica, stage)
    places = find_places(problem, devices)
    if old.places == places:
        return layouts
    others = [
        (r, s, other.places)
        for r, layout in enumerate(layouts)
        for s, other in enumerate(layout.stages)
        if (r, s) != (replica, stage)
    ]
    swapped = next(((r, s) for r, s, held in others if set(held) == set(places)), None)
    if swapped is not None:
        moved = _replaced(layouts, *swapped, regroup(problem, stage_at(layouts, *swapped), old.places))
        return _replaced(moved, replica, stage, regroup(problem, old, places))
    _refuse_taken(places, others)
    return _replaced(layouts, replica, stage, regroup(problem, old, places))


def set_tensor(problem: Problem, layouts: Layouts, replica: int, stage: int, size: int) -> Layouts:
    """The stage over `size` devices. Raises E106 above its KV heads, E602 when too few devices are spare."""
    old = stage_at(layouts, replica, stage)
    most = problem.spec.num_kv_heads
    if not 1 <= size <= most:
        raise FleetError(
            "E106",
            f"stage {replica}.{stage} cannot be split over {size} devices: {problem.spec.name} has {most} KV "
            "heads, and each device needs one",
            hint=f"ask for 1 to {most}",
        )
    places = old.places[:size]
    spare = joinable_places(problem, layouts, old)
    if size - len(places) > len(spare):
        kind = old.places[0].device.kind
        raise FleetError(
            "E602",
            f"stage {replica}.{stage} needs {size - len(places)} more {kind} devices, {len(spare)} are spare",
            hint="remove another stage first, name devices for the stage, or add hosts",
        )
    return _replaced(layouts, replica, stage, regroup(problem, old, places + spare[: size - len(places)]))


def share_heads(problem: Problem, layouts: Layouts, replica: int, stage: int, kv_heads: Sequence[int]) -> Layouts:
    """The group's KV heads as given. Raises E106 unless each rank has one and they are all there are."""
    old, total = stage_at(layouts, replica, stage), problem.spec.num_kv_heads
    given = " + ".join(map(str, kv_heads))
    if len(kv_heads) != len(old.places) or min(kv_heads) < 1 or sum(kv_heads) != total:
        raise FleetError(
            "E106",
            f"stage {replica}.{stage} cannot share its KV heads {given}: {len(old.places)} ranks share {total}",
            hint=f"give {len(old.places)} numbers above 0 that sum to {total}",
        )
    return _replaced(layouts, replica, stage, msgspec.structs.replace(old, units=tuple(kv_heads)))


def add_stage(problem: Problem, layouts: Layouts, replica: int, stage: int, devices: Sequence[str]) -> Layouts:
    """A stage behind this one, with its last layers. Raises E106 where it has one, E107 for taken devices."""
    old, stages = stage_at(layouts, replica, stage), _stages(layouts, replica)
    if old.num_layers < 2:
        raise FleetError(
            "E106",
            f"stage {replica}.{stage} has a single layer: there is none for a stage behind it",
            hint="add it behind a stage with more layers",
        )
    places = find_places(problem, devices)
    _refuse_taken(places, _holders(layouts))
    first, end = old.layers
    new = regroup(problem, msgspec.structs.replace(old, layers=(end - 1, end)), places)
    cut = _balanced_cut(problem, (old, new), first=first, end=end, least=first + 1, most=end - 1)
    left = msgspec.structs.replace(old, layers=(first, cut))
    right = msgspec.structs.replace(new, layers=(cut, end))
    return _with_stages(layouts, replica, [*stages[:stage], left, right, *stages[stage + 1 :]])


def remove_stage(problem: Problem, layouts: Layouts, replica: int, stage: int) -> Layouts:
    """Its layers go to its neighbours. Raises E106 for the only stage."""
    gone, stages = stage_at(layouts, replica, stage), _stages(layouts, replica)
    if len(stages) == 1:
        raise FleetError("E106", f"stage {replica}.{stage} is the only one of its replica", hint="it has to stay")
    first, end = gone.layers
    if stage == 0:
        stages[1] = msgspec.structs.replace(stages[1], layers=(first, stages[1].layers[1]))
    elif stage == len(stages) - 1:
        stages[-2] = msgspec.structs.replace(stages[-2], layers=(stages[-2].layers[0], end))
    else:
        left, right = stages[stage - 1], stages[stage + 1]
        ends = left.layers[0], right.layers[1]
        cut = _balanced_cut(problem, (left, right), first=ends[0], end=ends[1], least=first, most=end)
        stages[stage - 1] = msgspec.structs.replace(left, layers=(ends[0], cut))
        stages[stage + 1] = msgspec.structs.replace(right, layers=(cut, ends[1]))
    return _with_stages(layouts, replica, stages[:stage] + stages[stage + 1 :])


def regroup(problem: Problem, stage: StageLayout, places: tuple[Place, ...]) -> StageLayout:
    """The stage's layers on other devices: KV heads by their speed, as far as their memory allows."""
    total = problem.spec.num_kv_heads
    if len(places) > total:
        raise FleetError(
            "E106",
            f"{len(places)} devices cannot share the {total} KV heads of {problem.spec.name}",
            hint=f"name {total} or fewer",
        )
    speeds = [decode_speed(problem, place) for place in places]
    units = share_units(total, speeds, max_units(problem, places, stage.num_layers)) or share_units(total, speeds)
    assert units is not None, f"{total} KV heads, {len(places)} devices"
    return msgspec.structs.replace(stage, places=places, units=units)


def find_places(problem: Problem, devices: Sequence[str]) -> tuple[Place, ...]:
    """Devices by name, each once and all of one kind. Raises E106 and E107."""
    known = {place.name: place for place in problem.places}
    for name in devices:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(sorted(known)[:12])}"
            raise FleetError("E106", f"no device `{name}` in the cluster", hint=hint)
    if len(set(devices)) != len(devices) or not devices:
        raise FleetError(
            "E107", f"devices {', '.join(devices) or 'none'} of one stage", hint="name each once, and at least one"
        )
    places = tuple(known[name] for name in devices)
    if len({place.device.kind for place in places}) > 1:
        raise FleetError(
            "E107", f"{', '.join(devices)} mix GPUs and CPUs", hint="a tensor-parallel group has one kind of device"
        )
    return places


def joinable_places(problem: Problem, layouts: Layouts, stage: StageLayout) -> tuple[Place, ...]:
    """Spare devices that a stage's group could take in: of its kind, its leader's host first, then fast ones."""
    leader = stage.places[0]
    hosts_with_gpu = {place.host for place in problem.places if place.device.kind == "cuda"}
    found = [
        place
        for place in unused_places(problem, layouts)
        if place.device.kind == leader.device.kind
        and (place.device.kind == "cuda" or place.host == leader.host or place.host not in hosts_with_gpu)
    ]
    order = {place: index for index, place in enumerate(problem.places)}
    return tuple(
        sorted(found, key=lambda place: (place.host != leader.host, -decode_speed(problem, place), order[place]))
    )


def unused_places(problem: Problem, layouts: Layouts) -> tuple[Place, ...]:
    """Devices of the cluster that hold nothing of these layouts."""
    used = {place.name for layout in layouts for place in layout.places}
    return tuple(place for place in problem.places if place.name not in used)


def _balanced_cut(
    problem: Problem, pair: tuple[StageLayout, StageLayout], *, first: int, end: int, least: int, most: int
) -> int:
    """Where two neighbours meet: fewest bytes too many, then the shortest time of the slower one."""
    spec, serving = problem.spec, problem.serving
    step = decode_step(1, problem.prompt_tokens)
    is_first, is_last = first == 0, end == spec.num_layers
    costs = [
        stage_cost(
            spec,
            stage.places,
            stage.units,
            step=step,
            dtype=serving.dtype,
            links=problem.links,
            quantisation=serving.quantisation,
        )
        for stage in pair
    ]

    def badness(cut: int) -> tuple[int, float, int]:
        left, right = cut - first, end - cut
        lacking = _lacking_bytes(problem, pair[0], left, first=is_first, last=False)
        lacking += _lacking_bytes(problem, pair[1], right, first=False, last=is_last)
        times = (
            costs[0].stage_s(left, first=is_first, last=False),
            costs[1].stage_s(right, first=False, last=is_last),
        )
        return lacking, max(times), cut

    return min(range(least, most + 1), key=badness)


def _lacking_bytes(problem: Problem, stage: StageLayout, num_layers: int, *, first: bool, last: bool) -> int:
    """Bytes that the ranks of a stage would be short with so many layers; 0 when it fits."""
    lacking = 0
    for index, (place, share) in enumerate(zip(stage.places, cut_shares(problem.spec, stage.units), strict=True)):
        memory = problem.sizes.memory(share, place.device.kind, first=first, last=last, leads=index == 0)
        needed = memory.fixed_bytes + num_layers * memory.layer_bytes
        lacking += max(0, needed - problem.usable_bytes(place))
    return lacking


def _refuse_taken(places: Sequence[Place], holders: Sequence[tuple[int, int, tuple[Place, ...]]]) -> None:
    for r, s, held in holders:
        for place in places:
            if place in held:
                raise FleetError(
                    "E107",
                    f"{place.name} already holds stage {r}.{s}",
                    hint="each device holds one shard: move that stage first, or name another device",
                    host=place.host,
                )


def _holders(layouts: Layouts) -> list[tuple[int, int, tuple[Place, ...]]]:
    return [(r, s, stage.places) for r, layout in enumerate(layouts) for s, stage in enumerate(layout.stages)]


def _stages(layouts: Layouts, replica: int) -> list[StageLayout]:
    if not 0 <= replica < len(layouts):
        raise FleetError(
            "E106", f"there is no replica {replica}", hint=f"name one of 0 to {len(layouts) - 1}, counted from 0"
        )
    return list(layouts[replica].stages)


def stage_at(layouts: Layouts, replica: int, stage: int) -> StageLayout:
    """Raises E106 naming what there is."""
    stages = _stages(layouts, replica)
    if not 0 <= stage < len(stages):
        raise FleetError(
            "E106",
            f"replica {replica} has no stage {stage}",
            hint=f"name one of {replica}.0 to {replica}.{len(stages) - 1}, counted from 0",
        )
    return stages[stage]


def _replaced(layouts: Layouts, replica: int, stage: int, new: StageLayout) -> Layouts:
    stages = list(layouts[replica].stages)
    stages[stage] = new
    return _with_stages(layouts, replica, stages)


def _with_stages(layouts: Layouts, replica: int, stages: Sequence[StageLayout]) -> Layouts:
    changed = list(layouts)
    changed[replica] = Layout(stages=tuple(stages))
    return changed
