"""Predicted against measured, regret and drift over the whole screen, for one kind of workload or all."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from odctl.fleet import FleetSnapshot
from odctl.learning import LearningReport
from odctl.tui.model.learning_charts import CHART_LINES, buckets_of, charts_page
from odctl.tui.screens.frame import FrameScreen
from odctl.tui.widgets.lines import LinesView

MAX_CHART_LINES = 18
_OTHER_LINES = 12
"""Below the charts: title, axes, and a few strategies."""


class LearningChartsScreen(FrameScreen):
    mode = "learning"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "Back", id="charts.back"),
        Binding("b", "bucket(1)", "Next workload", id="charts.bucket"),
        Binding("B", "bucket(-1)", "Workload before", id="charts.bucket_before", show=False),
    ]

    def __init__(self, report: LearningReport, bucket: str) -> None:
        super().__init__()
        self._report = report
        self._buckets = ("", *buckets_of(report))
        self.bucket = bucket if bucket in self._buckets else ""

    def trail(self) -> tuple[str, ...]:
        return ("Learning", "Charts")

    def compose_body(self) -> ComposeResult:
        yield LinesView(id="page")

    def draw(self, snapshot: FleetSnapshot | None) -> None:
        page = self.query_one("#page", LinesView)
        if snapshot is not None:
            page.show(
                charts_page(
                    self._report,
                    bucket=self.bucket,
                    width=page.content_width,
                    now_s=snapshot.taken_at_s,
                    height=max(CHART_LINES, min(MAX_CHART_LINES, page.size.height - _OTHER_LINES)),
                )
            )

    def action_bucket(self, step: int) -> None:
        """The next kind of workload; all of them come first."""
        self.bucket = self._buckets[(self._buckets.index(self.bucket) + step) % len(self._buckets)]
        self.redraw()
