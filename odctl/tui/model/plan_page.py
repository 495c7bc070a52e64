"""One plan, before it is applied or as it runs: layers against hosts, memory, what is predicted, and why."""

from __future__ import annotations

from agent.facts.cluster import ClusterFacts
from agent.planner.asked import asked_words
from agent.planner.compare import imbalance, plan_change
from agent.planner.plan import Plan, rank_places
from agent.planner.words import bytes_words, seconds_words
from odctl.fleet.snapshot import FleetSnapshot
from odctl.tui.model.columns import GAP, beside, stacked
from odctl.tui.model.marks import DEPLOYMENT_MARKS
from odctl.tui.model.plan_checks import check_lines, plan_checks
from odctl.tui.model.plan_figures import condition_words, figure_lines, plan_figures
from odctl.tui.model.plan_map import folds, layer_map
from odctl.tui.model.plans import NEW, PlanChoice, deployed_plan, measured_facts
from odctl.tui.model.text import Line, Span, line, line_width, wrap
from odctl.tui.model.units import plural

BESIDE_WIDTH = 120
"""From here on figures and checks stand beside each other."""


def plan_page(
    choice: PlanChoice, snapshot: FleetSnapshot | None, *, width: int, is_folded: bool | None = None
) -> tuple[Line, ...]:
    """The whole page. `is_folded` None: ranks that are alike fold where there are many."""
    plan = choice.plan
    does_fold = folds(plan) if is_folded is None else is_folded
    added = frozenset(_added_hosts(choice, snapshot))
    if width >= BESIDE_WIDTH:
        left = (width - GAP) * 11 // 20
        right = width - GAP - left
        figures = beside(
            _predicted(choice, left), _checks(choice, snapshot, right), left_width=left, right_width=right
        )
        middle: list[tuple[Line, ...]] = [figures]
    else:
        middle = [_predicted(choice, width), _checks(choice, snapshot, width)]
    return stacked(
        [
            _head(choice, snapshot, width),
            layer_map(plan, snapshot, width=width, is_folded=does_fold, added=added),
            change_lines(choice, snapshot, width),
            *middle,
            _why(plan, width),
        ]
    )


def _head(choice: PlanChoice, snapshot: FleetSnapshot | None, width: int) -> tuple[Line, ...]:
    plan, serving = choice.plan, choice.plan.serving
    if choice.status is not None:
        mark = DEPLOYMENT_MARKS[choice.status.state]
        state = Span(f"{mark.glyph} {mark.word}, generation {choice.status.generation}", mark.tone)
    else:
        said = f"new, {NEW}: w writes it" if choice.origin == NEW else f"preview of {choice.origin}"
        state = Span(said, "heal")
    places = rank_places(plan)
    num_layers = max(place.layers[1] for place in places)
    parts = [
        f"{plan.model.name} {serving.precision}",
        f"{num_layers} layers",
        plural(len(plan.replicas), "replica"),
        plural(len(plan.replicas[0].stages), "stage"),
        f"{plural(len({place.shard.host for place in places}), 'host')}, {plural(len(places), 'device')}",
        f"for {plan.objective.kind} by {plan.objective.strategy}",
        f"context {serving.context}, batch {serving.batch}",
        *([f"draft model {plan.draft.name} {bytes_words(plan.draft.weight_bytes)}"] if plan.draft else []),
        f"gateway {plan.gateway_host} {serving.listen}",
        f"plan {choice.plan_hash[:12]}",
    ]
    lines = [line(" ", Span(plan.name, "bold"), "  ", state)]
    for part in parts:
        if line_width(lines[-1]) + 3 + len(part) > width:
            lines.append(line(" "))
        gap = "   " if line_width(lines[-1]) > 1 else ""
        lines[-1] += line(f"{gap}{part}")
    if asked := asked_words(plan.asked):
        lines += [line(Span(f" {text}", "dim")) for text in wrap(f"asked for {', '.join(asked)}", width - 2)]
    if choice.error is not None:
        lines.append(line(Span(f" ▲ its controller does not answer: {choice.error.message}", "warn")))
    view = snapshot.deployment(plan.name) if snapshot is not None else None
    if view is not None and view.error is None and view.status is not None and view.status.apply_phase is not None:
        under_way = f" ↻ an apply of {plan.name} is under way: {view.status.apply_phase}"
        lines.append(line(Span(under_way, "heal"), Span("   v shows it   A aborts it", "dim")))
    return tuple(lines)


def _predicted(choice: PlanChoice, width: int) -> tuple[Line, ...]:
    """What the planner expects; beside it what was measured, where this plan runs."""
    plan, status = choice.plan, choice.status
    lines = [*figure_lines(plan_figures(plan, status), width)]
    lines += [line(Span(f"   {text}", "dim")) for text in wrap(condition_words(plan, status), width - 4)]
    bottleneck = f"bottleneck: {plan.predicted.bottleneck}"
    if len(plan.predicted.stage_s) > 1:
        bottleneck += f"; the slowest stage takes {imbalance(plan):.0%} longer than the mean one"
    for index, text in enumerate(wrap(bottleneck, width - 4)):
        lines.append(line(Span(f" {'◀' if index == 0 else ' '} {text}", "warn")))
    return tuple(lines)


def _checks(choice: PlanChoice, snapshot: FleetSnapshot | None, width: int) -> tuple[Line, ...]:
    return (line(Span(" CHECKS", "title")), *check_lines(plan_checks(choice, snapshot), width))


def change_lines(choice: PlanChoice, snapshot: FleetSnapshot | None, width: int) -> tuple[Line, ...]:
    """What applying this file would do to the deployment of its name."""
    if choice.status is not None or snapshot is None:
        return ()
    view = snapshot.deployment(choice.plan.name)
    old = deployed_plan(view.status) if view is not None and view.status is not None else None
    if view is not None and old is None:
        # It runs: that its plan cannot be read here is no reason to call all of this one new.
        why = "its controller does not answer" if view.status is None else "another release wrote its plan"
        return (line(Span(" change  ", "title"), Span(f"○ unknown: {choice.plan.name} runs, but {why}", "dim")),)
    if view is None or view.status is None or old is None:
        return (line(Span(" change  ", "title"), f"{choice.plan.name} is not deployed: all of it is new"),)
    if view.status.plan_hash == choice.plan_hash:
        return (
            line(
                Span(" change  ", "title"), Span(f"none: this plan runs, generation {view.status.generation}", "ok")
            ),
        )
    said = f"against running generation {view.status.generation}: " + ", ".join(
        _differences(old, choice.plan, measured_facts(snapshot, hosts={*old.hosts, *choice.plan.hosts}))
    )
    return tuple(
        line(Span(" change  " if index == 0 else "         ", "title"), text)
        for index, text in enumerate(wrap(said, width - 10))
    )


def _added_hosts(choice: PlanChoice, snapshot: FleetSnapshot | None) -> tuple[str, ...]:
    """Hosts that what runs under this name does not have; none where nothing runs, for then all are new."""
    view = snapshot.deployment(choice.plan.name) if snapshot is not None and choice.status is None else None
    old = deployed_plan(view.status) if view is not None and view.status is not None else None
    return plan_change(old, choice.plan).hosts_added if old is not None else ()


def _differences(old: Plan, new: Plan, facts: ClusterFacts) -> list[str]:
    change = plan_change(old, new, facts)
    moved, num_layers = len(change.layers_moved), max(place.layers[1] for place in rank_places(new))
    out = []
    if moved:
        verb = "moves" if moved == 1 else "move"
        out.append(f"{moved} of {num_layers} layers {verb}, {bytes_words(change.bytes_to_move)} to move")
        if change.fetch_s:
            links = "measured links" if change.is_link_measured else "links not measured"
            out.append(f"up to {seconds_words(change.fetch_s)} to bring them ({links})")
    out += [f"+{host}" for host in change.hosts_added] + [f"-{host}" for host in change.hosts_removed]
    if _devices(old) != _devices(new) and not out:
        out.append("other devices of the same hosts")
    if old.serving != new.serving:
        out.append("serving settings differ")
    if old.model.digest != new.model.digest:
        out.append(f"another model ({old.model.name} before)")
    return out or ["the same layers on the same devices"]


def _devices(plan: Plan) -> list[tuple[str, str]]:
    return [(place.shard.host, place.shard.device) for place in rank_places(plan)]


def _why(plan: Plan, width: int) -> tuple[Line, ...]:
    lines: list[Line] = []
    for reason in plan.why:
        for index, text in enumerate(wrap(reason, width - 8)):
            lines.append(line(Span(" why   " if index == 0 else "       ", "title"), text))
    return tuple(lines)
