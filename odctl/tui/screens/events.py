"""Journals and logs of all hosts, or of chosen ones, merged by time and followed live."""

from __future__ import annotations

from contextlib import aclosing
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.timer import Timer

from agent.errors import FleetError
from odctl.fleet import FleetSnapshot
from odctl.logs import LogEntry, LogFilter, follow_logs, parse_log_filter
from odctl.tui.model.log_lines import KEPT_ENTRIES, LogWindow, entry_lines, summary_line
from odctl.tui.model.text import Line, Span, line
from odctl.tui.screens.frame import FrameScreen
from odctl.tui.widgets.lines import LinesBar, LinesView
from odctl.tui.widgets.prompt import Prompt

PAST_LINES = 100
"""Of every log, when following begins."""
PAINT_S = 0.25
"""Between two paintings: a log that pours must not cost more than this."""
WAITING_ENTRIES = KEPT_ENTRIES
"""Kept while paused; then the oldest of them go."""


class EventsScreen(FrameScreen):
    mode = "logs"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "Filter", key_display="/", id="logs.filter", priority=True),
        Binding("space", "pause", "Pause/follow", id="logs.pause"),
        Binding("w", "wrap", "Wrap", id="logs.wrap"),
        Binding("less_than_sign", "step(-1)", "Host before", key_display="<", id="logs.before"),
        Binding("greater_than_sign", "step(1)", "Next host", key_display=">", id="logs.next"),
        Binding("r", "again", "Begin anew", id="logs.again", show=False),
        Binding("x", "clear", "Clear", id="logs.clear", show=False),
        Binding("G,end", "last", "Newest line", id="logs.last", show=False),
        Binding("g,home", "first", "Oldest line", id="logs.first", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.filter_text = ""
        self.is_paused = False
        self.is_wrapped = False
        self.window = LogWindow()
        self._filter = LogFilter()
        self._error = ""
        self._trouble = ""
        self._hosts: tuple[str, ...] | None = None
        """Who is followed; None: nobody, as the screen is not seen."""
        self._waiting: list[LogEntry] = []
        self._painting: Timer | None = None
        self._painted: tuple[object, ...] = ()

    def trail(self) -> tuple[str, ...]:
        return ("Logs",)

    def address(self) -> str:
        """The command that leads to what is shown."""
        name = self.filter_text.removeprefix("host=")
        is_one = self.filter_text.startswith("host=") and not set(name) & set(" *?![")
        return f"logs {name}" if is_one else "logs"

    def compose_body(self) -> ComposeResult:
        yield LinesBar(id="summary")
        page = LinesView(id="page")
        page.follows_end = True
        yield page

    def on_mount(self) -> None:
        self._painting = self.set_interval(PAINT_S, self._take_waiting, pause=True)

    def draw(self, snapshot: FleetSnapshot | None) -> None:
        if snapshot is None:
            self.query_one("#summary", LinesBar).show([line(Span(" connecting …", "dim"))])
            return
        wanted = tuple(host.name for host in snapshot.hosts if self._filter.wants_host(host.name))
        if wanted != self._hosts:
            # Hosts come and go with the inventory and with the filter; what was read of others stays in the window.
            self._hosts = wanted
            self._follow(wanted)
        if self._painting is not None:
            self._painting.resume()
        self._show()

    def on_screen_suspend(self) -> None:
        """Logs that nobody sees are not followed; they are begun anew when somebody does."""
        self._hosts = None
        self.workers.cancel_group(self, "logs")
        if self._painting is not None:
            self._painting.pause()

    @work(exclusive=True, group="logs")
    async def _follow(self, hosts: tuple[str, ...]) -> None:
        self._trouble = "" if hosts else "no host passes the filter"
        if not hosts:
            self._show()
            return
        # What the window has already comes once more: it is begun anew, so that nothing stands there twice.
        self.window.clear()
        self._waiting.clear()
        clock = self.odctl.clock
        batches = self.odctl.feed.stream(lambda fleet: follow_logs(fleet, hosts, clock, tail=PAST_LINES))
        try:
            async with aclosing(batches) as found:
                async for batch in found:
                    self._waiting.extend(batch)
                    del self._waiting[:-WAITING_ENTRIES]
            self._trouble = "the stream ended"
        except FleetError as error:
            self._trouble = str(error)
        self._take_waiting()
        self._show()

    def _take_waiting(self) -> None:
        if self.is_paused or not self._waiting or not self.has_parts:
            return
        entries, self._waiting = self._waiting, []
        self.window.add(entries)
        self._show()

    def _show(self) -> None:
        if not self.has_parts:
            return
        page = self.query_one("#page", LinesView)
        summary: list[Line] = [
            summary_line(
                self.window,
                filter_text=self.filter_text,
                error=self._error,
                is_following=not self.is_paused,
                num_hosts=len(self._hosts or ()),
                num_waiting=len(self._waiting) if self.is_paused else 0,
            )
        ]
        if self._trouble:
            summary.append(line(Span(f" ✗ {self._trouble}", "fault"), Span("   r begins anew", "dim")))
        self.query_one("#summary", LinesBar).show(summary)
        shown, width = self.window.shown, page.content_width
        # Painting anew costs a pass over thousands of lines: only what changed them calls for it.
        state = (self.window.revision, width, self.is_wrapped)
        if state == self._painted:
            return
        self._painted = state
        columns, is_wrapped = self.window.columns(width), self.is_wrapped
        lines = [entry_lines(entry, columns, width=width, is_wrapped=is_wrapped) for entry in shown]
        page.show([each for found in lines for each in found])

    # --- choosing -----------------------------------------------------------------------------------------

    def choose(self, host: str) -> None:
        """Follow one host."""
        self.set_filter(f"host={host}")

    def set_filter(self, text: str) -> None:
        self.filter_text = text.strip()
        try:
            self._filter = parse_log_filter(self.filter_text)
        except FleetError as error:
            # The last filter that meant something stays: half a word typed must not show everything.
            self._error = str(error)
            self._show()
            return
        self._error = ""
        self.window.choose(self._filter)
        if self.is_current:
            self.redraw()

    def action_filter(self) -> None:
        # A further term is what is mostly typed: it begins behind those that stand there.
        self.query_one(Prompt).open("/", text=f"{self.filter_text} ".lstrip())

    def on_prompt_filter_changed(self, event: Prompt.FilterChanged) -> None:
        # While `host=` is typed the hosts would be followed and left with each letter: they are at its end.
        if "host=" not in event.text:
            self.set_filter(event.text)

    def on_prompt_submitted(self, event: Prompt.Submitted) -> None:
        # What follows `:` is the frame's, whose own handler is called too.
        if event.kind == "/":
            self.set_filter(event.text)

    def action_step(self, step: int) -> None:
        """The host before or after the one that is shown alone."""
        snapshot = self.odctl.snapshot
        if snapshot is None or not snapshot.hosts:
            return
        names = [host.name for host in snapshot.hosts]
        shown = self._hosts or ()
        index = names.index(shown[0]) + step if len(shown) == 1 and shown[0] in names else min(0, step)
        self.choose(names[index % len(names)])

    def action_pause(self) -> None:
        """Hold what is seen still; what comes meanwhile waits."""
        self.is_paused = not self.is_paused
        if not self.is_paused:
            self._take_waiting()
            self.action_last()
        self._show()

    def action_wrap(self) -> None:
        self.is_wrapped = not self.is_wrapped
        self._show()

    def action_again(self) -> None:
        """Follow from the start, as after a stream that broke."""
        self._hosts = None
        self.redraw()

    def action_clear(self) -> None:
        self.window.clear()
        self._show()

    def action_last(self) -> None:
        self.query_one("#page", LinesView).scroll_end(animate=False)

    def action_first(self) -> None:
        self.query_one("#page", LinesView).scroll_home(animate=False)

    def action_back(self) -> None:
        prompt = self.query_one(Prompt)
        if self.filter_text and (not prompt.is_open or prompt.kind == "/"):
            prompt.close()
            self.set_filter("")
            self.focus_body()
            return
        super().action_back()
