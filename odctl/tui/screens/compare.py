"""Two to four plans beside each other; any of them can be applied from here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from agent.errors import FleetError
from agent.facts.cluster import ClusterFacts
from odctl.fleet import FleetSnapshot
from odctl.history import last_apply_s, read_history
from odctl.tui.model.compare_page import compare_page
from odctl.tui.model.compare_view import CompareView, compare_view, compared_facts, letter_of, moved_on
from odctl.tui.model.plans import PlanChoice
from odctl.tui.screens.frame import FrameScreen
from odctl.tui.widgets.lines import LinesView


class CompareScreen(FrameScreen):
    mode = "plans"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("tab", "choose(1)", "Choose", id="compare.choose", priority=True),
        Binding("shift+tab", "choose(-1)", "Choose back", id="compare.choose_back", show=False, priority=True),
        Binding("s", "swap", "Swap", id="compare.swap"),
        Binding("d", "hosts", "All hosts", id="compare.hosts"),
        Binding("a", "apply", "Apply chosen…", id="compare.apply"),
    ]

    def __init__(self, choices: Sequence[PlanChoice]) -> None:
        super().__init__()
        self.choices = tuple(choices)
        self.chosen = 1
        self.shows_all_hosts = False
        self.view: CompareView | None = None
        self._facts: ClusterFacts | None = None
        self._took_s: tuple[float | None, ...] = ()

    def trail(self) -> tuple[str, ...]:
        names = (f"{letter_of(index)} {choice.plan.name}" for index, choice in enumerate(self.choices))
        return ("Plans", f"compare {' : '.join(names)}")

    def address(self) -> str:
        """Where every plan has a name that `:compare` finds it by."""
        names = [choice.status.name if choice.status is not None else choice.origin for choice in self.choices]
        is_found = all(
            name.endswith(".toml") or choice.status for name, choice in zip(names, self.choices, strict=True)
        )
        return f"compare {' '.join(names)}" if is_found and not any(" " in name for name in names) else ""

    def compose_body(self) -> ComposeResult:
        yield LinesView(id="page")

    def on_mount(self) -> None:
        self._ask_history()

    @property
    def choice(self) -> PlanChoice:
        """The plan that `a` applies."""
        return self.choices[self.chosen]

    def draw(self, snapshot: FleetSnapshot | None) -> None:
        page = self.query_one("#page", LinesView)
        facts = compared_facts(self.choices, snapshot)
        if self.view is None or facts != self._facts:
            # What is compared changes with the facts alone: snapshots that bring none cost nothing.
            self._facts = facts
            self._compare()
        assert self.view is not None, "it was compared just now"
        remarks = moved_on(self.choices, snapshot)
        page.show(
            compare_page(self.view, width=page.content_width, shows_all_hosts=self.shows_all_hosts, remarks=remarks)
        )

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """`tab` is the prompt's while that is open."""
        if action == "choose" and self.has_prompt:
            return False
        return super().check_action(action, parameters)

    def action_choose(self, step: int) -> None:
        self.chosen = (self.chosen + step) % len(self.choices)
        self._compare()
        self.redraw()

    def action_swap(self) -> None:
        """The chosen plan and A change places; A is what all others are held against."""
        other = self.chosen or 1
        choices = list(self.choices)
        choices[0], choices[other] = choices[other], choices[0]
        self.choices = tuple(choices)
        if self._took_s:
            took = list(self._took_s)
            took[0], took[other] = took[other], took[0]
            self._took_s = tuple(took)
        self._compare()
        self.redraw()

    def action_hosts(self) -> None:
        self.shows_all_hosts = not self.shows_all_hosts
        self.redraw()

    def action_apply(self) -> None:
        self.odctl.ask_to_apply(self.choice)

    def _compare(self) -> None:
        self.view = compare_view(self.choices, facts=self._facts, chosen=self.chosen, took_s=self._took_s)

    @work(exclusive=True, group="history")
    async def _ask_history(self) -> None:
        """How long the plans' last applies took. Without an answer the page does without that line."""
        try:
            found = await self.odctl.feed.call(read_history)
        except FleetError as error:
            self.notify(f"how long applies took is not known: {error.message}", timeout=4)
            return
        self._took_s = last_apply_s(found.entries, [choice.plan_hash for choice in self.choices])
        self._compare()
        if self.is_current:
            self.redraw()
