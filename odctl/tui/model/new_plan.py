"""What is asked of a new plan, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from odctl.tui.model.units import plural

if TYPE_CHECKING:
    from odctl.planning import PlanAsk

SHOWN_HOSTS = 6


def first_words(hosts: Sequence[str]) -> str:
    """What the dialog opens with: what most plans are asked for, over the marked hosts where there are any."""
    chosen = f" hosts={','.join(hosts)}" if hosts else ""
    return f"objective=latency context=2048 batch=8{chosen}"


def asked_lines(ask: PlanAsk) -> tuple[str, ...]:
    """The words said back, so that one sees what was understood."""
    names = ask.hosts.split(",")
    hosts = plural(len(names), "named host") if len(names) > SHOWN_HOSTS else f"hosts {', '.join(names)}"
    where = "all hosts" if ask.hosts == "all" else hosts
    how = "every strategy competes" if ask.strategy == "adaptive" else f"by {ask.strategy}"
    size = "as many replicas as fit" if ask.replicas == "max" else plural(int(ask.replicas), "replica")
    return (
        f"for {ask.objective}, {how}, {size} over {where}",
        f"{ask.batch:,} sequences of up to {ask.context:,} tokens, served at {ask.listen}",
    )
