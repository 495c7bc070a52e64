"""One plan at a time: the previewed file first, then what runs."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from odctl.fleet import FleetSnapshot
from odctl.tui.model.plan_page import plan_page
from odctl.tui.model.plans import PlanChoice, plan_choices
from odctl.tui.model.text import BLANK, Line, Span, line, wrap
from odctl.tui.screens.frame import FrameScreen
from odctl.tui.widgets.lines import LinesView


class PlansScreen(FrameScreen):
    mode = "plans"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("less_than_sign", "step(-1)", "Plan before", key_display="<", id="plans.before"),
        Binding("greater_than_sign", "step(1)", "Next plan", key_display=">", id="plans.next"),
        Binding("a", "apply", "Apply…", id="plans.apply"),
        Binding("e", "edit", "Edit", id="plans.edit"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.chosen = 0

    def trail(self) -> tuple[str, ...]:
        choices = self._choices()
        if not choices:
            return ("Plans",)
        count = f" ({self._index(choices) + 1} of {len(choices)})" if len(choices) > 1 else ""
        return ("Plans", f"{choices[self._index(choices)].plan.name}{count}")

    def address(self) -> str:
        if (choice := self.choice) is None:
            return "plans"
        return f"plan {choice.status.name if choice.status is not None else choice.origin}"

    def compose_body(self) -> ComposeResult:
        yield LinesView(id="page")

    @property
    def choice(self) -> PlanChoice | None:
        """The plan on the screen."""
        choices = self._choices()
        return choices[self._index(choices)] if choices else None

    def draw(self, snapshot: FleetSnapshot | None) -> None:
        page = self.query_one("#page", LinesView)
        if self.odctl.preview_error:
            page.show(_error_lines(self.odctl.preview_error, page.content_width))
        elif (choice := self.choice) is not None:
            page.show(plan_page(choice, snapshot, width=page.content_width))
        else:
            page.show(
                [
                    line(Span(" no plan to show", "bold")),
                    BLANK,
                    line("   :plan FILE previews a plan file"),
                    line("   `odctl plan MODEL -o plan.toml` makes one"),
                ]
            )

    def choose_deployment(self, name: str) -> None:
        """Show the plan of a deployment that runs."""
        for index, choice in enumerate(self._choices()):
            if choice.status is not None and choice.status.name == name:
                self.chosen = index
        self.redraw()

    def action_step(self, step: int) -> None:
        if choices := self._choices():
            self.chosen = (self._index(choices) + step) % len(choices)
            self.redraw()

    def action_apply(self) -> None:
        if self.odctl.preview_error:
            self.notify("this file is no plan: mend it first", severity="warning")
        elif self.choice is not None:
            self.odctl.ask_to_apply(self.choice)

    def action_edit(self) -> None:
        if self.odctl.preview_error:
            self.notify("this file is no plan: mend it first", severity="warning")
        elif self.choice is not None:
            self.odctl.edit_plan(self.choice)

    def _choices(self) -> tuple[PlanChoice, ...]:
        return plan_choices(self.odctl.snapshot, self.odctl.preview)

    def _index(self, choices: tuple[PlanChoice, ...]) -> int:
        return min(self.chosen, len(choices) - 1)


def _error_lines(text: str, width: int) -> list[Line]:
    """A file's problems as the parser laid them out."""
    return [line(Span(f" {part}", "plain")) for row in text.splitlines() for part in wrap(row, width - 2)]
