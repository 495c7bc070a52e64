"""What all main screens share: title, tabs, a body, the prompt and the key line.

A screen draws when it is shown, when the size changes and when a snapshot arrives while it is current; a hidden
screen does not draw.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, cast

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import Input

from odctl.fleet import FleetSnapshot
from odctl.tui.model.completion import Vocabulary, command_candidates
from odctl.tui.model.frame import title_line
from odctl.tui.model.table import Column
from odctl.tui.model.vocabulary import vocabulary_of
from odctl.tui.plan_files import find_plan_files
from odctl.tui.screens.confirm import ConfirmScreen
from odctl.tui.widgets.key_line import KeyLine
from odctl.tui.widgets.lines import LinesBar
from odctl.tui.widgets.prompt import Prompt
from odctl.tui.widgets.scrub_bar import ScrubBar
from odctl.tui.widgets.tabs import TabsBar

if TYPE_CHECKING:
    from odctl.tui.app import OdctlApp


class FrameScreen(Screen[None]):
    """`mode` is the tab it stands under; `trail` is what the title says after the cluster."""

    DEFAULT_CSS = """
    FrameScreen { layout: vertical; }
    FrameScreen #title { background: $panel; }
    FrameScreen #tabs { margin-bottom: 0; }
    FrameScreen #summary { height: auto; }
    FrameScreen #detail { height: auto; }
    """
    mode: ClassVar[str] = ""
    BINDINGS: ClassVar[list[BindingType]] = [
        # Priority: keys typed fast after it must find the prompt open, not whatever had the focus before.
        Binding("colon", "prompt", "Command", key_display=":", id="frame.command", priority=True),
        Binding("escape", "back", "Back", id="frame.back", show=False),
    ]

    @property
    def odctl(self) -> OdctlApp:
        return cast("OdctlApp", self.app)

    @property
    def has_parts(self) -> bool:
        """Whether it can be drawn. While the app leaves, a screen still stands there, and its parts are gone."""
        return self.is_mounted and self.app.is_running and self.size.width > 0

    def trail(self) -> Sequence[str]:
        return (self.mode.title(),)

    def address(self) -> str:
        """The command that leads to what is shown, for the history of views; empty: it has no place there."""
        return self.mode if self.app.screen_stack[0] is self else ""

    def table_columns(self) -> tuple[Column, ...]:
        """Columns that a filter or a sort may name here."""
        return ()

    def compose(self) -> ComposeResult:
        yield LinesBar(id="title")
        yield TabsBar(id="tabs")
        yield from self.compose_body()
        yield ScrubBar(id="time")
        yield Prompt()
        yield KeyLine(id="keys")

    def compose_body(self) -> ComposeResult:
        raise NotImplementedError

    def draw(self, snapshot: FleetSnapshot | None) -> None:
        """Show the snapshot in the body. None: there is none yet."""
        raise NotImplementedError

    def redraw(self) -> None:
        """Draw everything anew from the latest snapshot, if this screen is the one that is seen."""
        if not self.has_parts:
            return
        snapshot, width = self.odctl.snapshot, self.size.width
        self.query_one("#title", LinesBar).show(
            [
                title_line(
                    snapshot,
                    self.trail(),
                    width=width,
                    is_read_only=self.odctl.is_read_only,
                    now_s=self.odctl.clock.now_s(),
                    unlocked_for_s=self.odctl.guard.unlocked_for_s,
                    moment=self.odctl.time.title_spans(now_s=self.odctl.clock.now_s()),
                    recording=self.odctl.time.recording_spans(),
                )
            ]
        )
        self.query_one(TabsBar).show_tabs(self.mode, width=width)
        self.query_one("#time", ScrubBar).show_time(self.odctl.time.scrub_lines(width))
        self.draw(snapshot)
        if not self.has_prompt:
            # A filter that is being typed is no view yet.
            self.odctl.views.visit(self.address())

    def on_scrub_bar_sought(self, event: ScrubBar.Sought) -> None:
        self.odctl.seek_cell(event.cell, event.width)

    def on_screen_resume(self) -> None:
        self.call_after_refresh(self.redraw)

    def on_resize(self) -> None:
        self.call_after_refresh(self.redraw)

    def on_lines_view_width_changed(self) -> None:
        """A page was broken before the layout had come to its end, or something beside it came or went."""
        self.redraw()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002 - Textual's
        """`:` and `/` are letters while something is being written."""
        return not (action in {"prompt", "filter"} and isinstance(self.focused, Input))

    @property
    def has_prompt(self) -> bool:
        """Whether the line at the bottom is open."""
        return self.query_one(Prompt).is_open

    def leave_question(self, verb: str) -> ConfirmScreen | None:  # noqa: ARG002 - for screens that have something to lose
        """What to ask before something is lost with this screen; None: nothing would be."""
        return None

    def may_leave(self) -> bool:
        """False where leaving would lose something: the screen has asked then, and leaves by itself."""
        question = self.leave_question("Leave")
        if question is not None:
            self.app.push_screen(question, lambda is_sure: self.leave() if is_sure else None)
        return question is None

    def leave(self) -> None:
        """One step back, whatever is lost."""
        self.app.pop_screen()

    def action_prompt(self) -> None:
        self.open_prompt("")

    def open_prompt(self, text: str) -> None:
        """The command line, with its beginning typed already."""
        complete = functools.partial(command_candidates, words=self.vocabulary(), files=find_plan_files)
        self.query_one(Prompt).open(":", text=text, complete=complete)

    def vocabulary(self) -> Vocabulary:
        """Names that can be typed now."""
        return vocabulary_of(
            self.odctl.snapshot,
            self.odctl.preview,
            columns=self.table_columns(),
            themes=tuple(sorted(self.odctl.available_themes)),
        )

    def on_tabs_bar_chosen(self, event: TabsBar.Chosen) -> None:
        event.stop()
        self.odctl.action_mode(event.mode)

    def action_back(self) -> None:
        """Close the prompt, or else one step back."""
        prompt = self.query_one(Prompt)
        if prompt.is_open:
            prompt.close()
            self.focus_body()
        elif len(self.app.screen_stack) > 1 and self.may_leave():
            self.leave()

    def focus_body(self) -> None:
        """Give the focus to the first thing of the body that takes it."""
        for widget in self.query("FleetTable, LinesView"):
            if widget.display and widget.focusable:
                # At once: what is hidden while it has the focus gives it up, which would come after one asked for.
                self.set_focus(widget)
                return

    def on_prompt_submitted(self, event: Prompt.Submitted) -> None:
        self.focus_body()
        if event.kind == ":" and event.text.strip():
            self.odctl.run_command(event.text)
