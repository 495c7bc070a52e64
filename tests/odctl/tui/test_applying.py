"""Applying, going back and aborting below the screens: a locked session sends none of it, whoever asks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from agent.errors import FleetError
from agent.facts.cluster import ClusterFacts
from agent.planner.file import plan_hash
from agent.wire.agent import ApplyEvent, ModelManifest
from agent.wire.history import Cause
from odctl.apply import ApplyPreview
from odctl.fleet import Fleet, WriteGuard
from odctl.ssh.http import agent_client
from odctl.tui.apply_run import ApplyRun, Happening
from odctl.tui.applying import FleetApplier, OnEvent
from odctl.tui.feed import Feed
from tests.odctl.tui import frozen_fleet as frozen
from tests.odctl.tui.test_app import SPEC

T = TypeVar("T")


class LockedFeed(frozen.FrozenFeed):
    """Does its work on a fleet whose guard is locked; nothing of it is there to be reached."""

    def __init__(self) -> None:
        super().__init__(None)
        self.fleet = Fleet([], cluster="lab", open_client=agent_client, guard=WriteGuard())

    async def call(self, work: Callable[[Fleet], Awaitable[T]]) -> T:
        return await work(self.fleet)


def preview() -> ApplyPreview:
    return ApplyPreview(
        plan=frozen.plan(),
        plan_hash=plan_hash(frozen.plan()),
        running=frozen.deployment().record,
        is_noop=False,
        lines=(),
        manifest=ModelManifest(digest="d" * 64, files=(), spec=SPEC),
        facts=ClusterFacts(cluster="lab", hosts=()),
    )


@pytest.mark.parametrize(("cause", "reason"), [("apply", ""), ("rollback", "to generation 1")])
async def test_a_locked_session_sends_no_apply_and_no_rollback(cause: Cause, reason: str) -> None:
    run = ApplyRun(preview(), cause=cause, reason=reason)
    told: list[Happening] = []
    await run.follow(FleetApplier(), LockedFeed(), told.append)
    for happening in told:
        run.take(happening)
    assert run.progress.error is not None
    assert run.progress.error.code == "E121"
    assert "read-only: POST /v1/apply was not sent" in run.progress.error.message
    assert not run.progress.is_out_of_sight
    assert run.progress.phases == {}


async def test_a_locked_session_sends_no_abort() -> None:
    with pytest.raises(FleetError, match="read-only: POST /v1/abort was not sent") as refusal:
        await FleetApplier().abort(LockedFeed(), frozen.plan())
    assert refusal.value.host == "gpu01"


async def test_an_apply_tells_each_event_once_and_its_end_last() -> None:
    """The last event comes by the stream and as the outcome."""
    last = ApplyEvent(phase="done", state="finished", generation=4, at_s=2.0)

    class Twice(FleetApplier):
        async def apply(
            self,
            feed: Feed,  # noqa: ARG002 - the Protocol's
            preview: ApplyPreview,  # noqa: ARG002
            on_event: OnEvent,
            *,
            cause: Cause = "apply",  # noqa: ARG002
            reason: str = "",  # noqa: ARG002
        ) -> ApplyEvent:
            await on_event(ApplyEvent(phase="prepare", state="started", generation=4, at_s=1.0))
            await on_event(last)
            return last

    run = ApplyRun(preview())
    told: list[Happening] = []
    await run.follow(Twice(), LockedFeed(), told.append)
    assert [each.phase if isinstance(each, ApplyEvent) else each for each in told] == ["prepare", "done", None]
