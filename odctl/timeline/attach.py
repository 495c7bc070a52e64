"""What other journals say of a story: the gateway's, the members', the faulty host's own agent's.

They are matched by deployment, generation and host. Their times are read off other clocks, so time only tells apart
what those leave open, and generously.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from odctl.timeline.draft import Draft
from odctl.timeline.kinds import AgentStarted, AgentStopped, BackendBroken, GenerationCommitted, Told

NEAR_S = 30.0
"""Within so much of a story another journal's event may belong to it."""


def attach(drafts: Iterable[Draft], told: Sequence[Told]) -> list[Draft]:
    """The drafts, each with the steps that events of any journal add to it."""
    found = list(drafts)
    by_deployment: dict[str, list[Draft]] = {}
    by_host: dict[str, list[Draft]] = {}
    for draft in found:
        by_deployment.setdefault(draft.deployment, []).append(draft)
        if draft.lane.scope == "host":
            by_host.setdefault(draft.faulty_host, []).append(draft)
    for each in told:
        host = each.host
        match each.body:
            case BackendBroken() as body:
                for draft in by_deployment.get(each.event.deployment, ()):
                    if draft.generation == each.event.generation and _is_near(draft, each.at_s):
                        _break(draft, host, each.at_s, body)
            case AgentStarted() as body:
                for draft in by_host.get(host, ()):
                    if _is_near(draft, each.at_s):
                        release = f", release {body.release}" if body.release else ""
                        what = f"the agent of {host} started (pid {body.pid}{release})"
                        draft.attach(host, each.at_s, "acted", what)
            case AgentStopped():
                for draft in by_host.get(host, ()):
                    if _is_near(draft, each.at_s):
                        what = f"the agent of {host} was stopped in order"
                        draft.attach(host, each.at_s, "detected", what)
            case _:
                continue
    _take_over(by_deployment, told)
    return found


def _break(draft: Draft, host: str, at_s: float, body: BackendBroken) -> None:
    """The gateway's own word, with the streams that it cost."""
    draft.requests_failed = (draft.requests_failed or 0) + body.failed_streams
    streams = "1 stream" if body.failed_streams == 1 else f"{body.failed_streams} streams"
    what = f"the gateway on {host} lost {body.rank_id or 'its ranks'}: {body.error.message}; {streams} ended"
    draft.attach(host, at_s, "detected", what)


def _take_over(by_deployment: dict[str, list[Draft]], told: Sequence[Told]) -> None:
    """Members that took over the generation which a story's healing made: one step for all of them."""
    members: dict[tuple[str, int], dict[str, float]] = {}
    for each in told:
        if isinstance(each.body, GenerationCommitted):
            key = (each.event.deployment, each.event.generation)
            members.setdefault(key, {})[each.host] = each.at_s
    for (deployment, generation), times in members.items():
        for draft in by_deployment.get(deployment, ()):
            near = {host: at_s for host, at_s in times.items() if _is_near(draft, at_s)}
            if generation in draft.healed_by and near:
                last = max(near, key=lambda host: near[host])
                what = f"{', '.join(sorted(near))} took over generation {generation}"
                draft.attach(last, near[last], "acted", what)


def _is_near(draft: Draft, at_s: float) -> bool:
    """An open story has no end yet."""
    return draft.began_s - NEAR_S <= at_s and (draft.ended_s is None or at_s <= draft.ended_s + NEAR_S)
