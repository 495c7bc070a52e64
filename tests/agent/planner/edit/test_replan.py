"""Planning anew keeps what a plan was asked for, says what it cannot keep, and lets the edit's hosts go first."""

from __future__ import annotations

from typing import Any

import pytest

from agent.errors import FleetError
from agent.planner.edit import Basis, Edited, Replan, apply_edit, begin_edit
from agent.planner.plan import Asked
from tests.agent.planner.clusters import LLAMA_1B, cluster, cpu, gpu, host, plan_for

FIVE = cluster(*(host(name, cpu(8)) for name in "abcde"))
BASIS = Basis(LLAMA_1B, FIVE)


def opened(**asked: Any) -> Edited:
    return begin_edit(plan_for(LLAMA_1B, FIVE, **asked), BASIS)


def hosts_of(edited: Edited) -> set[str]:
    return {shard.host for stage in edited.plan.replicas[0].stages for shard in stage.shards}


def test_an_excluded_host_leaves_the_rest_as_it_was_asked_for() -> None:
    before = opened(stages=2, max_hosts=2, excluded=("e",), reserved_bytes={"d/cpu": 10**9})
    assert before.excluded == ("e",), "what was asked for is where an edit begins"
    gone = sorted(hosts_of(before))[0]
    after = apply_edit(before, Replan(excluded=(*before.excluded, gone)), BASIS)
    asked = after.plan.asked
    assert asked is not None
    assert (asked.stages, asked.max_hosts, asked.reserved_bytes) == (2, 2, {"d/cpu": 10**9})
    assert asked.excluded == tuple(sorted(("e", gone)))
    assert len(after.plan.replicas[0].stages) == 2
    assert not hosts_of(after) & {"e", gone}
    assert begin_edit(after.plan, BASIS).excluded == asked.excluded


def test_a_host_that_is_used_again_is_not_asked_to_be_left_out_any_more() -> None:
    before = opened(stages=2, excluded=("a", "b", "c"))
    assert hosts_of(before) == {"d", "e"}
    after = apply_edit(before, Replan(excluded=("a", "d", "e")), BASIS)
    assert hosts_of(after) == {"b", "c"}
    assert after.plan.asked is not None
    assert after.plan.asked.excluded == ("a", "d", "e")


def test_nothing_asked_leaves_nothing_asked() -> None:
    """A number of hosts that the edit keeps by itself is no constraint of its operator's."""
    before = begin_edit(plan_for(LLAMA_1B, FIVE), BASIS)
    assert before.plan.asked is None
    after = apply_edit(before, Replan(pinned=("c",)), BASIS)
    assert after.plan.asked == Asked(pinned=("c",))
    assert "c" in hosts_of(after)
    back = apply_edit(after, Replan(), BASIS)
    assert back.plan.asked is None


def test_a_shape_that_is_left_by_no_layout_is_given_up_and_said() -> None:
    before = opened(stages=3, excluded=("d", "e"))
    after = apply_edit(before, Replan(excluded=("c", "d", "e")), BASIS)
    assert hosts_of(after) == {"a", "b"}
    assert after.plan.asked == Asked(excluded=("c", "d", "e")), "a plan does not claim what it does not keep"
    assert after.plan.why[-1] == "asked for 3 stages, which no layout of what is left has: planned without"


def test_devices_stay_out_unless_their_host_is_pinned_now() -> None:
    big = host("big", gpu(0, "RTX 4090", 24), gpu(1, "RTX 4090", 24))
    facts = cluster(big, host("old", gpu(0, "RTX 3060", 12)))
    basis = Basis(LLAMA_1B, facts)
    before = begin_edit(plan_for(LLAMA_1B, facts, excluded=("big/cuda:0",)), basis)
    assert before.excluded == ()
    after = apply_edit(before, Replan(excluded=("old",)), basis)
    assert [(shard.host, shard.device) for shard in after.plan.replicas[0].stages[0].shards] == [("big", "cuda:1")]
    assert after.plan.asked is not None
    assert after.plan.asked.excluded == ("big/cuda:0", "old")


def test_a_selector_is_asked_again_and_a_pinned_host_joins_it() -> None:
    chosen = cluster(*(each for each in FIVE.hosts if each.name in "ab"))
    plan = plan_for(LLAMA_1B, chosen, selected="group:ab", stages=2)
    basis = Basis(LLAMA_1B, FIVE, selected=("a", "b"))
    before = begin_edit(plan, basis)
    after = apply_edit(before, Replan(excluded=("a",)), basis)
    assert hosts_of(after) == {"b"}, "hosts that were not selected do not come in"
    assert after.plan.asked is not None
    assert after.plan.asked.hosts == "group:ab"
    joined = apply_edit(before, Replan(excluded=("a",), pinned=("d",)), basis)
    assert hosts_of(joined) == {"b", "d"}


def test_what_does_not_fit_at_all_is_refused_as_before() -> None:
    facts = cluster(host("a", cpu(8)), host("b", cpu(0.2)))
    basis = Basis(LLAMA_1B, facts)
    before = begin_edit(plan_for(LLAMA_1B, facts, stages=1), basis)
    with pytest.raises(FleetError) as refusal:
        apply_edit(before, Replan(excluded=("a",)), basis)
    assert refusal.value.code == "E601"
    assert before.plan.hosts == ("a",)
