"""One host in full, the last fifteen minutes of it below, and what can be done with it."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

from textual import work
from textual.app import ComposeResult, SuspendNotSupported
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import Input

from agent.errors import FleetError
from agent.wire.agent import ApplyEvent
from odctl.fleet import FleetSnapshot, HostView
from odctl.tui.model.host_devices import foreign_processes
from odctl.tui.model.host_extras import HostExtras
from odctl.tui.model.host_page import Doing, host_page
from odctl.tui.model.host_plots import SMALL_LANES, plot_lines, step_cursor
from odctl.tui.model.text import Span, line, wrap
from odctl.tui.screens.confirm import ConfirmScreen
from odctl.tui.screens.end_process import EndChoice, EndProcessScreen
from odctl.tui.screens.frame import FrameScreen
from odctl.tui.widgets.lines import LinesBar, LinesView

if TYPE_CHECKING:
    from odctl.draining import Drain

EXTRAS_S = 5.0
"""Between two questions for kernel messages and logs, while the page is seen."""
TALL_LINES = 30
"""From this height on every lane has room."""
DIALOG_CELLS = 64
"""Of text in a dialog on the narrowest terminal."""
SHELL_FAILED = 255
"""ssh's own exit status, for trouble on the way."""


class HostScreen(FrameScreen):
    mode = "fleet"
    DEFAULT_CSS = "HostScreen #plots { background: $panel; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("less_than_sign", "step(-1)", "Before", key_display="<", id="host.before"),
        Binding("greater_than_sign", "step(1)", "Next", key_display=">", id="host.next"),
        Binding("left", "cursor(-1)", "Earlier in the plots", id="host.cursor_left", show=False, priority=True),
        Binding("right", "cursor(1)", "Later in the plots", id="host.cursor_right", show=False, priority=True),
        Binding("shift+left", "cursor(-10)", "Ten cells earlier", id="host.cursor_far_left", show=False),
        Binding("shift+right", "cursor(10)", "Ten cells later", id="host.cursor_far_right", show=False),
        Binding("l", "logs", "Logs", id="host.logs"),
        Binding("d", "drain", "Drain…", id="host.drain"),
        Binding("K", "end_process", "Kill…", id="host.end_process"),
        Binding("R", "restart", "Restart…", id="host.restart"),
        Binding("s", "shell", "Shell…", id="host.shell"),
        Binding("p", "plots", "More or fewer plots", id="host.plots", show=False),
        Binding("escape", "back", "Back", id="host.back", show=False),
    ]

    class Progressed(Message):
        """A deployment's apply went on, from the fleet's thread."""

        def __init__(self, host: str, text: str) -> None:
            super().__init__()
            self.host = host
            self.text = text

    def __init__(self, host: str) -> None:
        super().__init__()
        self.host = host
        self.cursor_s: float | None = None
        """The moment under the plots' cursor, seconds since the epoch; None: now."""
        self.doing: dict[str, tuple[Doing, ...]] = {}
        """By host: what was started from here and how it went."""
        self.is_busy = False
        self._shows_all_plots: bool | None = None
        self._extras: dict[str, HostExtras] = {}
        self._last: dict[str, HostView] = {}

    def trail(self) -> tuple[str, ...]:
        return ("Fleet", self.host)

    def address(self) -> str:
        return f"host {self.host}"

    def compose_body(self) -> ComposeResult:
        yield LinesView(id="page")
        yield LinesBar(id="plots")

    def on_mount(self) -> None:
        self.set_interval(EXTRAS_S, self._ask_extras)

    def on_screen_resume(self) -> None:
        # The frame's own handler is called too: Textual calls that of every class.
        self._ask_extras()

    def draw(self, snapshot: FleetSnapshot | None) -> None:
        page, plots = self.query_one("#page", LinesView), self.query_one("#plots", LinesBar)
        if snapshot is None:
            page.show([line(Span(" connecting …", "dim"))])
            return
        found = snapshot.host(self.host)
        if found is not None:
            self._last = {self.host: found}
        last = self._last.get(self.host)
        page.show(
            host_page(
                snapshot,
                self.host,
                width=page.content_width,
                last=last,
                extras=self._extras.get(self.host),
                doing=self.doing.get(self.host, ()),
            )
        )
        if last is not None:
            most = None if self._has_all_plots else SMALL_LANES
            plots.show(
                plot_lines(
                    last, width=self.size.width, now_s=snapshot.taken_at_s, cursor_s=self.cursor_s, most=most
                )
            )

    @property
    def _has_all_plots(self) -> bool:
        if self._shows_all_plots is None:
            return self.size.height >= TALL_LINES
        return self._shows_all_plots

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "cursor" and isinstance(self.focused, Input):
            # The arrows are of the line that is being written.
            return False
        return super().check_action(action, parameters)

    # --- looking ------------------------------------------------------------------------------------------

    def action_step(self, step: int) -> None:
        """The host before or after this one, in the order of the names."""
        if self.odctl.snapshot is None or not self.odctl.snapshot.hosts:
            return
        names = [host.name for host in self.odctl.snapshot.hosts]
        index = names.index(self.host) if self.host in names else 0
        self.host = names[(index + step) % len(names)]
        self.query_one("#page", LinesView).scroll_home(animate=False)
        self._ask_extras()
        self.redraw()

    def action_cursor(self, step: int) -> None:
        """Move the plots' cursor by so many cells; beyond the right end it is gone, and the newest values stand."""
        snapshot = self.odctl.snapshot
        if snapshot is not None:
            self.cursor_s = step_cursor(self.cursor_s, step, width=self.size.width, now_s=snapshot.taken_at_s)
            self.redraw()

    def action_plots(self) -> None:
        self._shows_all_plots = not self._has_all_plots
        self.redraw()

    def action_logs(self) -> None:
        self.odctl.open_logs(self.host)

    def action_back(self) -> None:
        """First the cursor goes, then the page."""
        if self.cursor_s is not None and not self.has_prompt:
            self.cursor_s = None
            self.redraw()
            return
        super().action_back()

    def _ask_extras(self) -> None:
        if self.is_current and self.odctl.snapshot is not None:
            self._fetch_extras(self.host)

    @work(exclusive=True, group="extras")
    async def _fetch_extras(self, host: str) -> None:
        self._extras = {host: await self.odctl.host_operator.extras(self.odctl.feed, host)}
        if self.is_current:
            self.redraw()

    # --- doing --------------------------------------------------------------------------------------------

    def _may_act(self) -> bool:
        if self.odctl.is_read_only:
            self.notify("this session is read-only: ^x (or :unlock) allows changes for ten minutes", title="RO")
            return False
        if self.is_busy:
            self.notify("something is under way on this page: one at a time", severity="warning")
            return False
        return True

    def action_drain(self) -> None:
        """Plan what is served here without this host, show what that changes, and ask."""
        if self._may_act():
            self._say(self.host, f"planning without {self.host} …")
            self._plan_drain(self.host)

    @work(exclusive=True, group="plan-drain")
    async def _plan_drain(self, host: str) -> None:
        try:
            drain = await self.odctl.host_operator.plan_drain(self.odctl.feed, host)
        except FleetError as error:
            self._say(host, f"{host} is not drained, nothing was changed: {error}", is_trouble=True, is_over=True)
            return
        if not drain.previews:
            self._say(host, f"nothing is served from {host}", is_over=True)
            return
        names = ", ".join(preview.plan.name for preview in drain.previews)
        self._say(host, "")

        def answered(is_sure: bool | None) -> None:
            if is_sure:
                self._begin_drain(drain)

        hosts = {host, *(name for preview in drain.previews for name in preview.plan.hosts)}
        typed = self.odctl.name_to_type(host, num_hosts=len(hosts))
        self.app.push_screen(
            ConfirmScreen(title=f"Move {names} away from {host}?", lines=drain.lines, verb="Drain", typed=typed),
            answered,
        )

    def _begin_drain(self, drain: Drain) -> None:
        self.is_busy = True
        self._say(drain.host, "draining …")
        self._drain(drain)

    @work(group="drain")
    async def _drain(self, drain: Drain) -> None:
        async def on_event(name: str, event: ApplyEvent) -> None:
            where = f" {event.host}" if event.host else ""
            said = f"{name}: {event.phase}{where} {event.message}".rstrip()
            self.post_message(self.Progressed(drain.host, said))

        try:
            moved = await self.odctl.host_operator.drain(self.odctl.feed, drain, on_event)
        except FleetError as error:
            self._end(drain.host, f"the drain stopped: {error}", is_trouble=True)
            return
        self._end(drain.host, f"nothing is served from {drain.host} any more: {', '.join(moved)} moved")

    def on_host_screen_progressed(self, message: Progressed) -> None:
        if self.is_busy:
            self._say(message.host, message.text)

    def action_restart(self) -> None:
        if not self._may_act():
            return
        host = self.host

        def answered(is_sure: bool | None) -> None:
            if is_sure:
                self._restart(host)

        lines = [
            "The agent ends, and what keeps it starts it again.",
            "There is no telemetry for some seconds.",
            "Ranks and gateways go on serving, and are taken over.",
        ]
        self.app.push_screen(
            ConfirmScreen(title=f"Restart the agent of {host}?", lines=lines, verb="Restart"), answered
        )

    @work(group="restart")
    async def _restart(self, host: str) -> None:
        try:
            said = await self.odctl.host_operator.restart_agent(self.odctl.feed, host)
        except FleetError as error:
            self._say(host, f"the agent was not restarted: {error}", is_trouble=True, is_over=True)
            return
        self._say(host, f"the agent: {said}", is_over=True)

    def action_end_process(self) -> None:
        """Choose a foreign process, and end it."""
        if not self._may_act():
            return
        snapshot, host = self.odctl.snapshot, self.host
        view = snapshot.host(host) if snapshot is not None else None
        found = foreign_processes(view) if view is not None else ()
        if not found:
            self.notify(f"no foreign process is on the devices of {host}")
            return

        def answered(choice: EndChoice | None) -> None:
            if choice is not None:
                self._end_process(host, choice)

        self.app.push_screen(EndProcessScreen(host, found), answered)

    @work(group="end-process")
    async def _end_process(self, host: str, choice: EndChoice) -> None:
        device, process = choice.found
        try:
            said = await self.odctl.host_operator.end_process(
                self.odctl.feed, host, device, process, is_forced=choice.is_forced
            )
        except FleetError as error:
            self._say(host, f"{process.pid} was not ended: {error}", is_trouble=True, is_over=True)
            return
        self._say(host, f"{said} ({process.command[:60]})", is_over=True)

    def action_shell(self) -> None:
        """Ask, then hand the terminal over until the shell ends."""
        if not self._may_act():
            return
        host = self.host
        try:
            command = self.odctl.host_operator.shell(host)
        except FleetError as error:
            self.notify(str(error), title="no shell", severity="error")
            return

        def answered(is_sure: bool | None) -> None:
            if is_sure:
                self._open_shell(host)

        lines = ["The screen comes back when the shell ends.", *wrap(" ".join(command.argv), DIALOG_CELLS)]
        self.app.push_screen(ConfirmScreen(title=f"Open a shell on {host}?", lines=lines, verb="Open"), answered)

    def _open_shell(self, host: str) -> None:
        """Blocks this loop on purpose: nothing may be painted while the terminal is another's."""
        command = self.odctl.host_operator.shell(host)
        try:
            with self.app.suspend(), _deaf_to_interrupts():
                status = subprocess.run(
                    command.argv, cwd=command.directory or None, env=command.environment, check=False
                ).returncode
        except SuspendNotSupported:
            self._say(host, "no shell: there is no terminal here to hand over", is_trouble=True, is_over=True)
            return
        except OSError as error:
            self._say(host, f"no shell: {command.argv[0]}: {error.strerror}", is_trouble=True, is_over=True)
            return
        if status == SHELL_FAILED:
            self._say(host, f"the shell on {host} ended with status {status}", is_trouble=True, is_over=True)

    def _say(self, host: str, text: str, *, is_trouble: bool = False, is_over: bool = False) -> None:
        """Stand at the top of the host's page until something else is said; empty: nothing does."""
        said = Doing(text=text, is_trouble=is_trouble, is_over=is_over)
        self.doing[host] = (said,) if text else ()
        if self.is_current:
            self.redraw()
        elif text and is_over:
            self.notify(text, severity="error" if is_trouble else "information")

    def _end(self, host: str, text: str, *, is_trouble: bool = False) -> None:
        self.is_busy = False
        self._say(host, text, is_trouble=is_trouble, is_over=True)


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """^C is for the shell. A handler, not `SIG_IGN`, which the shell would inherit."""
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
