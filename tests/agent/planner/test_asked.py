from __future__ import annotations

from typing import Any

import msgspec
import pytest

from agent.documents import DocumentError
from agent.facts.cluster import ClusterFacts
from agent.planner.asked import ask_again, asked_of, asked_words, broken_words, lost_words
from agent.planner.compare import compare_plans
from agent.planner.explain import Section
from agent.planner.file import plan_from_toml, plan_hash, plan_to_toml
from agent.planner.layout_text import preview_lines
from agent.planner.make import explain_made, make_plan, refresh_plan, request_of
from agent.planner.plan import Asked, Objective
from tests.agent.planner.clusters import GB, LLAMA_1B, THREE_CPUS, cluster, cpu, host, plan_for, request

RACKED = cluster(
    *(
        msgspec.structs.replace(host(name, cpu(8)), labels={"rack": rack})
        for name, rack in zip("abcd", "xxyy", strict=True)
    )
)
CONSTRAINTS: list[dict[str, Any]] = [
    {"pinned": ("b", "c/cpu")},
    {"excluded": ("a",), "left_out": ("z",), "selected": "group:slow"},
    {"reserved_bytes": {"a/cpu": 2 * GB}, "stages": 2},
    {"tensor_parallel_sizes": (1, 2)},
    {"min_hosts": 2, "max_hosts": 3, "tensor": 1},
    {"replicas": "max", "spread": "rack"},
    {"replicas": 2, "domain": "rack"},
    {"max_ttft_s": 20.0, "max_time_per_token_s": 1.0},
    {"objective": Objective(kind="context")},
]


def titled(sections: tuple[Section, ...]) -> dict[str, tuple[str, ...]]:
    return {section.title: section.lines for section in sections}


@pytest.mark.parametrize("asked", CONSTRAINTS)
def test_what_was_asked_is_read_from_the_file_and_asked_again(asked: dict[str, Any]) -> None:
    wanted = request(LLAMA_1B, RACKED, **asked)
    plan = make_plan(wanted)
    read = plan_from_toml(plan_to_toml(plan), file="plan.toml")
    assert read == plan
    assert plan_hash(read) == plan_hash(plan)
    assert read.asked is not None
    again = request_of(read, LLAMA_1B, RACKED)
    assert asked_of(again) == read.asked
    assert make_plan(again).replicas == plan.replicas
    assert asked_words(read.asked)
    assert lost_words(read.asked, RACKED) == []
    assert broken_words(read) == []


def test_a_plan_without_constraints_says_nothing_of_them_and_keeps_its_hash() -> None:
    plan = plan_for(LLAMA_1B, THREE_CPUS)
    assert plan.asked is None
    text = plan_to_toml(plan)
    assert "asked" not in text
    empty = plan_from_toml(f"{text}\n[asked]\n", file="plan.toml")
    assert plan_hash(empty) == plan_hash(plan_from_toml(text, file="plan.toml")) == plan_hash(plan)
    assert request_of(plan, LLAMA_1B, THREE_CPUS) == ask_again(request_of(plan, LLAMA_1B, THREE_CPUS), None)


def test_hosts_chosen_by_name_are_those_left_out() -> None:
    assert asked_of(request(LLAMA_1B, THREE_CPUS, hosts=("a", "b"))) == Asked(excluded=("c",))


def test_constraints_are_told_wherever_a_plan_is() -> None:
    plan = plan_for(LLAMA_1B, RACKED, max_hosts=2, pinned=("b",), reserved_bytes={"b/cpu": GB})
    words = "b pinned, 1.0 GB of b/cpu left alone, at most 2 hosts"
    assert f"asked  {words}" in preview_lines(plan, width=100)
    other = plan_for(LLAMA_1B, RACKED)
    assert not any(line.startswith("asked") for line in preview_lines(other, width=100))
    assert compare_plans([plan, other], ["a", "b"]).asked == (tuple(words.split(", ")), ())
    sections = titled(explain_made(plan, request_of(plan, LLAMA_1B, RACKED)))
    assert sections["asked for"] == (words,)


def test_an_explanation_does_not_offer_what_was_ruled_out() -> None:
    """Without its constraints a plan of three stages is said to be worse than one that was never wanted."""
    plan = plan_for(LLAMA_1B, THREE_CPUS, stages=3)
    assert "planned anew" not in titled(explain_made(plan, request_of(plan, LLAMA_1B, THREE_CPUS)))
    untold = msgspec.structs.replace(plan, asked=None)
    assert "planned anew" in titled(explain_made(untold, request_of(untold, LLAMA_1B, THREE_CPUS)))
    narrow = plan_for(LLAMA_1B, THREE_CPUS, excluded=("c",))
    (line,) = (
        line
        for line in titled(explain_made(narrow, request_of(narrow, LLAMA_1B, THREE_CPUS)))["devices left out"]
        if "c/cpu" in line
    )
    assert line == "c/cpu: excluded"


def without(facts: ClusterFacts, name: str) -> ClusterFacts:
    return cluster(*(host for host in facts.hosts if host.name != name))


def test_what_the_cluster_lost_since_is_told_and_not_asked() -> None:
    asked: dict[str, Any] = {"excluded": ("c", "d/cpu"), "reserved_bytes": {"d/cpu": GB}, "controllers": ("a",)}
    plan = plan_for(LLAMA_1B, RACKED, **asked)
    left = without(without(RACKED, "d"), "c")
    again = request_of(plan, LLAMA_1B, left)
    assert (again.excluded, again.left_out, again.reserved_bytes) == ((), ("c",), {})
    sections = titled(explain_made(plan, again))
    assert "not asked of the cluster as it is: d/cpu: not in the cluster any more" in sections["asked for"]
    spread = plan_for(LLAMA_1B, RACKED, replicas=2, spread="rack")
    bare = cluster(*(msgspec.structs.replace(each, labels={}) for each in RACKED.hosts))
    assert lost_words(spread.asked, bare) == ["no host has the label `rack` any more"]
    explain_made(spread, request_of(spread, LLAMA_1B, bare))


def test_a_plan_edited_by_hand_keeps_what_was_asked_and_says_what_it_breaks() -> None:
    plan = plan_for(LLAMA_1B, THREE_CPUS, pinned=("c",), excluded=("a",), max_ttft_s=30.0)
    moved = plan_from_toml(plan_to_toml(plan).replace('host = "c"', 'host = "a"'), file="plan.toml")
    edited = refresh_plan(moved, LLAMA_1B, THREE_CPUS)
    assert edited.asked == plan.asked
    assert broken_words(edited) == ["a was to be left out", "c was pinned"]
    slow = msgspec.structs.replace(plan.predicted, ttft_s=31.0, ttft_bounds_s=())
    assert broken_words(msgspec.structs.replace(plan, predicted=slow)) == [
        "31.00 s to the first token are predicted"
    ]
    lines = titled(explain_made(edited, request_of(edited, LLAMA_1B, THREE_CPUS)))["asked for"]
    assert "not kept by this plan: c was pinned" in lines


def test_an_unknown_constraint_is_an_error() -> None:
    plan = plan_for(LLAMA_1B, THREE_CPUS, max_hosts=2)
    with pytest.raises(DocumentError, match="max_host") as refused:
        plan_from_toml(plan_to_toml(plan).replace("max_hosts =", "max_host ="), file="plan.toml")
    assert [problem.code for problem in refused.value.problems] == ["E104"]
