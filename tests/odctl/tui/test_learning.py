"""From a strategy to its choices, from a choice to its run, and to the charts of a workload."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

import pytest

from agent.errors import FleetError
from agent.planner.file import plan_to_toml
from agent.wire.history import GenerationHistory, ServedGeneration
from odctl.fleet import Fleet
from odctl.history import FleetHistory, join_histories
from odctl.tui.screens.learning import LearningScreen
from odctl.tui.screens.learning_charts import LearningChartsScreen
from odctl.tui.screens.plans import PlansScreen
from odctl.tui.screens.run import RunScreen
from odctl.tui.widgets.lines import LinesView
from tests.odctl.tui import frozen_fleet as frozen
from tests.odctl.tui import measured_fleet as measured
from tests.odctl.tui.conftest import make_app
from tests.odctl.tui.reading import SIZES, screen_text, settle

T = TypeVar("T")
both_sizes = pytest.mark.parametrize("size", SIZES)


class RememberingFeed(frozen.FrozenFeed):
    """Answers the screen of a run with a history or its error, and the others with a learning report."""

    def __init__(self, history: FleetHistory | FleetError) -> None:
        super().__init__(frozen.snapshot())
        self._history = history

    async def call(self, work: Callable[[Fleet], Awaitable[T]]) -> T:
        if not work.__qualname__.startswith("RunScreen"):
            return cast("T", measured.report())
        if isinstance(self._history, FleetError):
            raise self._history
        return cast("T", self._history)


def history() -> FleetHistory:
    """Generation 2, by an apply, with its plan."""
    plan_hash = "02" * 32
    served = ServedGeneration(
        deployment="chat",
        generation=2,
        plan_hash=plan_hash,
        cause="apply",
        by="ann@desk:7",
        reason="more at once",
        served_at_s=frozen.NOW_S - 3600,
        controller="gpu01",
    )
    told = GenerationHistory(generations=(served,), plans={plan_hash: plan_to_toml(frozen.plan())})
    return FleetHistory(entries=join_histories([told], []), unreachable={})


async def opened(pilot: object) -> LearningScreen:
    app = pilot.app  # type: ignore[attr-defined]
    await settle(pilot)  # type: ignore[arg-type]
    app.run_command("learning")
    await settle(pilot)  # type: ignore[arg-type]
    assert isinstance(app.screen, LearningScreen)
    return app.screen


def page_text(page: LinesView) -> str:
    """Its words, wherever its lines are broken."""
    return " ".join(" ".join("".join(span.text for span in spans) for spans in page.lines).split())


@both_sizes
async def test_the_charts_of_the_workload_stand_below_the_strategies(size: tuple[int, int]) -> None:
    app = make_app(RememberingFeed(history()))
    async with app.run_test(size=size) as pilot:
        screen = await opened(pilot)
        detail = page_text(screen.query_one("#detail", LinesView))
        for said in ("▾predicted", "measured ↑ by predicted →", "regret so far, by time", "▲ drift"):
            assert said in detail, said
        await pilot.press("c")
        await settle(pilot)
        assert isinstance(app.screen, LearningChartsScreen)
        assert app.screen.bucket == "short prompts, one at a time, deep model"
        text = screen_text(app)
        assert "10 measurements   predictions off by " in text
        assert "⠁" in text or "⡀" in text or "⠄" in text, "the diagonal is drawn"
        await pilot.press("b")
        await settle(pilot)
        assert "all kinds of workload" in screen_text(app)
        await pilot.press("end")
        await settle(pilot)
        assert "drift, the newest first" in screen_text(app), "the page's end can be reached"
        await pilot.press("escape")
        await settle(pilot)
        assert app.screen_stack[-1] is screen


@both_sizes
async def test_a_strategy_leads_to_its_choices_and_a_choice_to_its_run(size: tuple[int, int]) -> None:
    app = make_app(RememberingFeed(history()))
    async with app.run_test(size=size) as pilot:
        screen = await opened(pilot)
        await pilot.press("G", "enter")
        await settle(pilot)
        assert screen.shows_history
        assert "tensor 2" in screen_text(app)
        assert len(screen.table.shown_keys) == 1, "the choices of that strategy alone"
        await pilot.press("enter")
        await settle(pilot)
        assert isinstance(app.screen, RunScreen)
        page = app.screen.query_one("#page", LinesView)
        for said in (
            "chat generation 2",
            "likelihood of 31%",
            "○ was replaced; generation 2 came by apply by ann@desk:7",
            "because: more at once",
            "layout: 2 stages, 2 devices on 2 hosts",
            "throughput",
        ):
            assert said in page_text(page), said
        assert all(len("".join(span.text for span in spans)) <= page.content_width for spans in page.lines)
        await pilot.press("p")
        await settle(pilot)
        assert isinstance(app.screen_stack[-1], PlansScreen)
        assert "chat generation 2" in screen_text(app)


async def test_a_run_whose_generation_nobody_remembers_says_so() -> None:
    for found, said in (
        (FleetHistory(entries=(), unreachable={}), "no controller's journal has this generation any more"),
        (FleetError("E206", "no agent answers on this host", host="gpu01"), "the controllers cannot be asked"),
    ):
        app = make_app(RememberingFeed(found))
        async with app.run_test(size=(80, 24)) as pilot:
            await opened(pilot)
            await pilot.press("v", "G", "enter")
            await settle(pilot)
            assert isinstance(app.screen, RunScreen)
            assert said in page_text(app.screen.query_one("#page", LinesView))
            await pilot.press("p")
            await settle(pilot)
            assert isinstance(app.screen, RunScreen), "without a plan there is none to show"
