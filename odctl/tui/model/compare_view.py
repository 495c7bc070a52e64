"""What a comparison shows: the plans, their comparison, and which of them is chosen. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from agent.facts.cluster import ClusterFacts
from agent.planner.compare import Comparison, compare_plans
from odctl.fleet.snapshot import FleetSnapshot
from odctl.tui.model.plans import PlanChoice, measured_facts


class CompareView(msgspec.Struct, frozen=True, kw_only=True):
    """What is compared. `pair` is of A and the chosen plan alone (of A and B while A is chosen)."""

    choices: tuple[PlanChoice, ...]
    whole: Comparison
    pair: Comparison
    chosen: int
    took_s: tuple[float | None, ...] = ()
    """Seconds that each plan's last apply took; empty: not asked yet, or not known."""

    @property
    def against(self) -> int:
        """The plan that bars and deltas are of."""
        return self.chosen or 1

    @property
    def choice(self) -> PlanChoice:
        return self.choices[self.chosen]


def compare_view(
    choices: Sequence[PlanChoice],
    *,
    facts: ClusterFacts | None,
    chosen: int = 1,
    took_s: tuple[float | None, ...] = (),
) -> CompareView:
    """Raises FleetError E106 for fewer than two plans, or more than four."""
    plans = [choice.plan for choice in choices]
    letters = [letter_of(index) for index in range(len(choices))]
    whole = compare_plans(plans, letters, facts=facts)
    other = chosen or 1
    pair = whole if len(plans) == 2 else compare_plans([plans[0], plans[other]], [letters[0], letters[other]])
    return CompareView(choices=tuple(choices), whole=whole, pair=pair, chosen=chosen, took_s=took_s)


def compared_facts(choices: Sequence[PlanChoice], snapshot: FleetSnapshot | None) -> ClusterFacts | None:
    """Of the hosts that the plans need, and of those that have their models; None before the first snapshot."""
    if snapshot is None:
        return None
    hosts = {host for choice in choices for host in (*choice.plan.hosts, choice.plan.model.source_host)}
    return measured_facts(snapshot, hosts=hosts)


def moved_on(choices: Sequence[PlanChoice], snapshot: FleetSnapshot | None) -> tuple[str, ...]:
    """Which of the plans that ran when they were compared run no more."""
    said = []
    for index, choice in enumerate(choices):
        if choice.status is None or snapshot is None:
            continue
        view = snapshot.deployment(choice.plan.name)
        if view is None:
            said.append(f"{letter_of(index)} does not run any more: {choice.plan.name} is destroyed")
        elif view.status is not None and view.status.generation != choice.status.generation:
            said.append(
                f"{choice.plan.name} runs generation {view.status.generation} by now; {letter_of(index)} is its "
                f"generation {choice.status.generation}"
            )
    return tuple(said)


def letter_of(index: int) -> str:
    return chr(ord("A") + index)


def origin_words(choice: PlanChoice) -> str:
    """`generation 3, serving` of what runs; else where it is from."""
    if choice.status is None:
        return choice.origin
    return f"generation {choice.status.generation}, {choice.status.state}"
