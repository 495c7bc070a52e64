"""Heartbeats to events: what counts as a death, a broken link, a silence, and what does not."""

from __future__ import annotations

import msgspec

from agent.healing.detect import (
    SILENT_S,
    DeathSeen,
    DetectState,
    HostSeen,
    Observation,
    RankSeen,
    SilentHost,
    detect,
)
from agent.healing.state import (
    AgentLost,
    GatewayLost,
    HealEvent,
    HealState,
    HostBack,
    HostLost,
    LinkLost,
    RankLost,
    RankReady,
    RankState,
    RestartFailed,
)

RANKS = {"r0s0t0": "h1", "r0s1t0": "h2"}
START = DetectState(heard_at={"h1": 0.0, "h2": 0.0})


def health(**changes: object) -> HealState:
    state = HealState(
        deployment="chat",
        generation=4,
        ranks={rank_id: RankState(host=host, replica=0, generation=4) for rank_id, host in RANKS.items()},
        hosts={"h1": "up", "h2": "up"},
        gateway_host="h1",
        may_restart=True,
        max_restarts_per_minute=3,
    )
    return msgspec.structs.replace(state, **changes)


def with_rank(rank_id: str, word: str) -> HealState:
    state = health()
    rank = msgspec.structs.replace(state.ranks[rank_id], health=word)
    return msgspec.structs.replace(state, ranks={**state.ranks, rank_id: rank})


def rank(state: str = "linked", *, generation: int = 4, pid: int = 100, error: str = "") -> RankSeen:
    return RankSeen(pid=pid, state=state, generation=generation, error=error)


def seen(ranks: dict[str, RankSeen], **more: object) -> HostSeen:
    return msgspec.structs.replace(HostSeen(ranks=ranks, deaths=(), has_gateway=True), **more)


WELL = {"h1": seen({"r0s0t0": rank()}), "h2": seen({"r0s1t0": rank()})}


def look(
    at_s: float,
    hosts: dict[str, HostSeen] | None = None,
    silent: dict[str, SilentHost] | None = None,
    *,
    was_stalled: bool = False,
) -> Observation:
    return Observation(at_s=at_s, was_stalled=was_stalled, hosts={**WELL, **(hosts or {})}, silent=silent or {})


def without(host: str, at_s: float, *, ranks_answer: bool, was_stalled: bool = False) -> Observation:
    left = {name: beat for name, beat in WELL.items() if name != host}
    silent = {host: SilentHost(ranks_answer=ranks_answer, evidence={"agent": "refused"})}
    return Observation(at_s=at_s, was_stalled=was_stalled, hosts=left, silent=silent)


def watch(known: HealState, *observations: Observation) -> list[list[HealEvent]]:
    state, rounds = START, []
    for observation in observations:
        state, events = detect(state, known, observation)
        rounds.append(events)
    return rounds


def test_nothing_happens_while_all_is_well() -> None:
    assert watch(health(), look(0.4), look(0.8), look(1.2)) == [[], [], []]


def test_a_death_is_told_once() -> None:
    death = DeathSeen(rank_id="r0s1t0", pid=100, kind="rank_lost", evidence={"signal": "SIGKILL"})
    gone = {"h2": seen({}, deaths=(death,))}
    first, second = watch(health(), look(0.4, gone), look(0.8, gone))
    assert first == [RankLost(rank_id="r0s1t0", kind="rank_lost", evidence={"signal": "SIGKILL"}, at_s=0.4)]
    assert second == []


def test_a_second_death_of_the_same_rank_is_another_one() -> None:
    deaths = [DeathSeen(rank_id="r0s1t0", pid=pid, kind="rank_lost", evidence={}) for pid in (100, 101)]
    looks = [look(0.4 * (1 + index), {"h2": seen({}, deaths=(death,))}) for index, death in enumerate(deaths)]
    assert [len(events) for events in watch(health(), *looks)] == [1, 1]


def test_a_rank_of_another_layout_is_nobodys_business() -> None:
    death = DeathSeen(rank_id="r7s0t0", pid=100, kind="rank_lost", evidence={})
    assert watch(health(), look(0.4, {"h2": seen({"r7s0t0": rank("loading")}, deaths=(death,))})) == [[]]


def test_causes_come_before_symptoms() -> None:
    """The gateway's host is looked at first, and yet the death on the other one is the first event."""
    death = DeathSeen(rank_id="r0s1t0", pid=100, kind="rank_lost", evidence={})
    hosts = {"h1": seen({"r0s0t0": rank("loaded", error="reset by peer")}), "h2": seen({}, deaths=(death,))}
    unlinked = {"h1": hosts["h1"]}
    _, second = watch(health(), look(0.4, unlinked), look(0.8, hosts))
    assert [type(event) for event in second] == [RankLost, LinkLost]


def test_one_old_status_is_no_broken_link() -> None:
    """A status that was asked for before the links were built may arrive after them."""
    stale = {"h2": seen({"r0s1t0": rank("loaded")})}
    assert watch(health(), look(0.4, stale), look(0.8), look(1.2, stale), look(1.6)) == [[], [], [], []]


def test_a_rank_that_stays_unlinked_has_lost_its_links() -> None:
    broken = {"h2": seen({"r0s1t0": rank("loaded", error="reset by peer")})}
    first, second = watch(health(), look(0.4, broken), look(0.8, broken))
    assert first == []
    assert second == [LinkLost(rank_id="r0s1t0", message="reset by peer", at_s=0.8)]


def test_a_rank_linked_under_another_generation_is_not_linked() -> None:
    other = {"h2": seen({"r0s1t0": rank(generation=3)})}
    _, second = watch(health(), look(0.4, other), look(0.8, other))
    assert [type(event) for event in second] == [LinkLost]


def test_links_are_let_alone_while_they_are_built() -> None:
    known = health(phase="rebuilding", rebuilding=(0,))
    building = {"h2": seen({"r0s1t0": rank("loaded")})}
    assert watch(known, look(0.4, building), look(0.8, building)) == [[], []]


def test_a_restarted_rank_is_ready_once_it_has_loaded_and_failed_when_it_says_so() -> None:
    known = with_rank("r0s1t0", "restarting")
    loading = {"h2": seen({"r0s1t0": rank("loading", pid=101)})}
    loaded = {"h2": seen({"r0s1t0": rank("loaded", pid=101)})}
    failed = {"h2": seen({"r0s1t0": rank("failed", pid=101, error="no memory")})}
    assert watch(known, look(0.4, loading)) == [[]]
    assert watch(known, look(0.4, loaded)) == [[RankReady(rank_id="r0s1t0", at_s=0.4)]]
    assert watch(known, look(0.4, failed)) == [[RestartFailed(rank_id="r0s1t0", message="no memory", at_s=0.4)]]


def test_silence_is_an_agents_while_its_ranks_answer_and_a_hosts_when_they_do_not() -> None:
    late = SILENT_S + 0.1
    assert [type(event) for event in watch(health(), without("h2", late, ranks_answer=True))[0]] == [AgentLost]
    assert [type(event) for event in watch(health(), without("h2", late, ranks_answer=False))[0]] == [HostLost]


def test_a_short_silence_is_none() -> None:
    assert watch(health(), without("h2", SILENT_S - 0.1, ranks_answer=False)) == [[]]


def test_an_observer_that_stalled_accuses_nobody() -> None:
    stalled = without("h2", 60.0, ranks_answer=False, was_stalled=True)
    again = without("h2", 60.0 + SILENT_S, ranks_answer=False)
    first, second = watch(health(), stalled, again)
    assert first == []
    assert [type(event) for event in second] == [HostLost], "its silence counts from the stall"


def test_a_silent_agent_whose_ranks_die_too_becomes_a_lost_host() -> None:
    known = health(hosts={"h1": "up", "h2": "agent_silent"})
    assert watch(known, without("h2", 5.0, ranks_answer=True)) == [[]]
    assert [type(event) for event in watch(known, without("h2", 5.0, ranks_answer=False))[0]] == [HostLost]


def test_a_host_that_answers_again_is_back_with_what_lives_there() -> None:
    """What died meanwhile is no news of its own: being back says it all."""
    known = health(hosts={"h1": "up", "h2": "lost"})
    death = DeathSeen(rank_id="r0s1t0", pid=100, kind="rank_lost", evidence={})
    back = {"h2": seen({}, deaths=(death,))}
    assert watch(known, look(9.0, back)) == [[HostBack(host="h2", live_ranks=(), at_s=9.0)]]
    alive = {"h2": seen({"r0s1t0": rank()})}
    assert watch(known, look(9.0, alive)) == [[HostBack(host="h2", live_ranks=("r0s1t0",), at_s=9.0)]]
    busy = {"h2": seen({}, unheard=("r0s1t0",))}
    assert watch(known, look(9.0, busy)) == [[HostBack(host="h2", live_ranks=("r0s1t0",), at_s=9.0)]], "it runs"


def test_an_agent_that_was_killed_is_told_however_soon_it_is_back() -> None:
    def beat(started_at_s: float, *, was_killed: bool) -> dict[str, HostSeen]:
        return {"h2": seen({"r0s1t0": rank()}, started_at_s=started_at_s, was_killed=was_killed)}

    first, second, third = watch(
        health(),
        look(0.4, beat(10.0, was_killed=False)),
        look(1.2, beat(20.0, was_killed=True)),
        look(1.6, beat(20.0, was_killed=True)),
    )
    assert (first, third) == ([], [])
    assert [type(event) for event in second] == [AgentLost, HostBack]
    assert isinstance(second[1], HostBack)
    assert second[1].live_ranks == ("r0s1t0",)
    asked, restarted = beat(10.0, was_killed=False), beat(20.0, was_killed=False)
    assert watch(health(), look(0.4, asked), look(1.2, restarted)) == [[], []], "it was asked to end"


def test_a_missing_gateway_is_lost_once() -> None:
    gone = {"h1": seen({"r0s0t0": rank()}, has_gateway=False)}
    assert [type(event) for event in watch(health(), look(0.4, gone))[0]] == [GatewayLost]
    assert watch(health(is_gateway_up=False), look(0.4, gone)) == [[]]


def test_a_gateway_that_calls_a_well_replica_broken_is_believed() -> None:
    broken = {"h1": seen({"r0s0t0": rank()}, broken_replicas={0: "reset by peer"})}
    (events,) = watch(health(), look(0.4, broken))
    assert events == [LinkLost(rank_id="r0s0t0", message="gateway: reset by peer", at_s=0.4)]
    assert watch(with_rank("r0s1t0", "dead"), look(0.4, broken)) == [[]], "the death explains it"
