"""One way to start the app in a test: frozen fleet, frozen clock, no animation, no blinking."""

from __future__ import annotations

import pytest
from textual.widgets import Input

from agent.errors import FleetError
from agent.planner.plan import Plan
from agent.wire.agent import ApplyEvent
from agent.wire.history import Cause
from odctl.apply import ApplyPreview
from odctl.tui.app import OdctlApp
from odctl.tui.applying import Applier, OnEvent
from odctl.tui.feed import Feed
from odctl.tui.planning import Planner
from odctl.tui.probing import Prober
from tests.odctl.tui.frozen_fleet import FrozenClock
from tests.odctl.tui.idle import wait_for_idle


@pytest.fixture(autouse=True)
def _still_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Input, "_toggle_cursor", lambda _input: None)
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.fixture(autouse=True)
def _quick_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textual.app.wait_for_idle", wait_for_idle)
    monkeypatch.setattr("textual.pilot.wait_for_idle", wait_for_idle)


class RefusingApplier:
    """For tests in which nothing may be applied."""

    async def preview(self, feed: Feed, plan: Plan) -> ApplyPreview:  # noqa: ARG002 - the Protocol's
        raise FleetError("E401", "the plan is stale: host gpu01 is gone", hint="plan again")

    async def apply(
        self,
        feed: Feed,  # noqa: ARG002 - the Protocol's
        preview: ApplyPreview,  # noqa: ARG002
        on_event: OnEvent,  # noqa: ARG002
        *,
        cause: Cause = "apply",  # noqa: ARG002
        reason: str = "",  # noqa: ARG002
    ) -> ApplyEvent:
        raise AssertionError("nothing may be applied here")

    async def abort(self, feed: Feed, plan: Plan) -> str:  # noqa: ARG002
        raise AssertionError("nothing may be aborted here")


def make_app(
    feed: Feed,
    *,
    applier: Applier | None = None,
    prober: Prober | None = None,
    planner: Planner | None = None,
) -> OdctlApp:
    applier = applier or RefusingApplier()
    app = OdctlApp(feed, clock=FrozenClock(), applier=applier, prober=prober, planner=planner)
    app.animation_level = "none"
    return app
