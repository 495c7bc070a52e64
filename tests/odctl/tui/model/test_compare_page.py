"""Plans beside each other: bars point to the better one, lanes to the layers that move, and doubt is said."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from agent.errors import FleetError
from agent.planner.file import plan_hash
from agent.planner.plan import Plan
from odctl.tui.model.compare_page import compare_page, delta_lane, stage_strip, versus_bar
from odctl.tui.model.compare_view import compare_view, compared_facts, moved_on
from odctl.tui.model.plans import PlanChoice, plan_choices
from odctl.tui.model.text import Line, line_text, line_width
from tests.odctl.tui import frozen_fleet as frozen
from tests.odctl.tui.many_plans import chain

WIDTHS = (78, 138)


def choice(plan: Plan, origin: str = "plan.toml") -> PlanChoice:
    return PlanChoice(origin=origin, plan=plan, plan_hash=plan_hash(plan))


def faster(plan: Plan, **changes: object) -> Plan:
    return msgspec.structs.replace(plan, predicted=msgspec.structs.replace(plan.predicted, **changes))


def text_of(lines: Sequence[Line]) -> str:
    return "\n".join(line_text(spans) for spans in lines)


def page(*plans: Plan, width: int, chosen: int = 1, shows_all_hosts: bool = False) -> str:
    choices = [choice(plan, f"{index}.toml") for index, plan in enumerate(plans)]
    facts = compared_facts(choices, frozen.snapshot())
    lines = compare_page(
        compare_view(choices, facts=facts, chosen=chosen), width=width, shows_all_hosts=shows_all_hosts
    )
    assert all(line_width(spans) <= width for spans in lines), "nothing is cut off at the right"
    return text_of(lines)


def row(text: str, name: str) -> str:
    return next(each for each in text.splitlines() if each.startswith(f" {name}"))


@pytest.mark.parametrize("width", WIDTHS)
def test_two_plans_are_told_apart_in_every_way(width: int) -> None:
    text = page(
        frozen.plan(), faster(frozen.plan(split=24), tokens_per_s=300.0, time_per_token_s=0.04), width=width
    )
    assert "4 of 32 layers move" in text
    assert "layers 20-23 move, 1.7 GB of weights to bring; gpu01 1.7 GB" in " ".join(text.split())
    rate = row(text, "throughput")
    assert "+43%" in rate
    assert rate.index("█") > rate.index("│"), "B is better: to the right"
    per_token = row(text, "time per token")
    assert per_token.index("█") < per_token.index("│"), "A is better: to the left"
    assert "B has 43% more throughput" in text
    assert "A has 22% less time per token (what A and B" in text
    assert "risk A stops with the loss of any of cpu01 and gpu01" in " ".join(text.split())
    assert "energy is not compared: not every plan's file tells it" in text
    assert "≠ cpu01" in text


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("chosen", [0, 1, 2, 3])
def test_four_plans_fit_and_bars_are_of_the_chosen_one(width: int, chosen: int) -> None:
    plans = [faster(frozen.plan(split=20 + index), tokens_per_s=200.0 + 50 * index) for index in range(4)]
    text = page(*plans, width=width, chosen=chosen)
    other = "ABCD"[chosen or 1]
    assert f"Δ{other}" in text
    assert f"▶ {'ABCD'[chosen]}  " in text
    assert f"{25 * 'ABCD'.index(other):+d}%" in row(text, "throughput")
    assert all(f"A → {letter}" in text for letter in "BCD")
    if width == 78:
        assert row(text, "throughput").rstrip().endswith("D ●"), "no room for bars: the best one is named"


def test_predictions_that_overlap_are_marked_as_open() -> None:
    bounds = {"tokens_per_s_bounds": (150.0, 320.0)}
    text = page(
        faster(frozen.plan(), **bounds), faster(frozen.plan(split=24), tokens_per_s=260.0, **bounds), width=138
    )
    assert "+24%~" in row(text, "throughput")
    assert "a measurement may say otherwise" in text
    sure = page(
        faster(frozen.plan(), tokens_per_s_bounds=(190.0, 220.0)),
        faster(frozen.plan(split=24), tokens_per_s=400.0, tokens_per_s_bounds=(380.0, 420.0)),
        width=138,
    )
    assert "~" not in row(sure, "throughput")
    assert "a measurement may say otherwise" not in sure


def test_the_same_plan_twice_has_nothing_to_choose() -> None:
    text = page(frozen.plan(), frozen.plan(), width=78)
    assert "✓ the plans are the same" in text
    assert "no layer moves, nothing to bring" in text
    assert "no host changes" in text
    assert "█" not in row(text, "throughput")


def test_hosts_that_stay_are_hidden_until_they_are_asked_for() -> None:
    plan = chain(20)
    stages = list(plan.replicas[0].stages)
    stages[0], stages[1] = (
        msgspec.structs.replace(stages[0], shards=stages[1].shards),
        msgspec.structs.replace(stages[1], shards=stages[0].shards),
    )
    other = msgspec.structs.replace(
        plan, replicas=(msgspec.structs.replace(plan.replicas[0], stages=tuple(stages)),)
    )
    text = page(plan, other, width=78)
    assert "18 more that stay as they are: d shows them" in text
    assert "h005" not in text
    assert "h005" in page(plan, other, width=78, shows_all_hosts=True)


def test_strips_hold_each_layer_once_and_lanes_mark_those_that_move() -> None:
    strip = "".join(span.text for span in stage_strip(frozen.plan(split=20), 32, 32))
    assert strip == "0" + "▒" * 19 + "1" + "░" * 11
    assert len("".join(span.text for span in stage_strip(chain(80), 80, 40))) == 40
    (change,) = compare_view([choice(frozen.plan()), choice(frozen.plan(split=24))], facts=None).whole.changes
    assert "".join(span.text for span in delta_lane(change, 32, 32)) == "·" * 20 + "▲▲▲▲" + "·" * 8
    assert "▲" in "".join(span.text for span in delta_lane(change, 32, 8))


def test_bars_never_leave_their_half_and_a_small_change_is_seen() -> None:
    for factor in (0.01, 0.5, 1.02, 40.0):
        view = compare_view(
            [choice(frozen.plan()), choice(faster(frozen.plan(), tokens_per_s=210.0 * factor))], facts=None
        )
        metric = next(each for each in view.pair.metrics if each.name == "throughput")
        drawn = "".join(span.text for span in versus_bar(metric, 10))
        assert len(drawn) == 21
        assert drawn[10] == "│"
        assert ("█" in drawn[11:]) == (factor > 1)
        assert ("█" in drawn[:10]) == (factor < 1)


def test_a_plan_that_ran_when_it_was_compared_may_run_no_more() -> None:
    (running,) = plan_choices(frozen.snapshot(), None)
    choices = (running, choice(frozen.plan(split=24)))
    assert moved_on(choices, frozen.snapshot()) == ()
    later = frozen.snapshot(deployments=(frozen.deployment(status=frozen.status(generation=5)),))
    assert moved_on(choices, later) == ("chat runs generation 5 by now; A is its generation 3",)
    assert moved_on(choices, frozen.snapshot(deployments=())) == ("A does not run any more: chat is destroyed",)


def test_one_plan_and_five_are_refused() -> None:
    with pytest.raises(FleetError, match="compare takes 2 to 4"):
        compare_view([choice(frozen.plan())] * 5, facts=None)


@pytest.mark.parametrize("width", [1, 8, 30])
def test_a_page_that_is_not_laid_out_yet_is_drawn_all_the_same(width: int) -> None:
    """Also one with warnings, which are wrapped to less than the width."""
    other = msgspec.structs.replace(frozen.plan(), serving=msgspec.structs.replace(frozen.plan().serving, batch=4))
    choices = [choice(frozen.plan()), choice(other)]
    lines = compare_page(compare_view(choices, facts=None), width=width, shows_all_hosts=False, remarks=["moved"])
    assert any("decodes" in line_text(spans) or width < 30 for spans in lines)
