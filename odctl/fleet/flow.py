"""What a deployment did between two looks at it: rates are differences. Pure.

Ranks stamp their figures by clocks of their own (`RankStatus.at_s`), so a rank's busy share is exact whenever its
status was read. What has no stamp is reckoned by the time of the looks, and is as coarse as these are apart.
"""

from __future__ import annotations

import math

import msgspec

from agent.wire.agent import DeploymentStatus, RankView
from agent.wire.rank import LinkCount, RankStatus

MIN_SPAN_S = 1.0
"""Two looks that are closer together give no rates."""


class LinkFlow(msgspec.Struct, frozen=True, kw_only=True):
    """One end of one link, over the span of its rank."""

    name: str
    """`r0s0t0>r0s1t0` for a directed link, equal at both ends; a group's name for a tensor-parallel group."""
    rank_id: str
    sent_bytes_per_s: float
    received_bytes_per_s: float
    wait_share: float
    """Share of the time that the rank was blocked on it, 0 to 1."""
    wait_s_per_step: float | None
    """None without a step in the span."""
    round_trip_s: float | None


class RankFlow(msgspec.Struct, frozen=True, kw_only=True):
    """One rank over `span_s` seconds of its own clock."""

    rank_id: str
    span_s: float
    busy_share: float
    """Share of the time that it computed, waits on links left out, 0 to 1."""
    steps_per_s: float
    busy_s_per_step: float | None
    """None without a step in the span."""
    tokens_per_s: float
    """Tokens of all steps, prompts and guesses included."""
    links: tuple[LinkFlow, ...] = ()


class DeploymentFlow(msgspec.Struct, frozen=True, kw_only=True):
    """The ranks of which two comparable figures are known; a rank that was started anew in between is left out."""

    span_s: float
    ranks: tuple[RankFlow, ...]
    served_share: float | None = None
    """Share of the span in which a request waited or ran; None when the gateway does not say, or is another one."""
    bubble: float | None = None
    """Share of the served time in which a rank did not compute, mean over the ranks, 0 to 1: stages wait for each
    other, for links and for the gateway. None while nothing was served."""

    def rank(self, rank_id: str) -> RankFlow | None:
        return next((rank for rank in self.ranks if rank.rank_id == rank_id), None)


def flow_between(before: DeploymentStatus, after: DeploymentStatus, *, span_s: float) -> DeploymentFlow | None:
    """What happened from one status to the later one, `span_s` seconds apart. None when they cannot be compared."""
    if span_s < MIN_SPAN_S:
        return None
    earlier = {view.rank_id: view.status for view in before.ranks}
    ranks = tuple(
        flow for view in after.ranks if (flow := _rank_flow(earlier.get(view.rank_id), view, span_s)) is not None
    )
    served_share = _served_share(before, after, span_s)
    return DeploymentFlow(
        span_s=span_s, ranks=ranks, served_share=served_share, bubble=_bubble(ranks, served_share)
    )


def _rank_flow(before: RankStatus | None, view: RankView, span_s: float) -> RankFlow | None:
    after = view.status
    if before is None or after is None or before.pid != after.pid or after.busy_s < before.busy_s:
        return None
    if before.at_s > 0 and after.at_s > 0:
        span_s = after.at_s - before.at_s
    if span_s <= 0:
        return None
    steps = after.steps - before.steps
    busy_s = after.busy_s - before.busy_s
    held = {link.name: link for link in before.links}
    return RankFlow(
        rank_id=view.rank_id,
        span_s=span_s,
        busy_share=min(1.0, busy_s / span_s),
        steps_per_s=steps / span_s,
        busy_s_per_step=busy_s / steps if steps > 0 else None,
        tokens_per_s=(after.tokens - before.tokens) / span_s,
        links=tuple(
            _link_flow(held[link.name], link, view.rank_id, span_s=span_s, steps=steps)
            for link in after.links
            if link.name in held and _is_same_link(held[link.name], link)
        ),
    )


def _is_same_link(before: LinkCount, after: LinkCount) -> bool:
    """Counters begin at zero when a link is built anew."""
    return after.sent_bytes >= before.sent_bytes and after.received_bytes >= before.received_bytes


def _link_flow(before: LinkCount, after: LinkCount, rank_id: str, *, span_s: float, steps: int) -> LinkFlow:
    wait_s = max(0.0, after.wait_s - before.wait_s)
    return LinkFlow(
        name=after.name,
        rank_id=rank_id,
        sent_bytes_per_s=(after.sent_bytes - before.sent_bytes) / span_s,
        received_bytes_per_s=(after.received_bytes - before.received_bytes) / span_s,
        wait_share=min(1.0, wait_s / span_s),
        wait_s_per_step=wait_s / steps if steps > 0 else None,
        round_trip_s=after.round_trip_s,
    )


def _served_share(before: DeploymentStatus, after: DeploymentStatus, span_s: float) -> float | None:
    first, last = before.backend, after.backend
    if first is None or last is None or first.generation != last.generation or last.busy_s < first.busy_s:
        return None
    return min(1.0, (last.busy_s - first.busy_s) / span_s)


def _bubble(ranks: tuple[RankFlow, ...], served_share: float | None) -> float | None:
    if not ranks or not served_share:
        return None
    busy = math.fsum(rank.busy_share for rank in ranks) / len(ranks)
    return max(0.0, 1.0 - busy / served_share)
