"""Plans that are made here: new ones, edited ones, and the files they are written to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from textual import work

from agent.errors import FleetError
from agent.planner.file import plan_hash, plan_to_toml
from agent.planner.plan import Plan
from odctl.tui import screens
from odctl.tui.app_opening import AppOpening
from odctl.tui.editing import BasisReader
from odctl.tui.model.plans import NEW, PlanChoice
from odctl.tui.planning import Planner

# What makes plans is imported by who needs it: with its numpy, it is a sixth of what the app would import.
if TYPE_CHECKING:
    from odctl.planning import PlanAsk


class AppMaking(AppOpening):
    """The app's part of making plans and keeping them."""

    planner: Planner
    _basis_reader: BasisReader
    marked_hosts: frozenset[str] = frozenset()
    """Hosts that are marked in the fleet: what is planned next is planned over them."""

    def new_plan(self, model: str = "", *, shown: str = "", words: str = "") -> None:
        """Ask how a model is to be planned, and plan it; without one, let it be chosen first."""
        if not model:
            self.go_to("models")
            self.notify("choose a model: p plans it", timeout=6)
            return

        def make(asked: PlanAsk | None) -> None:
            if asked is not None:
                self._make_plan(asked)

        self.push_screen(
            screens.new_plan.NewPlanScreen(model, shown=shown, hosts=sorted(self.marked_hosts), words=words), make
        )

    @work(exclusive=True, group="planning")
    async def _make_plan(self, asked: PlanAsk) -> None:
        self.notify(f"planning {asked.model} …", timeout=2)
        try:
            made, missing = await self.planner.make(self.feed, asked)
        except FleetError as error:
            self.notify(str(error), title="there is no plan", severity="error", timeout=12)
            return
        self.clear_notifications()
        if missing:
            self.notify(f"planned without {', '.join(missing)}: no answer", severity="warning")
        self.open_preview(PlanChoice(origin=NEW, plan=made, plan_hash=plan_hash(made)))

    def edit_plan(self, choice: PlanChoice) -> None:
        """Open the editor over a plan, once the fleet has said what it is to be computed over."""
        self.notify(f"asking the fleet about {choice.plan.model.name} …", timeout=2)
        self._open_editor(choice)

    @work(exclusive=True, group="editor")
    async def _open_editor(self, choice: PlanChoice) -> None:
        from odctl.tui.model.plan_editor import open_editor

        try:
            found = await self._basis_reader.read(self.feed, choice.plan)
            state = await asyncio.to_thread(open_editor, choice.origin, choice.plan, found.basis)
        except FleetError as error:
            self.notify(str(error), title=f"{choice.plan.name} cannot be edited", severity="error", timeout=12)
            return
        if isinstance(self.screen, screens.plans.PlansScreen):
            self.clear_notifications()
            self.push_screen(screens.plan_editor.PlanEditorScreen(state, found.basis))
            for host, reason in sorted(found.missing.items()):
                self.notify(f"{host} does not answer: {reason.message}", severity="warning")

    def ask_to_write(self, choice: PlanChoice, then: Callable[[Path], None]) -> None:
        """Ask for a file's name, and again before one is replaced; write the plan there, and go on with `then`."""
        if reason := self.guard.never:
            # In a browser a file would be written to the machine that serves it.
            self.notify(f"this session stays read-only: {reason}", title="not written", severity="warning")
            return
        name = choice.origin if choice.origin.endswith(".toml") else f"{choice.plan.name}.toml"

        def write_to(name: str | None) -> None:
            path = Path(name).expanduser() if name else None
            if path is None:
                return
            if not path.exists():
                self._write_plan(choice.plan, path, then, replaces=False)
                return

            def replace(is_sure: bool | None) -> None:
                if is_sure:
                    self._write_plan(choice.plan, path, then, replaces=True)

            lines = ["There is such a file already."]
            self.push_screen(
                screens.confirm.ConfirmScreen(title=f"Replace {path}?", lines=lines, verb="Replace it"), replace
            )

        self.push_screen(
            screens.file_name.FileNameScreen(title=f"Write {choice.plan.name} to which file?", name=name), write_to
        )

    @work(group="write", exclusive=True)
    async def _write_plan(self, plan: Plan, path: Path, then: Callable[[Path], None], *, replaces: bool) -> None:
        from odctl.editing import write_plan_file

        try:
            await asyncio.to_thread(write_plan_file, path, plan_to_toml(plan), replaces=replaces)
        except FleetError as error:
            self.notify(str(error), title="not written", severity="error")
            return
        then(path)

    def show_written(self, plan: Plan, *, path: str) -> None:
        """A plan that was written is the one that is previewed, so that it can be applied."""
        self.preview_error = ""
        self.preview = PlanChoice(origin=path, plan=plan, plan_hash=plan_hash(plan))
