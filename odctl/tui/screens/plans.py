"""The plans that are known (the previewed one, what runs, files of the working directory), and one in full."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import msgspec
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from odctl.fleet import FleetSnapshot
from odctl.tui.model.plan_list import (
    PREVIEW_KEY,
    PlanEntry,
    PlanFile,
    PlanRows,
    plan_entries,
    to_compare,
    toggled,
)
from odctl.tui.model.plan_map import folds
from odctl.tui.model.plan_page import plan_page
from odctl.tui.model.plans import NEW, PlanChoice, plan_choices
from odctl.tui.model.text import BLANK, Line, Span, line, wrap
from odctl.tui.plan_folder import find_plans
from odctl.tui.screens.compare import CompareScreen
from odctl.tui.screens.confirm import ConfirmScreen
from odctl.tui.screens.frame import FrameScreen
from odctl.tui.screens.plan_history import PlanHistoryScreen
from odctl.tui.widgets.lines import LinesView
from odctl.tui.widgets.plan_table import PlanTable


class PlansScreen(FrameScreen):
    mode = "plans"
    DEFAULT_CSS = """
    PlansScreen #plans { height: auto; max-height: 6; }
    PlansScreen.-tall #plans { max-height: 10; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("less_than_sign", "step(-1)", "Plan before", key_display="<", id="plans.before", show=False),
        Binding("greater_than_sign", "step(1)", "Next plan", key_display=">", id="plans.next", show=False),
        Binding("a", "apply", "Apply…", id="plans.apply"),
        Binding("c", "compare", "Compare", id="plans.compare"),
        Binding("e", "edit", "Edit", id="plans.edit"),
        Binding("n", "new", "New…", id="plans.new"),
        Binding("w", "write", "Write…", id="plans.write", show=False),
        Binding("h", "history", "History", id="plans.history"),
        Binding("v", "progress", "Progress of an apply", id="plans.progress", show=False),
        Binding("A", "abort", "Abort…", id="plans.abort", show=False),
        Binding("x", "fold", "Fold", id="plans.fold", show=False),
        Binding("z", "zoom", "List away", id="plans.zoom", show=False),
        Binding("r", "reread", "Read files again", id="plans.reread", show=False),
        # The list has the focus, the page is what is read: these keys are the page's wherever the focus is.
        Binding("pageup", "scroll_page(-1)", "Page up", id="plans.page_up", show=False, priority=True),
        Binding("pagedown", "scroll_page(1)", "Page down", id="plans.page_down", show=False, priority=True),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.files: tuple[PlanFile, ...] = ()
        self.marked: tuple[str, ...] = ()
        self.chosen_key = ""
        """Of the plan that is shown; of one that is gone, the first of the list is."""
        self.is_folded: bool | None = None
        """None: as the plan's size suggests."""
        self.is_zoomed = False
        """The list is away, so that the page has its lines."""
        self._preview: PlanChoice | None = None

    def trail(self) -> tuple[str, ...]:
        entry = self.entry
        return ("Plans", entry.name) if entry is not None else ("Plans",)

    def address(self) -> str:
        if (choice := self.choice) is None:
            return "plans"
        return f"plan {choice.status.name if choice.status is not None else choice.origin}"

    def compose_body(self) -> ComposeResult:
        yield PlanTable(id="plans")
        yield LinesView(id="page")

    def on_screen_resume(self) -> None:
        super().on_screen_resume()
        self.action_reread()

    @property
    def table(self) -> PlanTable:
        return self.query_one("#plans", PlanTable)

    @property
    def entries(self) -> tuple[PlanEntry, ...]:
        return plan_entries(self.odctl.snapshot, self.odctl.preview, self.files)

    @property
    def entry(self) -> PlanEntry | None:
        """The line of the list that is shown."""
        entries = self.entries
        return next((each for each in entries if each.key == self.chosen_key), entries[0] if entries else None)

    @property
    def choice(self) -> PlanChoice | None:
        """The plan on the screen."""
        return entry.choice if (entry := self.entry) is not None else None

    def draw(self, snapshot: FleetSnapshot | None) -> None:
        if self.odctl.preview is not self._preview:
            # A file that was just read, or written by the editor, is what its user wants to see.
            self._preview = self.odctl.preview
            self.chosen_key = PREVIEW_KEY if self._preview is not None else self.chosen_key
        entries, entry = self.entries, self.entry
        self.marked = tuple(key for key in self.marked if any(each.key == key for each in entries))
        table, page = self.table, self.query_one("#page", LinesView)
        table.show(PlanRows(entries, self.marked), range(len(entries)))
        if entry is not None and table.cursor_key != entry.key:
            table.move_to(entry.key)
        self._show_list(len(entries) > 1 and not self.is_zoomed)
        page.show(self._page(entry, snapshot, page.content_width))

    def _show_list(self, is_shown: bool) -> None:
        """A list of one plan says nothing that the page does not. The focus goes with it, but from no prompt."""
        table = self.table
        if table.display == is_shown:
            return
        table.display = is_shown
        if not self.has_prompt:
            self.set_focus(table if is_shown else self.query_one("#page", LinesView))

    def _page(self, entry: PlanEntry | None, snapshot: FleetSnapshot | None, width: int) -> Sequence[Line]:
        if self.odctl.preview_error:
            return _error_lines(self.odctl.preview_error, width)
        if entry is None:
            return [
                line(Span(" no plan to show", "bold")),
                BLANK,
                line("   :plan FILE previews a plan file"),
                line("   n plans a model (or `odctl plan MODEL -o plan.toml`)"),
            ]
        if entry.choice is None:
            return _error_lines(entry.error, width)
        return plan_page(entry.choice, snapshot, width=width, is_folded=self.is_folded)

    # --- which one --------------------------------------------------------------------------------------

    def choose(self, key: str) -> None:
        """Show another plan of the list, from its top."""
        if key == self.chosen_key and not self.odctl.preview_error:
            return
        self.chosen_key, self.odctl.preview_error, self.is_folded = key, "", None
        self.query_one("#page", LinesView).scroll_home(animate=False)
        self.redraw()

    def choose_first(self) -> None:
        """The previewed plan, or what is wrong with it."""
        self.chosen_key, self.is_folded = PREVIEW_KEY, None
        self.query_one("#page", LinesView).scroll_home(animate=False)
        self.redraw()

    def choose_deployment(self, name: str) -> None:
        """Show the plan of a deployment that runs."""
        self.choose(f"run:{name}")

    def on_fleet_table_cursor_moved(self) -> None:
        # The cursor as it is now: the message may be of a while ago.
        entry, key = self.entry, self.table.cursor_key
        if key is not None and entry is not None and key != entry.key:
            self.choose(key)

    def on_fleet_table_chosen(self) -> None:
        self.action_zoom()

    def action_step(self, step: int) -> None:
        keys = [each.key for each in self.entries]
        if keys:
            here = keys.index(self.chosen_key) if self.chosen_key in keys else 0
            self.choose(keys[(here + step) % len(keys)])

    def action_zoom(self) -> None:
        self.is_zoomed = not self.is_zoomed
        self.redraw()

    def action_back(self) -> None:
        if self.is_zoomed and not self.has_prompt:
            self.action_zoom()
        else:
            super().action_back()

    def action_fold(self) -> None:
        """Ranks that are alike as one line, or each on its own."""
        if (choice := self.choice) is not None:
            is_folded = folds(choice.plan) if self.is_folded is None else self.is_folded
            self.is_folded = not is_folded
            self.redraw()

    def action_scroll_page(self, step: int) -> None:
        page = self.query_one("#page", LinesView)
        page.scroll_relative(y=step * max(1, page.size.height - 1), animate=False)

    @work(exclusive=True, group="plan-files")
    async def action_reread(self) -> None:
        """Plan files of the working directory, read beside the screen."""
        self.files = await asyncio.to_thread(find_plans, Path.cwd())
        if self.is_current:
            self.redraw()

    # --- what is done with it ---------------------------------------------------------------------------

    def on_plan_table_mark_asked(self, event: PlanTable.MarkAsked) -> None:
        self.marked = toggled(self.marked, event.key) if event.key is not None else ()
        self.redraw()

    def action_compare(self) -> None:
        entry = self.entry
        choices = to_compare(self.entries, self.marked, entry.key if entry is not None else None)
        if len(choices) < 2:
            said = "mark plans with space, two to four of them; or choose a file whose deployment runs"
            self.notify(said, title="nothing to compare", severity="warning")
            return
        self.app.push_screen(CompareScreen(choices))

    def action_apply(self) -> None:
        if (choice := self._sound_choice()) is not None:
            self.odctl.ask_to_apply(choice)

    def action_edit(self) -> None:
        if (choice := self._sound_choice()) is not None:
            self.odctl.edit_plan(choice)

    def action_new(self) -> None:
        self.odctl.new_plan()

    def action_write(self) -> None:
        """The shown plan to a file: a new one, or what runs, so that it can be kept."""
        if (choice := self._sound_choice()) is None:
            return

        def written(path: Path) -> None:
            self.notify(f"written to {path}")
            self.odctl.show_written(choice.plan, path=str(path))
            self.action_reread()

        self.odctl.ask_to_write(choice, written)

    def leave_question(self, verb: str) -> ConfirmScreen | None:
        """A plan that was made here, is in no file and does not run."""
        new = self.odctl.preview
        if new is None or new.origin != NEW:
            return None
        if any(new.plan_hash == choice.plan_hash for choice in plan_choices(self.odctl.snapshot, None)):
            return None
        lines = ["It is in no file yet.", "w writes it."]
        return ConfirmScreen(title=f"{verb} without writing {new.plan.name}?", lines=lines, verb=verb)

    def action_history(self) -> None:
        if (choice := self._sound_choice()) is not None:
            self.app.push_screen(PlanHistoryScreen(choice.plan.name))

    def action_progress(self) -> None:
        """Back to the screen of an apply: the shown plan's, or the last one of this session."""
        choice = self.choice
        self.odctl.show_apply(choice.plan.name if choice is not None else "")

    def action_abort(self) -> None:
        """Of an apply of the shown plan's deployment, also one that another session began."""
        choice, snapshot = self.choice, self.odctl.snapshot
        if choice is None:
            return
        run = self.odctl.apply_runs.get(choice.plan.name)
        view = snapshot.deployment(choice.plan.name) if snapshot is not None else None
        status = view.status if view is not None and view.error is None else None
        if run is not None and not run.progress.is_over:
            self.odctl.ask_to_abort(run.preview.plan, phase=run.progress.last_phase)
        elif status is not None and status.apply_phase is not None:
            plan = msgspec.structs.replace(choice.plan, controllers=(status.controller,))
            self.odctl.ask_to_abort(plan, phase=status.apply_phase)
        else:
            self.notify("no apply of it is under way", severity="warning")

    def _sound_choice(self) -> PlanChoice | None:
        entry = self.entry
        if self.odctl.preview_error or (entry is not None and entry.choice is None):
            self.notify("this file is no plan: mend it first", severity="warning")
            return None
        return entry.choice if entry is not None else None


def _error_lines(text: str, width: int) -> list[Line]:
    """A file's problems as the parser laid them out."""
    return [line(Span(f" {part}", "plain")) for row in text.splitlines() for part in wrap(row, width - 2)]
