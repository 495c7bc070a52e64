"""Every order of faults ends healed, or degraded with a reason and a way out."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.healing.react import MAX_FAILED_REBUILDS, SETTLE_S, react
from agent.healing.state import (
    AgentLost,
    CloseFaults,
    GatewayLost,
    HealEvent,
    HealInstruction,
    HealState,
    HostBack,
    HostLost,
    LinkLost,
    RankLost,
    RankReady,
    RankState,
    Rebuild,
    RebuildFailed,
    Rebuilt,
    RecordFault,
    ReportState,
    RestartDeadRank,
    RestartFailed,
    TimePassed,
)

RANKS = {"r0s0t0": "h1", "r0s1t0": "h2", "r0s1t1": "h3"}
TWO_REPLICAS = {"r0s0t0": "h1", "r0s1t0": "h2", "r1s0t0": "h3", "r1s1t0": "h4"}
SHARED_HOST = {"r0s0t0": "h1", "r0s1t0": "h2", "r1s0t0": "h2", "r1s1t0": "h3"}


def serving(*, may_restart: bool = True, restarts: int = 3, placed: dict[str, str] | None = None) -> HealState:
    ranks = placed or RANKS
    return HealState(
        deployment="chat",
        generation=4,
        ranks={
            rank_id: RankState(host=host, replica=int(rank_id[1]), generation=4) for rank_id, host in ranks.items()
        },
        hosts=dict.fromkeys(ranks.values(), "up"),
        gateway_host="h1",
        may_restart=may_restart,
        max_restarts_per_minute=restarts,
    )


def play(state: HealState, *events: HealEvent) -> tuple[HealState, list[HealInstruction]]:
    told: list[HealInstruction] = []
    for event in events:
        state, instructions = react(state, event)
        told += instructions
    return state, told


def lost(rank_id: str, at_s: float) -> RankLost:
    return RankLost(rank_id=rank_id, kind="rank_lost", evidence={"signal": "SIGKILL"}, at_s=at_s)


def test_a_dead_rank_is_restarted_in_place_and_serves_under_a_new_generation() -> None:
    # 1. The rank dies: a fault is recorded and its host is told to start it anew.
    state, told = play(serving(), lost("r0s1t0", 10.0))
    assert [type(order) for order in told] == [RecordFault, RestartDeadRank, ReportState]
    assert told[1] == RestartDeadRank(host="h2", rank_id="r0s1t0")
    assert state.phase == "healing"
    # 2. It has loaded: the deployment is linked anew under the next generation.
    state, told = play(state, RankReady(rank_id="r0s1t0", at_s=12.0))
    assert Rebuild(generation=5, replicas=(0,), kept=()) in told
    # 3. It serves, and the fault is closed.
    state, told = play(state, Rebuilt(generation=5, at_s=13.0))
    assert state.phase == "serving"
    assert state.generation == 5
    assert any(isinstance(order, CloseFaults) for order in told)
    assert state.open_faults == ()


def test_no_rebuild_while_a_rank_is_down() -> None:
    state, told = play(
        serving(),
        LinkLost(rank_id="r0s0t0", message="reset by peer", at_s=10.0),
        lost("r0s1t0", 10.2),
        TimePassed(at_s=11.0),
    )
    assert not any(isinstance(order, Rebuild) for order in told)
    assert state.ranks["r0s1t0"].health == "restarting"


def test_a_broken_link_waits_for_its_cause_before_it_is_built_anew() -> None:
    state, told = play(serving(), LinkLost(rank_id="r0s0t0", message="reset by peer", at_s=10.0))
    assert not any(isinstance(order, Rebuild) for order in told)
    _, told = play(state, TimePassed(at_s=10.0 + SETTLE_S))
    assert Rebuild(generation=5, replicas=(0,), kept=()) in told


def test_links_that_a_death_broke_are_no_faults_of_their_own() -> None:
    _, told = play(serving(), lost("r0s1t0", 10.0), LinkLost(rank_id="r0s0t0", message="reset by peer", at_s=10.1))
    kinds = [order.key.kind for order in told if isinstance(order, RecordFault)]
    assert kinds == ["rank_lost"]


def test_a_lost_host_leaves_the_deployment_degraded_with_a_way_out() -> None:
    state, told = play(serving(), HostLost(host="h3", silence_s=1.3, evidence={"rank_ports_open": 0}, at_s=10.0))
    assert state.phase == "degraded"
    assert "h3" in state.reason
    assert "--exclude h3" in state.way_out
    assert not any(isinstance(order, RestartDeadRank | Rebuild) for order in told)


def test_a_host_that_comes_back_has_its_ranks_restarted() -> None:
    state, _ = play(serving(), HostLost(host="h3", silence_s=1.3, evidence={}, at_s=10.0))
    state, told = play(state, HostBack(host="h3", live_ranks=(), at_s=60.0))
    assert RestartDeadRank(host="h3", rank_id="r0s1t1") in told
    state, told = play(state, RankReady(rank_id="r0s1t1", at_s=62.0), Rebuilt(generation=5, at_s=63.0))
    assert state.phase == "serving"
    assert state.open_faults == ()


def test_a_silent_agent_is_a_warning_and_its_ranks_serve_on() -> None:
    state, told = play(serving(), AgentLost(host="h2", silence_s=1.3, evidence={}, at_s=10.0))
    assert state.phase == "serving"
    assert [order.severity for order in told if isinstance(order, RecordFault)] == ["warning"]
    state, told = play(state, HostBack(host="h2", live_ranks=("r0s1t0",), at_s=20.0))
    assert state.phase == "serving"
    assert state.open_faults == ()


def test_a_rank_that_keeps_dying_is_not_restarted_for_ever() -> None:
    state = serving(restarts=3)
    for attempt in range(3):
        state, _ = play(state, lost("r0s1t0", 10.0 + attempt))
    state, told = play(state, lost("r0s1t0", 14.0))
    assert state.phase == "degraded"
    assert "3 restarts" in state.reason
    assert not any(isinstance(order, RestartDeadRank) for order in told)


def test_a_whole_replica_is_left_alone() -> None:
    """1. a rank of replica 0 dies  2. only replica 0 is linked anew  3. replica 1 keeps its generation."""
    state, _ = play(serving(placed=TWO_REPLICAS), lost("r0s1t0", 10.0))
    state, told = play(state, RankReady(rank_id="r0s1t0", at_s=12.0))
    assert Rebuild(generation=5, replicas=(0,), kept=(1,)) in told
    state, _ = play(state, Rebuilt(generation=5, at_s=13.0))
    assert state.phase == "serving"
    assert {rank_id: rank.generation for rank_id, rank in state.ranks.items()} == {
        "r0s0t0": 5,
        "r0s1t0": 5,
        "r1s0t0": 4,
        "r1s1t0": 4,
    }


def test_a_replica_is_healed_while_another_waits_for_its_host() -> None:
    state, _ = play(serving(placed=TWO_REPLICAS), HostLost(host="h4", silence_s=1.3, evidence={}, at_s=10.0))
    assert state.phase == "degraded"
    state, told = play(state, lost("r0s0t0", 20.0), RankReady(rank_id="r0s0t0", at_s=21.0))
    assert Rebuild(generation=5, replicas=(0,), kept=()) in told
    state, told = play(state, Rebuilt(generation=5, at_s=22.0))
    assert state.phase == "degraded", "replica 1 is still out"
    assert "h4" in state.reason
    assert [order.keys[0].kind for order in told if isinstance(order, CloseFaults)] == ["rank_lost"]
    state, _ = play(state, HostBack(host="h4", live_ranks=(), at_s=60.0), RankReady(rank_id="r1s1t0", at_s=61.0))
    assert (state.phase, state.rebuilding) == ("rebuilding", (1,))
    state, _ = play(state, Rebuilt(generation=6, at_s=62.0))
    assert (state.phase, state.open_faults) == ("serving", ())


def test_a_host_that_is_back_waits_for_the_rebuild_under_way() -> None:
    """1. links break and are built anew  2. it was the host: lost, and soon back  3. the rebuild fails, as it must
    4. only then the rank is started.
    """
    state, _ = play(serving(), LinkLost(rank_id="r0s0t0", message="reset", at_s=10.0), TimePassed(at_s=12.0))
    assert state.phase == "rebuilding"
    lost_host = HostLost(host="h3", silence_s=1.3, evidence={}, at_s=12.1)
    state, told = play(state, lost_host, HostBack(host="h3", live_ranks=(), at_s=13.0))
    assert state.phase == "rebuilding"
    assert not any(isinstance(order, Rebuild | RestartDeadRank) for order in told)
    state, told = play(state, RebuildFailed(generation=5, message="h3 is silent", at_s=13.5))
    assert RestartDeadRank(host="h3", rank_id="r0s1t1") in told


def test_a_lost_gateway_takes_every_replica_with_it() -> None:
    _, told = play(serving(placed=TWO_REPLICAS), GatewayLost(evidence={}, at_s=10.0))
    assert Rebuild(generation=5, replicas=(0, 1), kept=()) in told


def test_restart_off_degrades_at_once() -> None:
    state, told = play(serving(may_restart=False), lost("r0s0t0", 10.0))
    assert state.phase == "degraded"
    assert not any(isinstance(order, RestartDeadRank) for order in told)


def test_a_lost_gateway_is_built_anew() -> None:
    state, told = play(serving(), GatewayLost(evidence={"signal": "SIGKILL"}, at_s=10.0))
    assert Rebuild(generation=5, replicas=(0,), kept=()) in told
    state, _ = play(state, Rebuilt(generation=5, at_s=11.0))
    assert state.phase == "serving"


def test_failed_rebuilds_back_off_and_end() -> None:
    state, at_s = serving(), 10.0
    state, _ = play(state, GatewayLost(evidence={}, at_s=at_s))
    for _ in range(MAX_FAILED_REBUILDS):
        assert state.phase == "rebuilding"
        state, _ = play(state, RebuildFailed(generation=state.generation + 1, message="port in use", at_s=at_s))
        at_s += 100.0
        state, _ = play(state, TimePassed(at_s=at_s))
    assert state.phase == "degraded"
    assert "port in use" in state.reason
    assert state.way_out


_rank = st.sampled_from(sorted(SHARED_HOST))
_host = st.sampled_from(sorted(set(SHARED_HOST.values())))
_events = st.lists(
    st.one_of(
        st.builds(lost, _rank, st.just(0.0)),
        st.builds(LinkLost, rank_id=_rank, message=st.just("reset"), at_s=st.just(0.0)),
        st.builds(RankReady, rank_id=_rank, at_s=st.just(0.0)),
        st.builds(RestartFailed, rank_id=_rank, message=st.just("no memory"), at_s=st.just(0.0)),
        st.builds(AgentLost, host=_host, silence_s=st.just(1.3), evidence=st.just({}), at_s=st.just(0.0)),
        st.builds(HostLost, host=_host, silence_s=st.just(1.3), evidence=st.just({}), at_s=st.just(0.0)),
        st.builds(HostBack, host=_host, live_ranks=st.just(()), at_s=st.just(0.0)),
        st.builds(GatewayLost, evidence=st.just({}), at_s=st.just(0.0)),
        st.builds(TimePassed, at_s=st.just(0.0)),
    ),
    max_size=25,
)


@settings(max_examples=300, deadline=None)
@given(_events, st.lists(st.booleans(), max_size=25))
def test_any_order_of_faults_ends_healed_or_degraded_with_a_reason(
    events: list[HealEvent], rebuild_outcomes: list[bool]
) -> None:
    state, clock = serving(placed=SHARED_HOST), 0.0
    outcomes = list(rebuild_outcomes)
    is_rebuilding = False

    def step(event: HealEvent) -> None:
        nonlocal state, is_rebuilding
        if isinstance(event, Rebuilt | RebuildFailed):
            is_rebuilding = False
        before = state
        state, told = react(state, event)
        assert state.generation >= before.generation
        rebuilds = [order for order in told if isinstance(order, Rebuild)]
        assert len(rebuilds) <= 1
        for order in rebuilds:
            assert not is_rebuilding, "one at a time"
            is_rebuilding = True
            assert order.generation > before.generation
            rebuilt = [rank for rank in state.ranks.values() if rank.replica in order.replicas]
            assert all(rank.health not in ("dead", "restarting") for rank in rebuilt)
            assert all(state.hosts[rank.host] != "lost" for rank in rebuilt)
            kept = [rank for rank in state.ranks.values() if rank.replica in order.kept]
            assert all(rank.health == "up" for rank in kept)
        if state.phase == "degraded":
            assert state.reason
            assert state.way_out

    for event in events:
        clock += 1.0
        step(msgspec.structs.replace(event, at_s=clock))
        if state.phase == "rebuilding" and outcomes:
            clock += 1.0
            generation = state.generation + 1
            if outcomes.pop():
                step(Rebuilt(generation=generation, at_s=clock))
            else:
                step(RebuildFailed(generation=generation, message="a link did not come up", at_s=clock))

    # Recovery: every host answers, every restart succeeds, every rebuild succeeds, and time passes.
    for _ in range(20):
        clock += 100.0
        for host, health in list(state.hosts.items()):
            if health != "up":
                step(HostBack(host=host, live_ranks=(), at_s=clock))
        for rank_id, rank in list(state.ranks.items()):
            if rank.health == "restarting":
                step(RankReady(rank_id=rank_id, at_s=clock))
        if state.phase == "rebuilding":
            step(Rebuilt(generation=state.generation + 1, at_s=clock))
        step(TimePassed(at_s=clock))
    assert state.phase in ("serving", "degraded")
    if state.phase == "serving":
        assert state.open_faults == ()
