"""How states look: a glyph, a word and a tone each, so that none is told by colour alone."""

from __future__ import annotations

from typing import NamedTuple

from agent.facts.fault import Fault
from agent.wire.agent import DeploymentState, RankView
from odctl.fleet.snapshot import DeploymentView, HostState
from odctl.tui.model.text import Span, Tone

MARKED = "◆"
"""What the user has marked, for an action to be for."""


class Mark(NamedTuple):
    glyph: str
    word: str
    tone: Tone

    @property
    def span(self) -> Span:
        return Span(f"{self.glyph} {self.word}", self.tone)


HOST_MARKS: dict[HostState, Mark] = {
    "live": Mark("●", "live", "ok"),
    "stale": Mark("▲", "stale", "warn"),
    "lost": Mark("✗", "lost", "fault"),
    "unreachable": Mark("✗", "unreachable", "fault"),
    "connecting": Mark("○", "connecting", "dim"),
}
HOST_ORDER: dict[HostState, int] = {"lost": 0, "unreachable": 1, "stale": 2, "connecting": 3, "live": 4}
"""Worst first, for sorting."""

DEPLOYMENT_MARKS: dict[DeploymentState, Mark] = {
    "serving": Mark("●", "serving", "ok"),
    "healing": Mark("↻", "healing", "heal"),
    "degraded": Mark("▲", "degraded", "warn"),
    "stopped": Mark("○", "stopped", "dim"),
    "failed": Mark("✗", "failed", "fault"),
}
UNKNOWN = Mark("○", "unknown", "dim")


def deployment_mark(view: DeploymentView) -> Mark:
    """Unknown when its controller does not answer, whatever it said before."""
    if view.status is None or view.error is not None:
        return UNKNOWN
    return DEPLOYMENT_MARKS[view.status.state]


def rank_mark(rank: RankView) -> Mark:
    """The state of one rank as its controller sees it."""
    if rank.status is None:
        return Mark("✗", "lost" if rank.trouble else "no word", "fault")
    match rank.status.state:
        case "loading":
            return Mark("▒", f"loading {rank.status.loaded_fraction:.0%}", "heal")
        case "loaded":
            return Mark("▓", "loaded", "heal")
        case "linked":
            return Mark("●", "linked", "ok")
        case "failed":
            return Mark("✗", "failed", "fault")


def fault_mark(fault: Fault) -> Mark:
    if fault.healed_at_s is not None:
        return Mark("█", "healed", "ok")
    return Mark("▲", "warning", "warn") if fault.severity == "warning" else Mark("✗", "open", "fault")
