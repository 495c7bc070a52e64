"""Faults as lanes over time, each with its steps and evidence; or as a list. `enter` opens a story in full."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal

from odctl.fleet import FleetSnapshot
from odctl.timeline import Lane, Story
from odctl.timeline.text import story_text
from odctl.tui.model.fault_lanes import (
    LaneRows,
    TimelineOf,
    legend_line,
    open_lines,
    story_page,
    timeline_summary,
)
from odctl.tui.model.fault_rows import FaultRows, fault_page, fault_summary
from odctl.tui.model.table import Rows
from odctl.tui.model.text import Line, Span, line
from odctl.tui.model.time_axis import Axis
from odctl.tui.screens.frame import FrameScreen
from odctl.tui.screens.table import TableScreen
from odctl.tui.widgets.fleet_table import FleetTable
from odctl.tui.widgets.lane_table import LaneTable
from odctl.tui.widgets.lines import LinesBar, LinesView


class FaultsScreen(TableScreen):
    mode = "faults"
    DEFAULT_CSS = """
    FaultsScreen #table { height: 2fr; min-height: 4; }
    FaultsScreen #below { height: 3fr; }
    FaultsScreen #detail { height: 1fr; width: 2fr; }
    FaultsScreen #open { height: 1fr; width: 1fr; display: none; }
    FaultsScreen.-wide #open { display: block; border-left: solid $panel; }
    FaultsScreen.-list #open, FaultsScreen.-list #legend { display: none; }
    """
    empty = "no fault was observed"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("plus,equals_sign", "zoom(1)", "Zoom", key_display="+ _", id="faults.zoom_in"),
        Binding("underscore", "zoom(-1)", "Zoom out", id="faults.zoom_out", show=False),
        Binding("z", "fit", "Fit", id="faults.fit", tooltip="zoom to the chosen story"),
        Binding("n", "now", "Now", id="faults.now", tooltip="follow the present again"),
        Binding("less_than_sign", "story(-1)", "Story before", key_display="<", id="faults.before", show=False),
        Binding("greater_than_sign", "story(1)", "Story after", key_display=">", id="faults.after", show=False),
        Binding("v", "toggle_list", "Lanes/list", id="faults.view"),
        Binding("c", "copy", "Copy", id="faults.copy", tooltip="the chosen story as text"),
        Binding("o", "host", "Host", id="faults.host"),
        Binding("d", "deployment", "Deployment", id="faults.deployment"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.axis = Axis()
        self.shows_list = False
        self._timelines = TimelineOf()
        self._story_id = ""
        """The story that was stepped to; empty: the lane's newest."""

    def trail(self) -> tuple[str, ...]:
        return ("Faults", "List") if self.shows_list else ("Faults", "Timeline")

    def compose_body(self) -> ComposeResult:
        yield LinesBar(id="summary")
        yield LaneTable(id="table")
        yield LinesBar(id="legend")
        with Horizontal(id="below"):
            yield LinesView(id="detail")
            yield LinesView(id="open")

    # --- drawing ------------------------------------------------------------------------------------------

    def rows(self, snapshot: FleetSnapshot) -> Rows:
        if self.shows_list:
            return FaultRows(snapshot)
        self.query_one(LaneTable).show_axis(self.axis, now_s=snapshot.taken_at_s)
        return LaneRows(self._timelines.read(snapshot), self.axis, now_s=snapshot.taken_at_s)

    def summary(self, snapshot: FleetSnapshot, width: int) -> tuple[Line, ...]:  # noqa: ARG002 - short lines
        if self.shows_list:
            return (fault_summary(snapshot),)
        return timeline_summary(self._timelines.read(snapshot), self.axis, now_s=snapshot.taken_at_s)

    def draw_detail(self) -> None:
        snapshot = self.odctl.snapshot
        page, still = self.query_one("#detail", LinesView), self.query_one("#open", LinesView)
        self.set_class(self.shows_list, "-list")
        self.query_one("#legend", LinesBar).show([legend_line(self.size.width)])
        if snapshot is None:
            return
        now_s = snapshot.taken_at_s
        if self.shows_list:
            key = self.table.cursor_key
            page.show(fault_page(snapshot, key, width=page.content_width) if key else ())
            return
        found = self.chosen
        page.show(story_page(*found, width=page.content_width, now_s=now_s) if found else ())
        still.show(open_lines(self._timelines.read(snapshot), width=still.content_width, now_s=now_s))

    @property
    def chosen(self) -> tuple[Lane, Story] | None:
        """The lane under the cursor, with the story that was stepped to, or else its newest."""
        snapshot = self.odctl.snapshot
        if snapshot is None:
            return None
        key = self.table.cursor_key
        lanes = self._timelines.read(snapshot).lanes
        if self.shows_list:
            return _story_in(lanes, key or "")
        lane = next((lane for lane in lanes if lane.key.text == key), None)
        if lane is None:
            return None
        return lane, next((story for story in lane.stories if story.story_id == self._story_id), lane.newest)

    def on_fleet_table_cursor_moved(self) -> None:
        # The detail is drawn by the table screen's own handler, which comes after this one.
        self._story_id = ""

    # --- time ---------------------------------------------------------------------------------------------

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """A list has no axis."""
        if self.shows_list and action in {"zoom", "fit", "now", "scrub", "story"}:
            return False
        return super().check_action(action, parameters)

    def action_zoom(self, step: int) -> None:
        self._set_axis(self.axis.zoomed(step, now_s=self._now_s))

    def action_scrub(self, step: int) -> None:
        self._set_axis(self.axis.scrubbed(step, now_s=self._now_s))

    def action_now(self) -> None:
        self._set_axis(Axis(span_s=self.axis.span_s))

    def action_fit(self) -> None:
        """As close to the chosen story as shows all of it."""
        found = self.chosen
        if found is None:
            return
        story = found[1]
        if story.began_s is None:
            self.notify("nobody knows when this began", severity="warning")
            return
        begin_s = min((step.at_s for step in story.steps), default=story.began_s)
        end_s = story.steps[-1].at_s if story.steps and not story.is_open else self._now_s
        self._set_axis(self.axis.around(begin_s, max(begin_s, end_s), now_s=self._now_s))

    def action_story(self, step: int) -> None:
        """The story before or after the shown one, in the same lane."""
        found = self.chosen
        if found is None:
            return
        lane, story = found
        place = lane.stories.index(story) + step
        if 0 <= place < len(lane.stories):
            self._story_id = lane.stories[place].story_id
            self.draw_detail()

    @property
    def _now_s(self) -> float:
        return self.odctl.snapshot.taken_at_s if self.odctl.snapshot else self.odctl.clock.now_s()

    def _set_axis(self, axis: Axis) -> None:
        self.axis = axis
        self.redraw()

    # --- leaving for elsewhere ----------------------------------------------------------------------------

    def action_toggle_list(self) -> None:
        self.shows_list = not self.shows_list
        self.sort = None
        self.refresh_bindings()
        self.redraw()

    def action_copy(self) -> None:
        found = self.chosen
        if found is not None:
            copy_story(self, found[1])

    def action_host(self) -> None:
        found = self.chosen
        if found is not None:
            open_host_of(self, found[1])

    def action_deployment(self) -> None:
        found = self.chosen
        if found is not None:
            open_deployment_of(self, found[1])

    def on_fleet_table_chosen(self, _event: FleetTable.Chosen) -> None:
        found = self.chosen
        if found is not None:
            self.app.push_screen(StoryScreen(self._timelines, *found))


class StoryScreen(FrameScreen):
    """One story over the whole screen, kept up to date; what it was last stays when it is gone."""

    mode = "faults"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "Back", id="story.back"),
        Binding("less_than_sign", "story(-1)", "Story before", key_display="<", id="story.before"),
        Binding("greater_than_sign", "story(1)", "Story after", key_display=">", id="story.after"),
        Binding("c", "copy", "Copy", id="story.copy"),
        Binding("o", "host", "Host", id="story.host"),
        Binding("d", "deployment", "Deployment", id="story.deployment"),
    ]

    def __init__(self, timelines: TimelineOf, lane: Lane, story: Story) -> None:
        super().__init__()
        self._timelines = timelines
        self._lane = lane
        self._is_gone = False
        self.story = story

    def trail(self) -> tuple[str, ...]:
        return ("Faults", self._lane.key.label, self.story.kind)

    def compose_body(self) -> ComposeResult:
        yield LinesView(id="page")

    def draw(self, snapshot: FleetSnapshot | None) -> None:
        page = self.query_one("#page", LinesView)
        if snapshot is None:
            return
        found = _story_in(self._timelines.read(snapshot).lanes, self.story.story_id)
        self._is_gone = found is None
        if found is not None:
            self._lane, self.story = found
        lines = story_page(self._lane, self.story, width=page.content_width, now_s=snapshot.taken_at_s)
        gone = line(Span(" ▲ nobody tells of this any more: it stands as it was told last", "warn"))
        page.show((gone, *lines) if self._is_gone else lines)

    def action_story(self, step: int) -> None:
        stories = self._lane.stories
        ids = [story.story_id for story in stories]
        place = ids.index(self.story.story_id) + step if self.story.story_id in ids else -1
        if 0 <= place < len(stories):
            self.story = stories[place]
            self.redraw()

    def action_copy(self) -> None:
        copy_story(self, self.story)

    def action_host(self) -> None:
        open_host_of(self, self.story)

    def action_deployment(self) -> None:
        open_deployment_of(self, self.story)


def copy_story(screen: FrameScreen, story: Story) -> None:
    """The story as text, to the terminal's clipboard."""
    lines = story_text(story)
    screen.app.copy_to_clipboard("\n".join(lines) + "\n")
    screen.notify(f"{len(lines)} lines are in the clipboard, where the terminal allows that", timeout=3)


def open_host_of(screen: FrameScreen, story: Story) -> None:
    if story.host:
        screen.odctl.open_host(story.host)
    else:
        screen.notify("this trouble names no host", severity="warning")


def open_deployment_of(screen: FrameScreen, story: Story) -> None:
    """The deployment that it befell, where it still runs."""
    snapshot = screen.odctl.snapshot
    if not story.deployment:
        screen.notify("this trouble is no deployment's", severity="warning")
    elif snapshot is None or snapshot.deployment(story.deployment) is None:
        screen.notify(
            f"{story.deployment} does not run now: `odctl history {story.deployment}` tells its past",
            severity="warning",
        )
    else:
        screen.odctl.open_deployment(story.deployment)


def _story_in(lanes: tuple[Lane, ...], story_id: str) -> tuple[Lane, Story] | None:
    return next(((lane, story) for lane in lanes for story in lane.stories if story.story_id == story_id), None)
