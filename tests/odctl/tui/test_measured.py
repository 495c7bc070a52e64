"""The screens of what was learnt and what was probed, at both sizes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from agent.errors import FleetError
from agent.facts.cluster import ClusterFacts
from odctl.inventory import Learning
from odctl.learning import LearningReport
from odctl.probing import ProbeOutcome
from odctl.tui.feed import Feed
from odctl.tui.probing import OnProgress
from odctl.tui.screens.confirm import ConfirmScreen
from odctl.tui.screens.host import HostScreen
from odctl.tui.screens.learning import LearningScreen
from odctl.tui.screens.probes import ProbesScreen
from tests.odctl.tui import frozen_fleet as frozen
from tests.odctl.tui import measured_fleet as measured
from tests.odctl.tui.conftest import make_app
from tests.odctl.tui.reading import SIZES, screen_text, settle

both_sizes = pytest.mark.parametrize("size", SIZES)


class ScriptedProber:
    """Says two lines and ends as it was told."""

    def __init__(self, error: FleetError | None = None) -> None:
        self.asked: list[tuple[str, ...]] = []
        self._error = error

    async def probe(
        self,
        feed: Feed,  # noqa: ARG002 - the Protocol's
        hosts: Sequence[str],
        on_progress: OnProgress,
        *,
        is_quick: bool,  # noqa: ARG002
    ) -> ProbeOutcome:
        self.asked.append(tuple(hosts))
        on_progress(f"{hosts[0]}: measuring cpu")
        if self._error is not None:
            raise self._error
        return ProbeOutcome(
            facts=ClusterFacts(cluster="lab", hosts=()),
            records=(),
            fresh=frozenset(hosts),
            num_links_measured=2,
            troubles=(),
        )


@both_sizes
async def test_strategies_stand_beside_each_other_with_what_was_promised(size: tuple[int, int]) -> None:
    app = make_app(measured.AnsweringFeed(frozen.snapshot(), measured.report()))
    async with app.run_test(size=size) as pilot:
        await pilot.press("5")
        await settle(pilot)
        text = screen_text(app)
    for said in (
        "pipeline 2",
        "tensor 2",
        "best",
        "▲+70%",
        "regret so far",
        "exploring ● on",
        "drift",
        "▾predicted",
    ):
        assert said in text, said
    assert "├" in text, "the deviation is drawn"
    if size[0] >= 140:
        for said in ("one at a time, deep model", "WEIGHT", "PREDICTED", "95%", "50%"):
            assert said in text, said


@both_sizes
async def test_every_choice_is_shown_with_what_came_of_it(size: tuple[int, int]) -> None:
    app = make_app(measured.AnsweringFeed(frozen.snapshot(), measured.report()))
    async with app.run_test(size=size) as pilot:
        app.run_command("strategies")
        await settle(pilot)
        await pilot.press("v")
        await settle(pilot)
        text = screen_text(app)
        assert "Choices" in text
        text = text.partition("CHOSEN")[2]
        assert text.index("pipeline 3") < text.index("tensor 2") < text.index("pipeline 2"), "the newest first"
        assert "○ none" in text, "of the newest nothing was measured"
        assert "not measured yet: ask the deployment something" in text
        await pilot.press("j")
        await settle(pilot)
        text = screen_text(app)
        assert "31%" in text
        assert "80 requests, 4 failed" in text
        assert "▲ 1.7" in text


async def test_strategies_are_filtered_and_sorted_and_the_cursor_keeps_its_row() -> None:
    app = make_app(measured.AnsweringFeed(frozen.snapshot(), measured.report()))
    async with app.run_test(size=(140, 40)) as pilot:
        await pilot.press("5")
        await settle(pilot)
        screen = app.screen
        assert isinstance(screen, LearningScreen)
        await pilot.press("G")
        kept = screen.table.cursor_key
        screen.set_sort("token")
        await settle(pilot)
        assert [key.partition("|")[2] for key in screen.table.shown_keys] == ["pipeline 2", "tensor 2"]
        screen.action_turn_sort()
        await settle(pilot)
        assert [key.partition("|")[2] for key in screen.table.shown_keys] == ["tensor 2", "pipeline 2"]
        assert screen.table.cursor_key == kept
        screen.set_filter("regret>10")
        await settle(pilot)
        assert [key.partition("|")[2] for key in screen.table.shown_keys] == ["tensor 2"]


@both_sizes
async def test_without_data_it_says_what_makes_some_and_who_is_silent(size: tuple[int, int]) -> None:
    feed = measured.AnsweringFeed(frozen.snapshot(), measured.silent(LearningReport(), "cpu04"))
    app = make_app(feed)
    async with app.run_test(size=size) as pilot:
        await pilot.press("5")
        await settle(pilot)
        text = screen_text(app)
        assert "nothing was measured yet: apply a plan, and ask the deployment something" in text
        assert "no answer from cpu04" in text
        feed.answer = measured.report(strategies=(), settings=Learning(enabled=False))
        await pilot.press("r")
        await settle(pilot)
        assert "learning is switched off" in screen_text(app)


async def test_a_fleet_that_does_not_answer_is_told_on_the_learning_screen() -> None:
    app = make_app(frozen.FrozenFeed(frozen.snapshot()))
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("5")
        await settle(pilot)
        assert "✗ gpu01: no agent answers" in screen_text(app)


@both_sizes
async def test_probed_devices_show_their_rates_and_the_others_say_so(size: tuple[int, int]) -> None:
    app = make_app(frozen.FrozenFeed(measured.snapshot()))
    async with app.run_test(size=size) as pilot:
        await pilot.press("9")
        await settle(pilot)
        text = screen_text(app)
        assert "3 of 6 hosts measured" in text
        assert "9.3G/s" in text, "weights read at one row"
        assert "200 GF/s" in text, "a chunk's arithmetic"
        assert "○ not measured" in text
        assert "attention" in text
        await pilot.press("enter")
        await settle(pilot)
        assert isinstance(app.screen, HostScreen)


@both_sizes
async def test_the_matrix_shows_both_ways_by_rank(size: tuple[int, int]) -> None:
    app = make_app(frozen.FrozenFeed(measured.snapshot()))
    async with app.run_test(size=size) as pilot:
        app.run_command("probes")
        await settle(pilot)
        await pilot.press("v")
        await settle(pilot)
        text = screen_text(app)
        assert "Latency" in text
        assert "60 µs █" in text
        assert "6 of 30 directions by tls" in text
        assert "cpu01/cpu + cpu02/cpu" in text, "sums of the groups that it is in"
        await pilot.press("v")
        await settle(pilot)
        text = screen_text(app)
        assert "Bandwidth" in text
        assert "1.0G/s █" in text
        assert "tightest" in text
        if size[0] >= 140:
            assert "10.5M/s ░" in text, "the bad link is told apart without colour"
            assert text.count("10.5M/s") >= 2, "in both directions"


async def test_the_matrix_turns_from_carrier_to_carrier() -> None:
    app = make_app(frozen.FrozenFeed(measured.snapshot(carriers=("tls", "tcp"))))
    async with app.run_test(size=(140, 40)) as pilot:
        await pilot.press("9", "v", "v")
        await settle(pilot)
        before = screen_text(app)
        await pilot.press("c")
        await settle(pilot)
        after = screen_text(app)
    assert "by tcp" in before
    assert "by tls" in after
    assert "2.0G/s" in before
    assert "2.0G/s" not in after


async def test_a_probe_is_refused_while_the_session_is_read_only() -> None:
    prober = ScriptedProber()
    app = make_app(frozen.FrozenFeed(measured.snapshot()), prober=prober)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await pilot.press("9")
        await settle(pilot)
        await pilot.press("p")
        await settle(pilot)
        assert "read-only" in screen_text(app)
        assert not isinstance(app.screen, ConfirmScreen)
    assert prober.asked == []


@both_sizes
async def test_marked_hosts_are_probed_after_a_question(size: tuple[int, int]) -> None:
    prober = ScriptedProber()
    app = make_app(frozen.FrozenFeed(measured.snapshot()), prober=prober)
    async with app.run_test(size=size) as pilot:
        await pilot.press("9", "ctrl+x")
        await settle(pilot)
        await pilot.press("space", "space", "p")
        await settle(pilot)
        assert isinstance(app.screen, ConfirmScreen)
        assert "Probe 2 hosts?" in screen_text(app)
        assert "1 link" in screen_text(app)
        await pilot.press("escape")
        await settle(pilot)
        assert prober.asked == [], "escape is no"
        await pilot.press("p", "right", "enter")
        await settle(pilot)
        assert prober.asked == [("cpu01", "cpu02")]
        assert isinstance(app.screen, ProbesScreen)
        text = screen_text(app)
        assert "2 marked" in text
        assert "2 hosts and 2 directions measured" in text


async def test_a_host_that_serves_refuses_and_the_screen_says_it() -> None:
    refusal = FleetError("E501", "it serves chat", hint="odctl probe --even-serving", host="cpu01")
    app = make_app(frozen.FrozenFeed(measured.snapshot()), prober=ScriptedProber(refusal))
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("9", "ctrl+x", "p")
        await settle(pilot)
        await pilot.press("right", "enter")
        await settle(pilot)
        assert "✗ cpu01: it serves chat" in screen_text(app)
        await pilot.press("p")
        await settle(pilot)
        assert isinstance(app.screen, ConfirmScreen), "it is over: another may begin"
