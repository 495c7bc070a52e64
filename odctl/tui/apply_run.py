"""An apply that this session began: followed to its end whatever screen is shown, looked at from any of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from agent.errors import ErrorDetail, FleetError
from agent.wire.agent import ApplyEvent
from agent.wire.history import Cause
from odctl.tui.applying import Applier
from odctl.tui.feed import Feed
from odctl.tui.model.apply_progress import ApplyProgress, fail, take_event

if TYPE_CHECKING:
    from odctl.apply import ApplyPreview

Happening = ApplyEvent | ErrorDetail | None
"""An event; why it could not be followed; or its end, which the events before it have told."""


class ApplyRun:
    """Its progress as far as it was heard. Screens read it; only the app's own thread changes it."""

    def __init__(self, preview: ApplyPreview, *, cause: Cause = "apply", reason: str = "") -> None:
        self.preview = preview
        self.progress = ApplyProgress(plan=preview.plan)
        self._cause: Cause = cause
        self._reason = reason

    @property
    def name(self) -> str:
        return self.preview.plan.name

    @property
    def is_rollback(self) -> bool:
        return self._cause == "rollback"

    async def follow(self, applier: Applier, feed: Feed, tell: Callable[[Happening], None]) -> None:
        """Apply, and tell everything that happens in order, its end last. `tell` is called from any thread."""
        last: ApplyEvent | None = None

        async def on_event(event: ApplyEvent) -> None:
            nonlocal last
            last = event
            tell(event)

        end: Happening = None
        try:
            outcome = await applier.apply(feed, self.preview, on_event, cause=self._cause, reason=self._reason)
            if outcome != last:
                tell(outcome)
        except FleetError as error:
            end = error.detail
        tell(end)

    def take(self, happening: Happening) -> None:
        """The progress after what was told."""
        match happening:
            case ApplyEvent():
                self.progress = take_event(self.progress, happening)
            case ErrorDetail():
                self.progress = fail(self.progress, happening)
            case None:
                return

    def take_abort(self) -> None:
        """The controller was told to roll back; its events say when it has."""
        self.progress = msgspec.structs.replace(self.progress, is_aborting=not self.progress.is_over)
