"""A story while it is told: events add steps to it. What it becomes is a frozen `Story`."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from agent.wire.agent import Event
from odctl.timeline.kinds import FaultObserved
from odctl.timeline.story import Condition, LaneKey, Phase, Step, Story

_OF_HOSTS = ("agent_lost", "host_lost")
SHOWN_EVIDENCE = 60
"""Characters of one piece of evidence within a step."""


class Draft:
    """One trouble so far. `host` tells it: its clock is the story's."""

    def __init__(
        self,
        story_id: str,
        *,
        lane: LaneKey,
        is_fault: bool,
        kind: str,
        severity: Literal["warning", "fault"],
        message: str,
        host: str,
        faulty_host: str,
        deployment: str,
        generation: int,
        began_s: float,
    ) -> None:
        self.story_id = story_id
        self.lane = lane
        self.is_fault = is_fault
        self.kind = kind
        self.severity: Literal["warning", "fault"] = severity
        self.message = message
        self.host = host
        self.faulty_host = faulty_host
        self.deployment = deployment
        self.generation = generation
        self.began_s = began_s
        self.ended_s: float | None = None
        self.rank_id = ""
        self.evidence: dict[str, Any] = {}
        self.way_out = ""
        self.decided_by = ""
        self.requests_failed: int | None = None
        self.healed_by: set[int] = set()
        """Generations that came to serve while it was told."""
        self._told: list[Step] = []
        """By the story's own journal, in its order."""
        self._attached: list[Step] = []
        """By the others, and by events of its own that do not say whose they are: placed by their time."""

    @property
    def condition(self) -> Condition:
        return self._told[-1].condition if self._told else self.severity

    def tell(self, at_s: float, phase: Phase, what: str, condition: Condition, *, host: str = "") -> None:
        """One step more of the story's own journal, or of another that saw the same. From there on it stands so."""
        host = host or self.host
        step = Step(phase=phase, at_s=at_s, host=host, what=what, condition=condition, is_exact=host == self.host)
        self._told.append(step)

    def attach(self, host: str, at_s: float, phase: Phase, what: str) -> None:
        """A step that `host` tells; how the thing stands it does not change."""
        is_exact = host == self.host
        step = Step(phase=phase, at_s=at_s, host=host, what=what, condition=self.severity, is_exact=is_exact)
        self._attached.append(step)

    def story(self) -> Story:
        return Story(
            story_id=self.story_id,
            lane=self.lane,
            is_fault=self.is_fault,
            kind=self.kind,
            severity=self.severity,
            message=self.message,
            evidence=self.evidence,
            way_out=self.way_out,
            observed_by=self.host,
            host=self.faulty_host,
            deployment=self.deployment,
            generation=self.generation,
            rank_id=self.rank_id,
            began_s=self.began_s,
            ended_s=self.ended_s,
            decided_by=self.decided_by,
            requests_failed=self.requests_failed,
            steps=self._settled_steps(),
        )

    def _settled_steps(self) -> tuple[Step, ...]:
        """Own steps as they were told, the others between them by their time.

        Nothing is being diagnosed any more where no step of its own followed: it stands open.
        """
        out = list(self._told)
        if out[-1].condition == "diagnosing":
            out[-1] = msgspec.structs.replace(out[-1], condition=self.severity)
        for step in sorted(self._attached, key=lambda step: step.at_s):
            place = next((at for at in range(len(out), 0, -1) if out[at - 1].at_s <= step.at_s), 0)
            before = out[place - 1].condition if place else self.severity
            out.insert(place, msgspec.structs.replace(step, condition=before))
        return tuple(out)


def fault_draft(body: FaultObserved, *, host: str, shift_s: float, told_at_s: float) -> Draft:
    """A fault as it was observed. `shift_s` turns times of the observer's clock into ours."""
    began_s = body.observed_at_s + shift_s
    draft = Draft(
        body.fault_id,
        lane=_lane_of(body),
        is_fault=True,
        kind=body.kind,
        severity=body.severity,
        message=body.message,
        host=host,
        faulty_host=body.host,
        deployment=body.deployment,
        generation=body.generation,
        began_s=began_s,
    )
    draft.rank_id = body.rank_id
    draft.evidence = body.evidence
    draft.way_out = body.way_out
    draft.tell(began_s, "detected", f"{body.observed_by} saw {_seen(body)}", body.severity)
    diagnosed: Condition = "warning" if body.severity == "warning" else "diagnosing"
    draft.tell(max(began_s, told_at_s), "diagnosed", f"{body.kind}: {body.message}", diagnosed)
    if body.healed_at_s is not None:
        draft.ended_s = body.healed_at_s + shift_s
        draft.tell(draft.ended_s, "closed", "over", "healed")
    return draft


def deployment_draft(event: Event, *, host: str, at_s: float, kind: str, message: str) -> Draft:
    """Trouble of a deployment as a whole, as its controller tells it."""
    draft = Draft(
        f"{event.deployment}|{host}|{event.event_id}",
        lane=LaneKey(scope="deployment", host="", deployment=event.deployment),
        is_fault=False,
        kind=kind,
        severity="warning",
        message=message,
        host=host,
        faulty_host=host,
        deployment=event.deployment,
        generation=event.generation,
        began_s=at_s,
    )
    draft.tell(at_s, "detected", f"{event.deployment} is {kind.replace('_', ' ')}", "warning")
    return draft


def _lane_of(body: FaultObserved) -> LaneKey:
    """The smallest thing that the fault names."""
    device = body.evidence.get("device")
    if body.kind == "gateway_lost" and body.deployment:
        return LaneKey(scope="deployment", host="", deployment=body.deployment)
    if body.rank_id:
        return LaneKey(scope="rank", host=body.host, part=body.rank_id, deployment=body.deployment)
    if device and body.kind not in _OF_HOSTS:
        return LaneKey(scope="device", host=body.host, part=str(device))
    return LaneKey(scope="host", host=body.host)


def _seen(body: FaultObserved) -> str:
    """The evidence in short, as it was reported; it stands in full beside the steps."""
    told = ", ".join(f"{name} {_short(str(value))}" for name, value in sorted(body.evidence.items()))
    return told or "it, and reported no evidence"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_EVIDENCE else text[: SHOWN_EVIDENCE - 1] + "…"
