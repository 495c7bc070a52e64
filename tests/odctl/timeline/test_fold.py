"""From journals to lanes and steps: attribution, clocks, what is unknown, and what is passed over."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from odctl.timeline import KINDS, HostJournal, Silence, Story, Timeline, fold
from odctl.timeline.fold import NO_ANSWER
from odctl.timeline.journal import ClockDistance
from odctl.timeline.kinds import read_body, slim
from tests.odctl.timeline.events import T0, Journals, fault_of, killed_rank, recorded


def story_of(timeline: Timeline, story_id: str) -> Story:
    return next(story for story in timeline.stories if story.story_id == story_id)


def phases(story: Story) -> list[str]:
    return [step.phase for step in story.steps]


def offsets(story: Story) -> list[float]:
    assert story.began_s is not None
    return [round(step.at_s - story.began_s, 2) for step in story.steps]


def test_a_killed_rank_is_a_lane_with_every_step_from_its_detection_to_its_close() -> None:
    timeline = fold(killed_rank().read())
    story = story_of(timeline, "F-1")
    assert (story.lane.label, story.lane.scope) == ("h3 r1s1t0", "rank")
    assert phases(story) == [
        "detected",
        "detected",
        "diagnosed",
        "decided",
        "acted",
        "verified",
        "acted",
        "closed",
        "closed",
    ]
    assert offsets(story) == [-0.2, 0.0, 0.0, 0.0, 2.0, 3.0, 3.03, 3.1, 3.1]
    said = [step.what for step in story.steps]
    assert said[0] == "the gateway on h2 lost r1s1t0: the channel to r1s1t0 ended; 4 streams ended"
    assert said[1] == "h1 saw pid 41, signal SIGKILL"
    assert said[2] == "rank_lost: rank r1s1t0 on h3 is gone"
    assert said[3] == "chat is to be healed: restarting r1s1t0"
    assert said[5] == "generation 2 is linked, was checked and serves"
    assert said[6] == "h1, h2, h3 took over generation 2"
    assert said[8] == "chat serves again"
    assert (story.decided_by, story.requests_failed, story.requests_replayed) == ("h1", 4, None)
    assert (story.condition, story.is_open) == ("healed", False)
    assert [step.condition for step in story.steps if step.is_exact] == [
        "fault",
        "diagnosing",
        "acting",
        "healing",
        "healing",
        "healed",
        "healed",
    ]


def test_the_deployment_that_suffered_has_a_lane_of_its_own() -> None:
    timeline = fold(killed_rank().read())
    assert [lane.key.label for lane in timeline.lanes] == ["chat", "h3 r1s1t0"]
    chat = timeline.lanes[0].newest
    assert not chat.is_fault
    assert chat.condition == "healed"
    assert "decided" in phases(chat)
    assert "verified" in phases(chat)


def test_only_steps_of_other_hosts_are_estimates() -> None:
    story = story_of(fold(killed_rank().read()), "F-1")
    assert {step.host for step in story.steps if not step.is_exact} <= {"h2", "h3"}
    assert all(step.is_exact for step in story.steps if step.host == "h1")


@pytest.mark.parametrize(
    "clocks", [{"h1": 3600.0}, {"h2": -90.0, "h3": 47.5}, {"h1": -7200.0, "h2": 7200.0, "h3": 1.0}]
)
def test_clocks_that_are_off_change_neither_steps_nor_their_order(clocks: dict[str, float]) -> None:
    right = story_of(fold(killed_rank().read()), "F-1")
    timeline = fold(killed_rank(**clocks).read())
    story = story_of(timeline, "F-1")
    assert [step.what for step in story.steps] == [step.what for step in right.steps]
    assert offsets(story) == pytest.approx(offsets(right), abs=0.011)
    assert story.began_s == pytest.approx(T0 + 0.3), "by our clock, whatever the host's says"
    assert timeline.clocks == pytest.approx({"h1": 0.0, "h2": 0.0, "h3": 0.0} | clocks)


def test_with_unknown_clocks_a_story_keeps_the_steps_of_its_own_journal() -> None:
    """The gateway's word is hours off then: it cannot be told whose it is, and is left out."""
    told = killed_rank(h2=7200.0).read(are_clocks_known=False)
    story = story_of(fold(told), "F-1")
    assert [step.phase for step in story.steps if step.is_exact] == [
        *("detected", "diagnosed", "decided", "acted", "verified", "closed", "closed")
    ]
    assert story.requests_failed is None


def test_a_clock_that_is_set_back_while_a_rank_heals_turns_no_step_round() -> None:
    told = killed_rank()
    events = told.events["h1"]
    back = [msgspec.structs.replace(each, at_s=each.at_s - 100) if each.event_id > 4 else each for each in events]
    told.events["h1"] = back
    story = story_of(fold(told.read()), "F-1")
    assert [step.phase for step in story.steps if step.is_exact] == [
        *("detected", "diagnosed", "decided", "acted", "verified", "closed", "closed")
    ]
    assert story.condition == "healed"


def test_unknown_kinds_are_passed_over() -> None:
    told = killed_rank()
    plain = fold(told.read())
    for host in ("h1", "h2"):
        told.tell(host, 3.35, "RequestsMoved", {"to": ["h2"], "count": 11})
        told.tell(host, 3.36, "PlanMeasured", {"arm": "pipeline 2"})
    assert fold(told.read()) == plain


def test_a_body_of_another_release_costs_its_event_alone() -> None:
    told = killed_rank()
    told.tell("h1", 3.6, "FaultObserved", {"fault": "F-9"})
    told.tell("h1", 3.7, "FaultHealed", ["F-9"])
    timeline = fold(told.read())
    assert timeline.num_not_understood == 2
    assert story_of(timeline, "F-1").condition == "healed"


def test_a_fault_of_a_kind_of_a_later_release_is_told_in_its_own_words() -> None:
    told = Journals().fault("h1", 0.0, "F-2", "disk_full", rank_id="", message="/var is full", evidence={"free": 0})
    (lane,) = fold(told.read()).lanes
    assert (lane.key.scope, lane.key.label, lane.newest.kind) == ("host", "h3", "disk_full")
    assert lane.newest.condition == "fault", "nothing was decided about it: it stands open, and is not diagnosed"


def test_a_device_that_the_evidence_names_has_its_own_lane() -> None:
    told = Journals().fault("h1", 0.0, "F-3", "device_lost", rank_id="", evidence={"device": "cuda:2", "xid": 79})
    assert fold(told.read()).lanes[0].key.label == "h3 cuda:2"


def test_a_degraded_deployment_stands_open_with_its_reason_and_way_out() -> None:
    told = Journals()
    told.fault("h1", 0.0, "F-4", "host_lost", rank_id="", message="h3 and its ranks are silent", way_out="bring it")
    told.state("h1", 0.1, "degraded", "lost: h3", "bring h3 back")
    timeline = fold(told.read())
    fault = story_of(timeline, "F-4")
    assert (fault.condition, fault.decided_by) == ("fault", "h1")
    assert fault.steps[-1].what == "chat is degraded: lost: h3"
    chat = next(lane for lane in timeline.lanes if lane.key.scope == "deployment").newest
    assert (chat.kind, chat.condition, chat.way_out) == ("degraded", "warning", "bring h3 back")


def test_of_a_warning_nothing_is_decided_and_later_healing_is_not_its_own() -> None:
    told = Journals()
    told.fault("h1", 0.0, "W-1", "agent_lost", rank_id="", severity="warning", message="h3's agent is silent")
    told.tell("h3", 1.5, "AgentStarted", {"pid": 77, "release": "r2"}, deployment="", generation=0)
    told.healed("h1", 2.0, "W-1", 2.0)
    told.fault("h1", 600.0, "F-5", "rank_lost")
    told.state("h1", 600.0, "healing", "restarting r1s1t0")
    story = story_of(fold(told.read()), "W-1")
    assert phases(story) == ["detected", "diagnosed", "acted", "closed"]
    assert story.steps[2].what == "the agent of h3 started (pid 77, release r2)"
    assert story.condition == "healed"


def test_a_controllers_silence_seen_by_two_members_is_one_trouble() -> None:
    told = Journals()
    for host, at_s in (("h2", 0.0), ("h3", 0.2)):
        told.fault(host, at_s, "chat-h1-17", "agent_lost", rank_id="", host="h1", severity="warning")
    told.healed("h2", 4.0, "chat-h1-17", 4.0).healed("h3", 4.5, "chat-h1-17", 4.3)
    (lane,) = fold(told.read()).lanes
    (story,) = lane.stories
    assert [step.what for step in story.steps if not step.is_exact] == ["h3 saw it, too"]
    assert story.ended_s == T0 + 4.0


def test_an_apply_that_was_rolled_back_is_told_with_its_reason() -> None:
    told = Journals().tell("h1", 0.0, "ApplyRolledBack", {"reason": "h2 is full", "phase": "fetch"}, generation=3)
    (lane,) = fold(told.read()).lanes
    assert lane.newest.message == "the apply of generation 3 failed in its phase `fetch`: h2 is full"
    assert lane.newest.condition == "healed"


def test_an_apply_ends_the_trouble_of_what_it_replaces() -> None:
    told = Journals().state("h1", 0.0, "degraded", "lost: h3")
    told.tell("h1", 50.0, "GenerationServed", {"cause": "apply", "by": "ann@desk:1", "reason": ""}, generation=4)
    (lane,) = fold(told.read()).lanes
    assert lane.newest.steps[-1].what == "apply by ann@desk:1: generation 4 serves"
    assert not lane.newest.is_open


def test_a_fault_without_events_is_told_by_its_record() -> None:
    healed = fault_of("h1", 0.0, "F-6", "rank_lost", healed_at_s=T0 + 2.5)
    story = story_of(fold({}, faults=[healed]), "F-6")
    assert phases(story) == ["detected", "diagnosed", "closed"]
    assert story.ended_s == T0 + 2.5
    still = story_of(fold({}, faults=[fault_of("h1", 0.0, "F-7", "rank_lost")]), "F-7")
    assert still.condition == "fault"


def test_the_record_closes_what_the_events_left_open() -> None:
    told = Journals().fault("h1", 0.0, "F-8", "rank_lost")
    closed = fault_of("h1", 0.0, "F-8", "rank_lost", healed_at_s=T0 + 9.0)
    assert story_of(fold(told.read(), faults=[closed]), "F-8").ended_s == T0 + 9.0


def test_a_host_that_vanishes_leaves_what_it_alone_could_tell_unknown() -> None:
    told = Journals().fault("h1", 0.0, "F-9", "rank_lost").state("h1", 0.1, "healing", "restarting r1s1t0")
    silence = Silence(since_s=T0 + 5, why="connection lost", way_out="odctl bootstrap h1")
    timeline = fold(told.read(), silent={"h1": silence})
    story = story_of(timeline, "F-9")
    assert story.condition == "unknown"
    assert story.is_open
    assert next(lane for lane in timeline.lanes if story in lane.stories).unknown_since_s == T0 + 5
    gone = next(story for story in timeline.stories if story.kind == NO_ANSWER)
    assert (gone.lane.label, gone.condition, gone.way_out) == ("h1", "fault", "odctl bootstrap h1")
    assert timeline.lanes[0].newest is gone, "the newest trouble comes first"


def test_a_host_that_never_answered_is_unknown_and_not_healthy() -> None:
    (lane,) = fold({}, silent={"h4": Silence(since_s=None, why="no agent answers on this host")}).lanes
    assert lane.newest.condition == "unknown"
    assert lane.newest.began_s is None
    assert lane.known_from_s is None


def test_a_closed_story_stays_closed_when_its_observer_vanishes() -> None:
    silence = Silence(since_s=T0 + 100, why="gone")
    assert story_of(fold(killed_rank().read(), silent={"h1": silence}), "F-1").condition == "healed"


def test_what_could_not_be_read_is_told_by_host() -> None:
    journals = killed_rank().read() | {"h9": HostJournal(error="the agent did not answer in time")}
    assert fold(journals).unread == {"h9": "the agent did not answer in time"}


def test_long_bodies_are_kept_without_their_plans() -> None:
    told = Journals().tell(
        "h1", 0.0, "GenerationServed", {"cause": "apply", "by": "ann", "reason": "x", "plan_toml": "p" * 9999}
    )
    (event,) = told.events["h1"]
    assert len(slim(event).body) < 100
    assert read_body(slim(event)) == read_body(event)


@given(st.lists(st.tuples(st.floats(-1e4, 1e4), st.floats(0.0, 3.0)), min_size=1, max_size=90))
def test_a_clocks_distance_is_off_by_no_more_than_the_quickest_transit(sent: Sequence[tuple[float, float]]) -> None:
    ahead_s, distance = 123.5, ClockDistance()
    for true_s, transit_s in sent:
        distance = distance.with_message(sent_s=true_s + ahead_s, received_s=true_s + transit_s)
    quickest = min(transit_s for _, transit_s in sent[-60:])
    assert distance.ahead_s is not None
    assert ahead_s - quickest == pytest.approx(distance.ahead_s, abs=1e-6)


@given(st.permutations(["h1", "h2", "h3"]), st.sets(st.integers(1, 12)))
def test_any_part_of_the_journals_in_any_order_folds_alike(order: list[str], lost: set[int]) -> None:
    """Events may be missing wherever: steps stay in order, and nothing is healed that was not seen to be."""
    whole = killed_rank().read()
    journals = {
        host: msgspec.structs.replace(
            whole[host], events=tuple(event for event in whole[host].events if event.event_id not in lost)
        )
        for host in order
    }
    timeline = fold(journals)
    assert timeline == fold({host: journals[host] for host in sorted(order)})
    begins = [lane.newest.began_s or 0.0 for lane in timeline.lanes]
    assert begins == sorted(begins, reverse=True)
    for story in timeline.stories:
        times = [step.at_s for step in story.steps]
        assert all(one <= two + 1e-6 for one, two in itertools.pairwise(times))
        assert story.is_open == (story.condition != "healed")


@pytest.mark.parametrize("name", ["killed_rank", "killed_agent", "lost_host"])
def test_recorded_labs_are_understood_to_the_last_event(name: str) -> None:
    journals = recorded(name)
    timeline = fold(journals)
    assert timeline.num_not_understood == 0
    assert timeline.lanes
    assert all(not story.is_open for story in timeline.stories), "all was well again when it was recorded"


def test_the_recorded_killed_rank_went_through_every_phase() -> None:
    journals = recorded("killed_rank")
    assert any(event.kind not in KINDS for journal in journals.values() for event in journal.events), (
        "a real journal tells of much else"
    )
    timeline = fold(journals)
    story = next(story for story in timeline.stories if story.kind == "rank_lost")
    assert list(dict.fromkeys(step.phase for step in story.steps if step.is_exact)) == [
        *("detected", "diagnosed", "decided", "acted", "verified", "closed")
    ]
    assert story.evidence["signal"] == "SIGKILL"
    assert story.requests_failed is not None
    assert story.condition == "healed"


def test_the_recorded_killed_agent_is_a_warning_that_ended_by_itself() -> None:
    timeline = fold(recorded("killed_agent"))
    story = next(story for story in timeline.stories if story.kind == "agent_lost")
    assert story.severity == "warning"
    assert story.lane.scope == "host"
    assert any("started (pid" in step.what for step in story.steps)
    assert story.condition == "healed"


def test_the_recorded_lost_host_was_degraded_until_it_was_back() -> None:
    timeline = fold(recorded("lost_host"))
    story = next(story for story in timeline.stories if story.kind == "host_lost")
    assert any("degraded" in step.what for step in story.steps)
    assert story.condition == "healed"
    chat = next(lane for lane in timeline.lanes if lane.key.scope == "deployment").newest
    assert not chat.is_open
