"""Measuring marked hosts, as the probes screen asks for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from agent.errors import FleetError
from agent.wire.probe import QUICK, ProbeSizes
from odctl.fleet import Fleet
from odctl.tui.feed import Feed

if TYPE_CHECKING:
    from odctl.probing import ProbeOutcome

OnProgress = Callable[[str], None]


class Prober(Protocol):
    """Raises FleetError; `on_progress` is called on the fleet's thread."""

    async def probe(
        self, feed: Feed, hosts: Sequence[str], on_progress: OnProgress, *, is_quick: bool
    ) -> ProbeOutcome: ...


class FleetProber:
    """As `odctl probe HOSTS --force`: what is known already is measured again."""

    async def probe(
        self, feed: Feed, hosts: Sequence[str], on_progress: OnProgress, *, is_quick: bool
    ) -> ProbeOutcome:
        from odctl.apply import read_facts
        from odctl.probing import probe_fleet

        async def work(fleet: Fleet) -> ProbeOutcome:
            facts, missing = await read_facts(fleet, feed.cluster)
            for name in hosts:
                if name in missing:
                    raise missing[name]
            chosen = tuple(host for host in facts.hosts if host.name in hosts)
            if not chosen:
                raise FleetError("E105", f"none of {', '.join(hosts)} is in the inventory any more")
            return await probe_fleet(
                fleet,
                msgspec.structs.replace(facts, hosts=chosen),
                sizes=QUICK if is_quick else ProbeSizes(),
                is_forced=True,
                even_serving=False,
                on_progress=on_progress,
            )

        return await feed.call(work)
