"""Preview, apply and abort, as the screens ask for them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

from agent.planner.plan import Plan
from agent.wire.agent import ApplyEvent
from agent.wire.history import Cause
from odctl.fleet import Fleet
from odctl.fleet.operator import operator_name
from odctl.tui.feed import Feed

if TYPE_CHECKING:
    from odctl.apply import ApplyPreview

OnEvent = Callable[[ApplyEvent], Awaitable[None]]


class Applier(Protocol):
    """Every method raises FleetError; `on_event` is called on the fleet's thread."""

    async def preview(self, feed: Feed, plan: Plan) -> ApplyPreview: ...

    async def apply(
        self, feed: Feed, preview: ApplyPreview, on_event: OnEvent, *, cause: Cause = "apply", reason: str = ""
    ) -> ApplyEvent:
        """Cause and reason are for the history, as `odctl rollback` gives them."""
        ...

    async def abort(self, feed: Feed, plan: Plan) -> str:
        """Whoever began the apply of that deployment: its controller is the plan's first one."""
        ...


class FleetApplier:
    """Applies for real. The holder is this process, so that its own abort is heard.

    What applies is imported by who needs it, here and beside this: the UI starts without.
    """

    async def preview(self, feed: Feed, plan: Plan) -> ApplyPreview:
        from odctl.apply import preview_apply

        async def work(fleet: Fleet) -> ApplyPreview:
            return await preview_apply(fleet, plan, cluster=feed.cluster)

        return await feed.call(work)

    async def apply(
        self, feed: Feed, preview: ApplyPreview, on_event: OnEvent, *, cause: Cause = "apply", reason: str = ""
    ) -> ApplyEvent:
        from odctl.apply import apply_plan

        async def work(fleet: Fleet) -> ApplyEvent:
            return await apply_plan(
                fleet, preview, on_event=on_event, holder=operator_name(), cause=cause, reason=reason
            )

        return await feed.call(work)

    async def abort(self, feed: Feed, plan: Plan) -> str:
        from odctl.apply import abort_apply

        async def work(fleet: Fleet) -> str:
            return await abort_apply(fleet, plan, holder=operator_name())

        return await feed.call(work)
