"""What speaks for a plan and against it at this moment: a line a check, each with its reason. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from agent.facts.sample import Lost
from agent.planner.asked import asked_words, broken_words
from agent.planner.plan import Plan, RankPlace, rank_places
from agent.planner.risk import risk_of
from agent.planner.staleness import what_moved
from agent.planner.words import bytes_interval_words, list_words
from odctl.fleet.snapshot import FleetSnapshot, HostView
from odctl.tui.model.marks import HOST_MARKS, Mark
from odctl.tui.model.plans import PlanChoice, cluster_facts
from odctl.tui.model.text import Line, Span, fit, line, wrap
from odctl.tui.model.units import plural

CheckState = Literal["ok", "warn", "fault", "unknown"]
_MARKS: dict[CheckState, Mark] = {
    "ok": Mark("✓", "ok", "ok"),
    "warn": Mark("▲", "warning", "warn"),
    "fault": Mark("✗", "fault", "fault"),
    "unknown": Mark("○", "unknown", "dim"),
}
NAME_CELLS = 9
MOST_TOLD = 3
"""Devices, faults or processes that a check names; it counts the others."""


class Check(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    state: CheckState
    text: str


def plan_checks(choice: PlanChoice, snapshot: FleetSnapshot | None) -> tuple[Check, ...]:
    """Every check of a plan against the fleet as it was last seen."""
    if snapshot is None:
        return (Check(name="fleet", state="unknown", text="no word of any host yet"),)
    plan = choice.plan
    views = {view.name: view for view in snapshot.hosts}
    checks = [_hosts(plan, views), _memory(plan, snapshot)]
    if choice.status is None:
        checks += _moved(plan, snapshot)
    checks += [*_asked(plan), *_source(plan, views), *_links(plan, snapshot), *_devices(plan, views)]
    checks += _foreign(plan, views)
    return (*checks, *_faults(plan, snapshot))


def check_lines(checks: tuple[Check, ...], width: int) -> tuple[Line, ...]:
    """`✓ hosts     3 of 3 live`: state by glyph and colour, and in words where it is not well."""
    lines: list[Line] = []
    for check in checks:
        mark = _MARKS[check.state]
        word = "" if check.state == "ok" else f"{mark.word}: "
        for index, text in enumerate(wrap(f"{word}{check.text}", max(20, width - NAME_CELLS - 4))):
            head = f" {mark.glyph} {fit(check.name, NAME_CELLS)} " if index == 0 else " " * (NAME_CELLS + 4)
            lines.append(line(Span(head, mark.tone), text))
    return tuple(lines)


def _hosts(plan: Plan, views: dict[str, HostView]) -> Check:
    """A host that is not live cannot be applied to, whatever else is well."""
    absent = [name for name in plan.hosts if name not in views]
    if absent:
        return Check(name="hosts", state="fault", text=f"the inventory does not have {list_words(absent)}")
    others = [views[name] for name in plan.hosts if views[name].state != "live"]
    live = f"{len(plan.hosts) - len(others)} of {len(plan.hosts)} live"
    if not others:
        return Check(name="hosts", state="ok", text=live)
    said = [f"{view.name} {HOST_MARKS[view.state].word}" for view in others]
    is_lost = any(view.state in ("lost", "unreachable") for view in others)
    reason = f" ({others[0].reason})" if len(others) == 1 and others[0].reason else ""
    text = f"{live}; {list_words(said, most=MOST_TOLD)}{reason}"
    return Check(name="hosts", state="fault" if is_lost else "warn", text=text)


def _memory(plan: Plan, snapshot: FleetSnapshot) -> Check:
    facts = cluster_facts(snapshot, hosts=plan.hosts)
    usable = {(host.name, device.id): device.usable_bytes for host in facts.hosts for device in host.devices}
    places = rank_places(plan)
    unknown = [_device_name(place) for place in places if _key(place) not in usable]
    short = [_device_name(place) for place in places if place.shard.bytes.total > usable.get(_key(place), 1 << 62)]
    if short:
        return Check(name="memory", state="fault", text=f"too little on {list_words(short, most=MOST_TOLD)}")
    room = risk_of(plan, facts).least_room
    if unknown or room is None:
        return Check(name="memory", state="unknown", text=f"no facts of {list_words(unknown, most=MOST_TOLD)}")
    left = f"fits; least left {bytes_interval_words(room.left)}, {room.fraction_left:.0%}, on {room.device}"
    return Check(name="memory", state="ok" if room.left.low > 0 else "warn", text=left)


def _moved(plan: Plan, snapshot: FleetSnapshot) -> Iterator[Check]:
    """What is no longer as it was when the plan was made: apply refuses it."""
    facts = cluster_facts(snapshot, hosts=plan.hosts)
    silent = {name for name in plan.hosts if facts.host(name) is None}
    moved = [
        each for each in what_moved(plan, facts) if not any(each.startswith(f"host {name} ") for name in silent)
    ]
    for each in moved:
        yield Check(name="since", state="fault", text=f"{each}: plan again")
    if silent:
        said = f"cannot tell whether it still fits: no facts yet of {list_words(sorted(silent))}"
        yield Check(name="since", state="unknown", text=said)
    elif not moved:
        yield Check(name="since", state="ok", text="devices and memory are as they were when it was planned")


def _asked(plan: Plan) -> Iterator[Check]:
    if not asked_words(plan.asked):
        return
    broken = broken_words(plan)
    for each in broken:
        yield Check(name="asked", state="warn", text=f"not kept: {each}")
    if not broken:
        yield Check(name="asked", state="ok", text="keeps what it was asked for")


def _source(plan: Plan, views: dict[str, HostView]) -> Iterator[Check]:
    """Where the weights are to come from."""
    for ref in (plan.model, *([plan.draft] if plan.draft is not None else [])):
        view = views.get(ref.source_host)
        if ref.source_host and (view is None or view.state != "live"):
            state = "not in the inventory" if view is None else HOST_MARKS[view.state].word
            yield Check(name="weights", state="warn", text=f"{ref.source_host}, which has {ref.name}, is {state}")


def _links(plan: Plan, snapshot: FleetSnapshot) -> Iterator[Check]:
    """Whether times between stages are of measured links, or of the planner's figure for such ones."""
    pairs = _neighbours(plan)
    if not pairs:
        return
    known = {
        frozenset((probe.source, probe.target))
        for view in snapshot.hosts
        if view.probes is not None
        for probe in view.probes.links
    }
    missing = [pair for pair in pairs if frozenset(pair) not in known]
    count = f"{len(pairs) - len(missing)} of {len(pairs)} between stages measured"
    if missing:
        said = [f"{a} → {b}" for a, b in missing]
        yield Check(
            name="links", state="warn", text=f"{count}; not {list_words(said, most=MOST_TOLD)}: odctl probe"
        )
    else:
        yield Check(name="links", state="ok", text=count)


def _neighbours(plan: Plan) -> list[tuple[str, str]]:
    """Hosts whose stages talk to each other."""
    pairs = []
    for replica in plan.replicas:
        for before, after in zip(replica.stages, replica.stages[1:], strict=False):
            source, target = before.shards[0].host, after.shards[0].host
            if source != target:
                pairs.append((source, target))
    return list(dict.fromkeys(pairs))


def _devices(plan: Plan, views: dict[str, HostView]) -> Iterator[Check]:
    """Devices of the plan that are lost, or slowed down."""
    lost, slow = [], []
    for place in rank_places(plan):
        view = views.get(place.shard.host)
        for device in view.sample.devices if view is not None and view.sample is not None else ():
            if device.id != place.shard.device:
                continue
            if isinstance(device.utilisation, Lost):
                lost.append(f"{_device_name(place)}: {device.utilisation.reason}")
            elif device.throttle_reasons:
                slow.append(f"{_device_name(place)} ({', '.join(device.throttle_reasons)})")
    if lost:
        yield Check(name="devices", state="fault", text=list_words(lost, most=MOST_TOLD))
    if slow:
        yield Check(name="clocks", state="warn", text=f"slowed down: {list_words(slow, most=MOST_TOLD)}")


def _foreign(plan: Plan, views: dict[str, HostView]) -> Iterator[Check]:
    """Whose processes are on its devices that are no ranks."""
    found = []
    for place in rank_places(plan):
        view = views.get(place.shard.host)
        for device in view.sample.devices if view is not None and view.sample is not None else ():
            if device.id == place.shard.device:
                found += [
                    f"{_device_name(place)}: {each.command} of {each.user}"
                    for each in device.processes
                    if not each.rank_id
                ]
    if found:
        yield Check(name="foreign", state="warn", text=list_words(found, most=MOST_TOLD))


def _faults(plan: Plan, snapshot: FleetSnapshot) -> Iterator[Check]:
    found = [fault for fault in snapshot.faults if fault.healed_at_s is None and fault.host in plan.hosts]
    if found:
        said = [f"{fault.host}: {fault.message}" for fault in found]
        count = f"{plural(len(found), 'open fault')} on its hosts: "
        yield Check(name="faults", state="warn", text=f"{count}{list_words(said, most=MOST_TOLD)}")


def _key(place: RankPlace) -> tuple[str, str]:
    return place.shard.host, place.shard.device


def _device_name(place: RankPlace) -> str:
    return f"{place.shard.host}/{place.shard.device}"
