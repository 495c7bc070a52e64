"""A plan's editor: keys move boundaries, groups and hosts; everything is computed anew beside the screen.

Keys wait in order for what is computed before them. Nothing is lost: leaving asks, writing never replaces unasked.
"""

from __future__ import annotations

import asyncio
from collections import deque
from pathlib import Path
from typing import ClassVar

import msgspec
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from agent.planner.edit import AddStage, Basis, MoveBoundary, PlaceStage, RemoveStage, SetServing
from agent.planner.file import plan_hash
from odctl.fleet import FleetSnapshot
from odctl.tui.model.plan_editor import (
    Action,
    Cursor,
    CycleTensor,
    EditorState,
    Redo,
    ShiftShare,
    ToggleExcluded,
    TogglePinned,
    Undo,
    boundary_move,
    editor_page,
    move_choice,
    move_row,
    perform,
    place_cursor,
    row_host,
    row_place,
    row_spare,
)
from odctl.tui.model.plans import PlanChoice
from odctl.tui.screens.confirm import ConfirmScreen
from odctl.tui.screens.frame import FrameScreen
from odctl.tui.widgets.lines import LinesView

MAX_WAITING = 32
"""Keys that wait for a computation; further ones are refused rather than done long after."""


class PlanEditorScreen(FrameScreen):
    mode = "plans"
    AUTO_FOCUS = ""  # nothing has the focus: keys are the editor's
    BINDINGS: ClassVar[list[BindingType]] = [
        # As on every screen, but without its place among the keys at the bottom: there are many here.
        Binding("colon", "prompt", "Command", key_display=":", id="editor.command", priority=True, show=False),
        Binding("left", "boundary(-1)", "Boundary", key_display="←→", id="editor.boundary_before"),
        Binding("right", "boundary(1)", "Next boundary", id="editor.boundary_after", show=False),
        Binding("plus,equals_sign,shift+right", "move(1)", "Move", key_display="+-", id="editor.grow"),
        Binding("minus,shift+left", "move(-1)", "Move back", key_display="-", id="editor.shrink", show=False),
        Binding("up,k", "row(-1)", "Row above", id="editor.up", show=False),
        Binding("down,j", "row(1)", "Row below", id="editor.down", show=False),
        Binding("t", "tensor", "Tensor", id="editor.tensor"),
        Binding("greater_than_sign", "share(1)", "KV head more", key_display=">", id="editor.share", show=False),
        Binding("less_than_sign", "share(-1)", "KV head less", key_display="<", id="editor.unshare", show=False),
        Binding("x", "exclude", "Exclude", id="editor.exclude"),
        Binding("p", "pin", "Pin", id="editor.pin"),
        Binding("enter", "place", "Stage to this device", id="editor.place", show=False),
        Binding("n", "add", "New stage on this device", id="editor.add", show=False),
        Binding("delete,d", "remove", "Remove the stage", id="editor.remove", show=False),
        Binding("s", "set", "Set", id="editor.set"),
        Binding("u", "undo", "Undo", id="editor.undo"),
        Binding("ctrl+r", "redo", "Redo", id="editor.redo", show=False),
        Binding("w", "write", "Write", id="editor.write"),
        Binding("escape", "back", "Leave", key_display="esc", id="editor.leave", show=False),
        Binding("pageup", "page(-1)", "Page up", id="editor.page_up", show=False),
        Binding("pagedown", "page(1)", "Page down", id="editor.page_down", show=False),
    ]

    def __init__(self, state: EditorState, basis: Basis) -> None:
        super().__init__()
        self.state = state
        self.basis = basis
        self.cursor = place_cursor(state, Cursor(), follows_row=True)
        self._waiting: deque[Action] = deque()
        self._is_computing = False

    @property
    def is_unsaved(self) -> bool:
        """Also while keys wait: what they will change is in no file."""
        return self.state.is_unsaved or self._is_computing

    @property
    def is_busy(self) -> bool:
        return self._is_computing

    def trail(self) -> tuple[str, ...]:
        return ("Plans", self.state.plan.name, "edit")

    def compose_body(self) -> ComposeResult:
        page = LinesView(id="page")
        page.can_focus = False  # arrows are the editor's
        yield page

    def draw(self, snapshot: FleetSnapshot | None) -> None:
        page = self.query_one("#page", LinesView)
        lines, cursor_line = editor_page(
            self.state, self.cursor, self.basis, snapshot, width=page.content_width, is_busy=self._is_computing
        )
        page.show(lines)
        top, height = page.scroll_offset.y, max(1, page.size.height)
        if not top <= cursor_line < top + height:
            page.scroll_to(y=max(0, cursor_line - height // 2), animate=False)

    def focus_body(self) -> None:
        self.set_focus(None)

    # --- keys -------------------------------------------------------------------------------------------

    def action_boundary(self, step: int) -> None:
        self._put_cursor(move_choice(self.state, self.cursor, step))

    def action_row(self, step: int) -> None:
        self._put_cursor(move_row(self.state, self.cursor, step))

    def action_page(self, step: int) -> None:
        page = self.query_one("#page", LinesView)
        page.scroll_relative(y=step * page.size.height, animate=False)

    def action_move(self, layers: int) -> None:
        here = MoveBoundary(replica=self.cursor.replica, stage=self.cursor.stage, layers=layers)
        last = self._waiting[-1] if self._waiting else None
        if isinstance(last, MoveBoundary) and (last.replica, last.stage) == (here.replica, here.stage):
            # A key held down is one long move, however slow the computation is.
            self._waiting[-1] = msgspec.structs.replace(last, layers=last.layers + layers)
            return
        self.ask(here)

    def action_tensor(self) -> None:
        if (place := row_place(self.state, self.cursor)) is None:
            self.notify("this device is spare: choose a stage", severity="warning")
        else:
            self.ask(CycleTensor(replica=place.replica, stage=place.stage))

    def action_share(self, kv_heads: int) -> None:
        if (place := row_place(self.state, self.cursor)) is not None:
            self.ask(
                ShiftShare(
                    replica=place.replica, stage=place.stage, tensor_index=place.tensor_index, kv_heads=kv_heads
                )
            )

    def action_exclude(self) -> None:
        self.ask(ToggleExcluded(host=row_host(self.state, self.cursor)))

    def action_pin(self) -> None:
        self.ask(TogglePinned(host=row_host(self.state, self.cursor)))

    def action_place(self) -> None:
        """The stage of the chosen boundary goes to the spare device under the cursor."""
        if (spare := row_spare(self.state, self.cursor)) is None:
            self.notify("choose a spare device with ↓ for the stage to go to", severity="warning")
        else:
            self.ask(PlaceStage(replica=self.cursor.replica, stage=self.cursor.stage, devices=(spare.name,)))

    def action_add(self) -> None:
        if (spare := row_spare(self.state, self.cursor)) is None:
            self.notify("choose a spare device with ↓ for a new stage", severity="warning")
        else:
            self.ask(AddStage(replica=self.cursor.replica, stage=self.cursor.stage, devices=(spare.name,)))

    def action_remove(self) -> None:
        if (place := row_place(self.state, self.cursor)) is not None:
            self.ask(RemoveStage(replica=place.replica, stage=place.stage))

    def action_set(self) -> None:
        self.open_prompt("set ")

    def set_serving(self, text: str) -> None:
        """`context=4096`, as typed."""
        field, sign, value = text.partition("=")
        if sign:
            self.ask(SetServing(field=field.strip(), value=value.strip()))
        else:
            self.notify(f"`{text}` is no setting: write context=4096", severity="warning")

    def action_undo(self) -> None:
        self.ask(Undo())

    def action_redo(self) -> None:
        self.ask(Redo())

    # --- computing --------------------------------------------------------------------------------------

    def ask(self, action: Action) -> None:
        """Have it done after all that was asked before."""
        if len(self._waiting) >= MAX_WAITING:
            self.notify(f"{MAX_WAITING} keys wait already", severity="warning")
            return
        self._waiting.append(action)
        if not self._is_computing:
            self._is_computing = True
            self._compute()

    @work(group="compute")
    async def _compute(self) -> None:
        """In a thread: the screen goes on drawing and taking keys."""
        try:
            while self._waiting:
                action = self._waiting.popleft()
                if isinstance(action, MoveBoundary):
                    where = Cursor(replica=action.replica, stage=action.stage)
                    action = boundary_move(self.state, where, action.layers)
                self.state = await asyncio.to_thread(perform, self.state, action, self.basis)
                self.cursor = place_cursor(self.state, self.cursor)
                if self._waiting:
                    self.redraw()
        finally:
            self._is_computing = False
        self.redraw()

    def _put_cursor(self, cursor: Cursor) -> None:
        self.cursor = cursor
        self.redraw()

    # --- writing and leaving ----------------------------------------------------------------------------

    def action_write(self) -> None:
        if self._is_computing:
            self.notify("what was asked before is still computed: a moment", severity="warning")
            return
        if self.state.problems:
            self.notify(
                f"{self.state.problems[0].message} ({self.state.problems[0].way_out})",
                title="not written: it is not sound",
                severity="error",
            )
            return
        plan = self.state.plan

        def written(path: Path) -> None:
            said = f"written to {path}"
            self.state = msgspec.structs.replace(self.state, written=plan, origin=str(path), said=said)
            self.odctl.show_written(plan, path=str(path))
            self.redraw()

        choice = PlanChoice(origin=self.state.origin, plan=plan, plan_hash=plan_hash(plan))
        self.odctl.ask_to_write(choice, written)

    def leave_question(self, verb: str) -> ConfirmScreen | None:
        if not self.is_unsaved:
            return None
        lines = ["Its edits are not written to a file.", "w writes them."]
        return ConfirmScreen(title=f"{verb} without writing {self.state.plan.name}?", lines=lines, verb=verb)
