"""Journals -> lanes and steps. Pure and deterministic.

A journal's own order is the truth about its events: a story is told by the journal of whoever observed the trouble,
in that order, whatever its clock did. Other journals only add to it (`attach`), by deployment and generation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import assert_never

import msgspec

from agent.facts.fault import Fault
from odctl.timeline.attach import attach
from odctl.timeline.draft import Draft, deployment_draft, fault_draft
from odctl.timeline.journal import HostJournal
from odctl.timeline.kinds import (
    AgentStarted,
    AgentStopped,
    ApplyRolledBack,
    BackendBroken,
    DeploymentStateChanged,
    Destroyed,
    FaultHealed,
    FaultObserved,
    GenerationCommitted,
    GenerationServed,
    Told,
    read_body,
)
from odctl.timeline.story import Condition, Lane, LaneKey, Phase, Silence, Step, Story, Timeline, began_order

NO_ANSWER = "no_answer"
"""The kind of trouble that we see ourselves: a host does not answer us."""
SAME_MOMENT_S = 2.0
"""A deployment's state changes at once when its faults are closed."""

ReadBefore = dict[str, tuple[HostJournal, tuple[list[Told], int]]]
"""By host: a journal, and what was read in it."""


def fold(
    journals: Mapping[str, HostJournal],
    *,
    faults: Sequence[Fault] = (),
    silent: Mapping[str, Silence] | None = None,
    read_before: ReadBefore | None = None,
) -> Timeline:
    """Everything that the journals tell of trouble.

    `faults` are those that agents report now: one whose events are lost is told by its record alone. `silent` are
    hosts that do not answer us: what they would say since then is unknown, and their silence is a trouble itself.
    `read_before` spares whoever folds again and again the reading of journals that have not changed; it is filled.
    """
    silent = silent or {}
    num_not_understood = 0
    drafts: dict[str, Draft] = {}
    elsewhere: list[Told] = []
    for host in sorted(journals):
        told, lost = _understood(host, journals[host], {} if read_before is None else read_before)
        num_not_understood += lost
        _tell(told, drafts)
        elsewhere += told
    for fault in faults:
        _add_record(fault, drafts, journals.get(fault.observed_by, HostJournal()))
    stories = [draft.story() for draft in attach(drafts.values(), elsewhere)]
    stories = [_as_known(story, silent) for story in stories] + [
        _silence(host, silence) for host, silence in sorted(silent.items())
    ]
    return Timeline(
        lanes=_lanes(stories, journals, silent),
        unread={host: journal.error for host, journal in sorted(journals.items()) if journal.error},
        clocks={host: journal.ahead_s for host, journal in sorted(journals.items()) if journal.ahead_s is not None},
        num_not_understood=num_not_understood,
    )


def _understood(host: str, journal: HostJournal, read_before: ReadBefore) -> tuple[list[Told], int]:
    """Events of known kinds, and how many of those could not be read."""
    known = read_before.get(host)
    if known is not None and known[0] is journal:
        return known[1]
    read_before[host] = (journal, _read(host, journal))
    return read_before[host][1]


def _read(host: str, journal: HostJournal) -> tuple[list[Told], int]:
    told: list[Told] = []
    lost = 0
    for event in journal.events:
        try:
            body = read_body(event)
        except msgspec.DecodeError:
            lost += 1
            continue
        if body is not None:
            told.append(Told(host=host, event=event, at_s=journal.ours_s(event.at_s), body=body))
    return told, lost


class _Deployment:
    """What one journal has open of a deployment while it is read."""

    def __init__(self) -> None:
        self.faults: list[Draft] = []
        self.own: Draft | None = None
        self.just_closed: list[Draft] = []
        """Closed since the state changed last: the state that follows belongs to them, too."""

    @property
    def concerned(self) -> list[Draft]:
        """Those that a step of the deployment is about. Of warnings nothing is decided: they end by themselves."""
        return [*(draft for draft in self.faults if draft.severity == "fault"), *self.ending]

    @property
    def ending(self) -> list[Draft]:
        """Those that end with the deployment's trouble."""
        return [*self.just_closed, *([self.own] if self.own else [])]

    def forget_closed(self, now_s: float) -> None:
        """What is said later than this is about something else."""
        self.just_closed = [
            draft
            for draft in self.just_closed
            if draft.ended_s is not None and abs(now_s - draft.ended_s) <= SAME_MOMENT_S
        ]


def _tell(told: Iterable[Told], drafts: dict[str, Draft]) -> None:
    """The stories of one journal, in its own order."""
    by_name: dict[str, _Deployment] = {}
    for each in told:
        name = each.event.deployment
        known = by_name.setdefault(name, _Deployment())
        known.forget_closed(each.at_s)
        body = each.body
        match body:
            case FaultObserved():
                _observe(each, body, drafts, known)
            case FaultHealed():
                _heal(each, body, drafts, known)
            case DeploymentStateChanged():
                _change_state(each, body, drafts, known)
            case GenerationServed():
                _serve(each, body, known)
            case ApplyRolledBack():
                _roll_back(each, body, drafts)
            case Destroyed():
                by = f" by {body.holder}" if body.holder else ""
                _end(known, each, f"the deployment was destroyed{by}")
            case AgentStarted():
                for other in by_name.values():
                    # A controller that starts takes its deployments to serve until it sees otherwise.
                    _end(other, each, f"its controller {each.host} was started anew")
            case GenerationCommitted() | BackendBroken() | AgentStopped():
                pass  # of what other journals tell: `attach` knows whose they are
            case _:
                assert_never(body)


def _observe(each: Told, body: FaultObserved, drafts: dict[str, Draft], known: _Deployment) -> None:
    before = drafts.get(body.fault_id)
    if before is not None:
        # Two members may see a controller's silence under one id: one trouble, seen twice.
        before.attach(each.host, each.at_s, "detected", f"{each.host} saw it, too")
        return
    draft = fault_draft(body, host=each.host, shift_s=each.at_s - each.event.at_s, told_at_s=each.at_s)
    drafts[body.fault_id] = draft
    if draft.ended_s is None:
        known.faults.append(draft)


def _heal(each: Told, body: FaultHealed, drafts: dict[str, Draft], known: _Deployment) -> None:
    draft = drafts.get(body.fault_id)
    if draft is None or draft.ended_s is not None:
        return  # its begin is older than what is known, or another member's word came first
    draft.tell(each.at_s, "closed", "over", "healed", host=each.host)
    draft.ended_s = each.at_s
    if draft in known.faults:
        known.faults.remove(draft)
        if draft.severity == "fault":
            known.just_closed.append(draft)


def _change_state(each: Told, body: DeploymentStateChanged, drafts: dict[str, Draft], known: _Deployment) -> None:
    name = each.event.deployment
    if body.phase != "serving" and known.own is None:
        known.own = deployment_draft(
            each.event, host=each.host, at_s=each.at_s, kind=body.phase, message=body.reason
        )
        drafts[known.own.story_id] = known.own
    because = f": {body.reason}" if body.reason else ""
    match body.phase:
        case "healing":
            what = f"{name} is to be healed{because}"
            _step(known.concerned, each, "decided", what, "acting", decided_by=each.host)
        case "rebuilding":
            _step(known.concerned, each, "acted", f"links of {name} are being built anew", "healing")
        case "serving":
            _end(known, each, f"{name} serves again")
        case _:
            what = f"{name} is {body.phase}{because}"
            _step(known.concerned, each, "decided", what, None, decided_by=each.host)
            if known.own is not None:
                known.own.kind, known.own.message = body.phase, body.reason
                known.own.way_out = body.way_out
    known.just_closed = []


def _serve(each: Told, body: GenerationServed, known: _Deployment) -> None:
    generation = each.event.generation
    for draft in known.concerned:
        draft.healed_by.add(generation)
    if body.cause == "healing":
        what = f"generation {generation} is linked, was checked and serves"
        _step(known.concerned, each, "verified", what, "healing")
        return
    by = f" by {body.by}" if body.by else ""
    what = f"{body.cause}{by}: generation {generation} serves"
    _step(known.faults, each, "acted", what, "healing")
    _end(known, each, what)


def _roll_back(each: Told, body: ApplyRolledBack, drafts: dict[str, Draft]) -> None:
    """An apply that failed: over as soon as it is told, since what served before goes on."""
    phase = f" in its phase `{body.phase}`" if body.phase else ""
    message = f"the apply of generation {each.event.generation} failed{phase}: {body.reason}"
    draft = deployment_draft(each.event, host=each.host, at_s=each.at_s, kind="apply_rolled_back", message=message)
    draft.tell(each.at_s, "closed", "it was rolled back; what served before serves on", "healed")
    draft.ended_s = each.at_s
    drafts[draft.story_id] = draft


def _step(
    drafts: Iterable[Draft],
    each: Told,
    phase: Phase,
    what: str,
    condition: Condition | None,
    *,
    decided_by: str = "",
) -> None:
    """The step on all of them; None: each is as bad as it was when it began. One that is over stays healed,
    whatever is said of its deployment after that.
    """
    for draft in drafts:
        draft.decided_by = decided_by or draft.decided_by
        is_over = draft.ended_s is not None
        draft.tell(
            each.at_s,
            "closed" if is_over else phase,
            what,
            "healed" if is_over else condition or draft.severity,
        )


def _end(known: _Deployment, each: Told, what: str) -> None:
    """The deployment's trouble is over, and so is the story of what was closed just before."""
    _step(known.ending, each, "closed", what, "healed")
    if known.own is not None:
        known.own.ended_s = each.at_s
    known.own = None
    known.just_closed = []


def _add_record(fault: Fault, drafts: dict[str, Draft], journal: HostJournal) -> None:
    """What an agent says of a fault now, beside or instead of its events."""
    draft = drafts.get(fault.fault_id)
    if draft is None:
        body = msgspec.convert(msgspec.structs.asdict(fault), type=FaultObserved)
        at_s = journal.ours_s(fault.observed_at_s)
        draft = fault_draft(body, host=fault.observed_by, shift_s=at_s - fault.observed_at_s, told_at_s=at_s)
        drafts[fault.fault_id] = draft
    elif fault.healed_at_s is not None and draft.ended_s is None:
        draft.ended_s = journal.ours_s(fault.healed_at_s)
        draft.tell(draft.ended_s, "closed", "over", "healed")


def _as_known(story: Story, silent: Mapping[str, Silence]) -> Story:
    """Open ones whose observer is silent may be over long since: nobody tells."""
    silence = silent.get(story.observed_by)
    if silence is None or not story.is_open:
        return story
    return msgspec.structs.replace(story, unknown_since_s=silence.since_s or story.steps[-1].at_s)


def _silence(host: str, silence: Silence) -> Story:
    """A host that does not answer us, as we see it: no journal tells of that."""
    message = "it never answered us" if silence.since_s is None else "it does not answer us"
    steps: tuple[Step, ...] = ()
    if silence.since_s is not None:
        what = f"{message}: {silence.why}"
        steps = (Step(phase="detected", at_s=silence.since_s, host="", what=what, condition="fault"),)
    return Story(
        story_id=f"{NO_ANSWER}|{host}",
        lane=LaneKey(scope="host", host=host),
        is_fault=False,
        kind=NO_ANSWER,
        severity="fault",
        message=message,
        evidence={"connection": silence.why},
        way_out=silence.way_out,
        observed_by="",
        host=host,
        began_s=silence.since_s,
        steps=steps,
    )


def _lanes(
    stories: Sequence[Story], journals: Mapping[str, HostJournal], silent: Mapping[str, Silence]
) -> tuple[Lane, ...]:
    """One a faulty thing; the newest trouble first, and of equals by name."""
    by_key: dict[LaneKey, list[Story]] = {}
    for story in sorted(stories, key=began_order):
        by_key.setdefault(story.lane, []).append(story)
    lanes = [_lane(key, of_it, journals, silent) for key, of_it in by_key.items()]
    return tuple(sorted(lanes, key=lambda lane: (-(lane.newest.began_s or 0.0), lane.key)))


def _lane(
    key: LaneKey, stories: list[Story], journals: Mapping[str, HostJournal], silent: Mapping[str, Silence]
) -> Lane:
    """It is as well known as whoever tells of it: from the oldest event on, until the last of them fell silent."""
    tellers = {story.observed_by for story in stories if story.observed_by}
    told_of = [journals[host].known_from_s for host in (*tellers, key.host) if host in journals]
    starts = [start for start in (*told_of, *(story.began_s for story in stories)) if start is not None]
    still = [host for host in tellers if host not in silent]
    ends = [silence.since_s or 0.0 for host in tellers if (silence := silent.get(host)) is not None]
    return Lane(
        key=key,
        stories=tuple(stories),
        known_from_s=min(starts, default=None),
        unknown_since_s=None if still or not ends else max(ends),
    )
