"""What a member remembers, and whom an order to forget is for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.journal import Journal
from agent.supervisor.members import MemberTable
from agent.wire.agent import Commit, DeploymentRecord, HostAddress, Prepare


@pytest.fixture
def members(tmp_path: Path) -> Iterator[MemberTable]:
    journal = Journal(tmp_path / "journal.sqlite", host="b")
    yield MemberTable("b", journal)
    journal.close()


RECORD = DeploymentRecord(
    name="chat",
    generation=1,
    plan_hash="f" * 64,
    controller="a",
    members=tuple(HostAddress(host=name, address="127.0.0.1", port=1) for name in "ab"),
)


def prepare(generation: int) -> Prepare:
    return Prepare(
        deployment="chat",
        expected_generation=generation - 1,
        generation=generation,
        holder="ada",
        controller="a",
        lease_s=60.0,
    )


def test_a_host_that_an_apply_leaves_out_stands_at_the_old_generation(members: MemberTable) -> None:
    """1. a member of generation 1. 2. prepared for 2, which leaves it out. 3. prepared for 3 by another apply."""
    members.commit(Commit(record=RECORD))
    assert members.stands_at("chat", 1)
    assert not members.stands_at("chat", 2)
    members.prepare(prepare(2))
    assert not members.stands_at("chat", 2), "the apply's own lock must not keep it from being forgotten"
    members.commit(Commit(record=msgspec.structs.replace(RECORD, generation=2)))
    assert members.stands_at("chat", 2), "it has a part in the new layout"
    members.prepare(prepare(3))
    assert members.stands_at("chat", 2), "a late order to forget must not undo what a later apply has begun"
    assert not members.stands_at("chat", 3)
    assert not members.stands_at("chat", 0)
    assert not members.stands_at("other", 1)
