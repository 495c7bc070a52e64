"""A benchmark of a deployment while it runs, and its figures. Going back breaks it off; other views do not."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from agent.errors import FleetError
from agent.wire.agent import DeploymentStatus
from odctl.bench.report import figures_text, load_line
from odctl.bench.run import Measurement, Settings
from odctl.fleet import FleetSnapshot
from odctl.tui.model.bench_page import BenchProgress, bench_page
from odctl.tui.screens.confirm import ConfirmScreen
from odctl.tui.screens.frame import FrameScreen
from odctl.tui.widgets.lines import LinesView

DRAW_INTERVAL_S = 0.5


class BenchScreen(FrameScreen):
    mode = "deployments"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("x", "stop", "Stop", id="bench.stop"),
        Binding("r", "repeat", "Once more…", id="bench.repeat"),
        Binding("y", "copy", "Copy figures", id="bench.copy"),
        Binding("escape", "back", "Back", id="bench.back"),
    ]

    def __init__(
        self, status: DeploymentStatus, settings: Settings, *, steady_clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self.status = status
        self.measurement = Measurement(settings, tell=self._tell)
        self.told = "reaching its gateway"
        """The measurement's last word; set on the fleet's thread, which replaces it as a whole."""
        self.error: FleetError | None = None
        self.is_over = False
        self.is_stopped = False
        self._steady_clock = steady_clock
        self._begun_s = steady_clock()
        self._ended_s: float | None = None

    def trail(self) -> tuple[str, ...]:
        return ("Deployments", self.status.name, "benchmark")

    def compose_body(self) -> ComposeResult:
        yield LinesView(id="page")

    def on_mount(self) -> None:
        self.set_interval(DRAW_INTERVAL_S, self._tick)
        self.perform()

    @work(group="bench")
    async def perform(self) -> None:
        """Measure to the end. Cancelled, what was measured stays, and says that it was broken off."""
        try:
            await self.odctl.operator.bench(self.odctl.feed, self.status, self.measurement)
        except FleetError as error:
            self.error = error
        finally:
            self.is_over = True
            self._ended_s = self._steady_clock()
            if self.is_current:
                self.redraw()

    def draw(self, snapshot: FleetSnapshot | None) -> None:  # noqa: ARG002 - the measurement says all
        page = self.query_one("#page", LinesView)
        totals = self.measurement.totals()
        progress = BenchProgress(
            settings=self.measurement.settings,
            told=self.told,
            elapsed_s=(self._ended_s or self._steady_clock()) - self._begun_s,
            figures=totals[0][1] if totals else None,
            is_over=self.is_over,
            is_stopped=self.is_stopped,
            error=self.error.detail if self.error is not None else None,
        )
        page.show(bench_page(progress, self.status, width=page.content_width))

    def action_stop(self) -> None:
        if self.is_over:
            self.notify("it is over: nothing to stop")
            return
        self.is_stopped = True
        self.workers.cancel_group(self, "bench")

    def leave_question(self, verb: str) -> ConfirmScreen | None:
        if self.is_over:
            return None
        lines = ["Its figures are lost with this screen."]
        if verb != "Quit":
            lines.append("It goes on while you look at other views.")
        return ConfirmScreen(title="Break the measurement off?", lines=lines, verb="Break off")

    def leave(self) -> None:
        if not self.is_over:
            self.action_stop()
        super().leave()

    def action_repeat(self) -> None:
        """Ask for a load again."""
        if not self.is_over:
            self.notify("it is not over yet; x stops it")
            return
        self.app.pop_screen()
        self.odctl.call_after_refresh(self.odctl.run_command, f"bench {self.status.name}")

    def action_copy(self) -> None:
        totals = self.measurement.totals()
        if not totals:
            self.notify("nothing was measured yet")
            return
        label, figures = totals[0]
        settings = self.measurement.settings
        text = f"{load_line(settings.load)}\n\n{figures_text(label, figures, settings.objectives)}\n"
        self.app.copy_to_clipboard(text)
        self.notify("figures copied, where the terminal takes OSC 52")

    def _tell(self, text: str) -> None:
        self.told = text

    def _tick(self) -> None:
        if not self.is_over and self.is_current:
            self.redraw()
