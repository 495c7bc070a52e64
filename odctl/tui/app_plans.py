"""Plans, wherever one stands: held against the fleet, applied after asking, compared, gone back to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from textual import work
from textual.message import Message

from agent.errors import ErrorDetail, FleetError
from agent.planner.plan import Plan
from agent.wire.agent import ApplyPhase
from agent.wire.history import Cause
from odctl.tui import screens
from odctl.tui.app_time import TimeApp
from odctl.tui.apply_run import ApplyRun, Happening
from odctl.tui.applying import Applier
from odctl.tui.feed import Feed
from odctl.tui.model.keymap import Keymap
from odctl.tui.model.plans import PlanChoice, running_choice
from odctl.tui.options import UiOptions

if TYPE_CHECKING:
    from odctl.apply import ApplyPreview


class Applied(Message):
    """Something happened in an apply of this session; posted from the fleet's thread, in order."""

    def __init__(self, run: ApplyRun, happening: Happening) -> None:
        super().__init__()
        self.run = run
        self.happening = happening


class AppPlans(TimeApp):
    """The app's part of plans, wherever one stands on the screen."""

    preview: PlanChoice | None
    _applier: Applier

    def __init__(self, feed: Feed, *, options: UiOptions, keymap: Keymap) -> None:
        super().__init__(feed, options=options, keymap=keymap)
        self.apply_runs: dict[str, ApplyRun] = {}
        """Applies of this session, the newest of each deployment; the last one last."""

    # --- applying -----------------------------------------------------------------------------------------

    def ask_to_apply(self, choice: PlanChoice, *, cause: Cause = "apply", reason: str = "") -> None:
        """Hold the plan against the fleet, ask, and apply. A rollback is an apply that says so in the history."""
        if not self.may_change():
            return
        run = self.apply_runs.get(choice.plan.name)
        if run is not None and not run.progress.is_over:
            self.notify(f"an apply of {run.name} is under way: v shows it", severity="warning")
            return
        self.notify(f"holding {choice.plan.name} against the fleet …", timeout=2)
        self._prepare_apply(choice, cause, reason)

    @work(exclusive=True, group="prepare")
    async def _prepare_apply(self, choice: PlanChoice, cause: Cause, reason: str) -> None:
        try:
            preview = await self._applier.preview(self.feed, choice.plan)
        except FleetError as error:
            verb = "rolled back to" if cause == "rollback" else "applied"
            self.notify(str(error), title=f"{choice.plan.name} cannot be {verb}", severity="error", timeout=12)
            return
        if preview.is_noop:
            self.notify(f"generation {preview.running_generation} serves this very plan", title="no changes")
            return
        self.clear_notifications()
        self.push_screen(
            screens.apply.apply_question(preview, cause, reason, typed=self._typed(preview.plan)),
            lambda is_sure: self._apply(preview, cause, reason) if is_sure else None,
        )

    def _typed(self, plan: Plan) -> str:
        """What has to be typed before so many hosts are changed."""
        return self.name_to_type(plan.name, num_hosts=len(plan.hosts))

    def _apply(self, preview: ApplyPreview, cause: Cause, reason: str) -> None:
        run = ApplyRun(preview, cause=cause, reason=reason)
        self.apply_runs.pop(run.name, None)  # so that the newest is the last
        self.apply_runs[run.name] = run
        self._follow_apply(run)
        self.show_apply(run.name)

    @work(group="apply")
    async def _follow_apply(self, run: ApplyRun) -> None:
        """To its end, whatever screen is shown. What the fleet's thread hears comes here as messages, in order."""

        def tell(happening: Happening) -> None:
            self.post_message(Applied(run, happening))

        await run.follow(self._applier, self.feed, tell)

    def on_applied(self, message: Applied) -> None:
        run, happening = message.run, message.happening
        run.take(happening)
        if isinstance(self.screen, screens.apply.ApplyScreen) and self.screen.apply_run is run:
            self.screen.redraw()
        elif isinstance(happening, ErrorDetail):
            how = "is out of sight" if run.progress.is_out_of_sight else "failed"
            self.notify(happening.message, title=f"apply of {run.name} {how}: v shows it", severity="error")
        elif happening is None:
            self.notify(f"{run.name} serves, generation {run.progress.generation}", title="applied")

    def show_apply(self, deployment: str) -> None:
        """Back to the screen of an apply of this session: that deployment's, or else the last one."""
        run = self.apply_runs.get(deployment) or next(reversed(self.apply_runs.values()), None)
        if run is None:
            self.notify("this session has applied nothing yet", severity="warning")
        elif not (isinstance(self.screen, screens.apply.ApplyScreen) and self.screen.apply_run is run):
            if self.current_mode != "plans":
                self.action_mode("plans")
            self.push_screen(screens.apply.ApplyScreen(run))

    def ask_to_abort(self, plan: Plan, *, phase: ApplyPhase | None) -> None:
        """Ask, then have the apply of the plan's deployment rolled back, whoever began it."""

        def abort(is_sure: bool | None) -> None:
            if is_sure:
                self._abort(plan)

        if self.may_change():
            self.push_screen(screens.apply.abort_question(plan.name, phase, typed=self._typed(plan)), abort)

    @work(group="abort")
    async def _abort(self, plan: Plan) -> None:
        try:
            said = await self._applier.abort(self.feed, plan)
        except FleetError as error:
            self.notify(str(error), title=f"the apply of {plan.name} was not aborted", severity="error")
            return
        if (run := self.apply_runs.get(plan.name)) is not None:
            run.take_abort()
        self.notify(said)

    # --- comparing and going back -------------------------------------------------------------------------

    @work(exclusive=True, group="compare")
    async def compare_files(self, paths: Sequence[str]) -> None:
        """Plans by name of what runs, or by file, beside each other."""
        from odctl.tui.model.compare_view import compare_view
        from odctl.tui.plan_folder import read_choice

        try:
            choices: list[PlanChoice] = []
            for path in paths:
                running = running_choice(self.snapshot, path)
                choices.append(running if running is not None else await asyncio.to_thread(read_choice, path))
            compare_view(choices, facts=None)
        except FleetError as error:
            self.notify(str(error), title="not compared", severity="error", timeout=12)
            return
        self.go_to("plans")
        self.push_screen(screens.compare.CompareScreen(choices))

    def open_history(self, deployment: str) -> None:
        """The generations of a deployment; of the one whose plan is shown, when none is named."""
        if not deployment:
            shown = self.screen.choice if isinstance(self.screen, screens.plans.PlansScreen) else None
            running = [view.name for view in self.snapshot.deployments] if self.snapshot is not None else []
            deployment = shown.plan.name if shown is not None else running[0] if len(running) == 1 else ""
        if not deployment:
            self.notify("say of which deployment: :history NAME", severity="warning")
            return
        self.go_to("plans")
        self.push_screen(screens.plan_history.PlanHistoryScreen(deployment))
