"""How busy stages are and what links carry, over the last seconds. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from agent.planner.carriers import carrier_among
from agent.planner.plan import Plan, RankPlace, rank_places
from agent.planner.words import layers_words
from odctl.fleet.flow import DeploymentFlow, LinkFlow, RankFlow
from odctl.fleet.snapshot import DeploymentView
from odctl.tui.model.bars import bar
from odctl.tui.model.readings import NONE
from odctl.tui.model.text import Line, Span, fit, line, wrap
from odctl.tui.model.units import percent_text, rate_text, seconds_text

_NO_FLOW = "two looks at its ranks are needed: in a few seconds"


def stage_lines(view: DeploymentView, plan: Plan | None, *, width: int) -> list[Line]:
    """A line for each stage of each replica: its hosts, busy share, and what a step takes beside the prediction."""
    flow = view.flow
    if plan is None or flow is None:
        reason = "its plan is of another release" if plan is None else _NO_FLOW
        return [line(Span(" STAGES ", "title"), Span(f"{NONE} {reason}", "dim"))]
    places = rank_places(plan)
    cells = 8 if width < 100 else 20
    head = f" STAGE {fit('HOSTS', _hosts_width(width))} {fit('LAYERS', 13)} {fit('BUSY', cells + 5)} "
    lines = [line(Span(f"{head}{'STEP':>8} {'PREDICTED':>9} {'STEPS/S':>7}", "title"))]
    busiest = _busiest(flow)
    for (replica, stage), members in _stages(places).items():
        lines.append(
            _stage_line(
                members,
                [flow.rank(place.rank_id) for place in members],
                name=f"{replica}.{stage}",
                predicted_s=plan.predicted.stage_s[stage] if replica == 0 and plan.predicted.stage_s else None,
                busiest=busiest,
                cells=cells,
                width=width,
            )
        )
    return lines + _bubble_lines(flow, width)


def link_lines(view: DeploymentView, plan: Plan | None, *, width: int) -> list[Line]:
    """A line for each link and each group: what it carries, its round trip time, what waiting for it costs."""
    flow = view.flow
    if plan is None or flow is None:
        return []
    ends: dict[str, list[LinkFlow]] = {}
    for rank in flow.ranks:
        for link in rank.links:
            ends.setdefault(link.name, []).append(link)
    if not ends:
        one_rank = len(rank_places(plan)) == len(plan.replicas)
        return [] if one_rank else [line(Span(" LINKS ", "title"), Span(f"{NONE} none was built lately", "dim"))]
    places = {place.rank_id: place for place in rank_places(plan)}
    room = min(60, max(24, width - 46))
    lines = [
        line(Span(f" {fit('LINK', room)} {'CARRIER':<7} {'BYTES/S':>9} {'ROUND':>8} {'WAIT/STEP':>9}", "title"))
    ]
    lines += [_link_line(name, ends[name], places, plan, room) for name in sorted(ends)]
    return lines


def _stages(places: Sequence[RankPlace]) -> dict[tuple[int, int], list[RankPlace]]:
    found: dict[tuple[int, int], list[RankPlace]] = {}
    for place in places:
        found.setdefault((place.replica, place.stage), []).append(place)
    return found


def _hosts_width(width: int) -> int:
    return max(12, width - 66) if width < 100 else 30


def _busiest(flow: DeploymentFlow) -> float:
    return max((rank.busy_share for rank in flow.ranks), default=0.0)


def _stage_line(
    members: Sequence[RankPlace],
    flows: Sequence[RankFlow | None],
    *,
    name: str,
    predicted_s: float | None,
    busiest: float,
    cells: int,
    width: int,
) -> Line:
    hosts = ", ".join(f"{place.shard.host}/{place.shard.device}" for place in members)
    prefix = f" {fit(name, 5)} {fit(hosts, _hosts_width(width))} {fit(layers_words(members[0].layers), 13)} "
    known = [flow for flow in flows if flow is not None]
    if not known:
        return line(prefix, Span(f"{NONE} no two words of it to compare", "dim"))
    busy = max(flow.busy_share for flow in known)
    steps = [flow.busy_s_per_step for flow in known if flow.busy_s_per_step is not None]
    step = seconds_text(max(steps)) if steps else NONE
    predicted = seconds_text(predicted_s) if predicted_s is not None else NONE
    mark = Span(" ◀", "warn") if busy == busiest and busy > 0 else Span("")
    return line(
        prefix,
        Span(bar(busy, cells), "bar"),
        f" {percent_text(busy):>4}",
        f"{step:>9} {predicted:>9} {known[0].steps_per_s:>7.1f}",
        mark,
    )


def _bubble_lines(flow: DeploymentFlow, width: int) -> list[Line]:
    span = f"over {flow.span_s:.0f} s"
    if flow.bubble is None:
        share = NONE
        words = f"{span}: " + (
            "no request in it" if flow.served_share == 0 else "its gateway does not say how long it served"
        )
    else:
        share = percent_text(flow.bubble).strip()
        served = percent_text(flow.served_share or 0.0).strip()
        words = f"{span}, {served} of it with requests: the share of that in which stages waited for each other"
    head = f" bubble {share}  "
    first, *rest = wrap(words, width - len(head) - 1)
    return [
        line(" ", Span("bubble", "bold"), f" {share}  ", Span(first, "dim")),
        *(line(Span(" " * len(head) + text, "dim")) for text in rest),
    ]


def _link_line(name: str, ends: Sequence[LinkFlow], places: dict[str, RankPlace], plan: Plan, room: int) -> Line:
    sender, _, receiver = name.partition(">")
    members = [places[each] for each in (sender, receiver) if each in places]
    if not receiver:  # a tensor-parallel group, named by its stage
        members = [place for rank_id, place in places.items() if rank_id.rpartition("t")[0] == name]
    where = (" > " if receiver else " + ").join(f"{place.rank_id} {place.shard.host}" for place in members) or name
    carrier = carrier_among(plan, *(place.shard for place in members)) if members else NONE
    bytes_per_s = max(max(end.sent_bytes_per_s, end.received_bytes_per_s) for end in ends)
    round_trips = [end.round_trip_s for end in ends if end.round_trip_s is not None and end.rank_id != receiver]
    waits = [end.wait_s_per_step for end in ends if end.wait_s_per_step is not None and end.rank_id != sender]
    return line(
        f" {fit(where, room)} {carrier:<7} {rate_text(bytes_per_s):>9} "
        f"{seconds_text(max(round_trips)) if round_trips else NONE:>8} "
        f"{seconds_text(max(waits)) if waits else NONE:>9}"
    )
