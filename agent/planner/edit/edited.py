"""A plan under edit, and what edits are computed over. Frozen values; pure."""

from __future__ import annotations

from functools import cached_property

import msgspec

from agent.facts.cluster import ClusterFacts
from agent.facts.model import ModelSpec
from agent.planner.calibration import Calibration
from agent.planner.check import PlanProblem, check_plan
from agent.planner.evidence import calibrate
from agent.planner.plan import Asked, Plan


class Basis:
    """What edits are computed over: the model, its draft model if it has one, and the cluster as it is.

    `selected` are the hosts that the plan was asked for by a selector, for who plans it anew; None: all of them.
    """

    def __init__(
        self,
        spec: ModelSpec,
        facts: ClusterFacts,
        *,
        draft: ModelSpec | None = None,
        selected: tuple[str, ...] | None = None,
    ) -> None:
        self.spec = spec
        self.facts = facts
        self.draft = draft
        self.selected = selected

    @cached_property
    def calibration(self) -> Calibration:
        """Fitted once: it takes longer than an edit."""
        return calibrate(self.facts)


class Edited(msgspec.Struct, frozen=True, kw_only=True):
    """A plan under edit, with everything that is wrong with it."""

    plan: Plan
    planned: Plan
    """What it is told apart from: the plan as it was opened, or as the planner last made it."""
    problems: tuple[PlanProblem, ...] = ()
    excluded: tuple[str, ...] = ()
    pinned: tuple[str, ...] = ()
    """Hosts, sorted: what the planner is told when it is asked again. At first what the plan was asked for."""


def problems_of(plan: Plan, basis: Basis) -> tuple[PlanProblem, ...]:
    draft = basis.draft if plan.draft is not None else None
    return tuple(check_plan(plan, basis.spec, basis.facts, draft=draft))


def asked_hosts(asked: Asked | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Hosts that a plan was asked for to be without, and with. Single devices are the planner's alone."""
    if asked is None:
        return (), ()
    excluded = {name for name in asked.excluded if "/" not in name}
    return tuple(sorted(excluded)), tuple(sorted({name for name in asked.pinned if "/" not in name} - excluded))
