"""What all views share: tabs, prompt and completion, history, jump, marks, help."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from textual import events
from textual.pilot import Pilot

from agent.planner.file import plan_to_toml
from odctl.tui.app import OdctlApp
from odctl.tui.model.frame import MODES
from odctl.tui.screens.chat import ChatScreen
from odctl.tui.screens.events import EventsScreen
from odctl.tui.screens.fleet import FleetScreen
from odctl.tui.screens.help import HelpScreen
from odctl.tui.screens.host import HostScreen
from odctl.tui.screens.jump import JumpScreen
from odctl.tui.screens.plans import PlansScreen
from odctl.tui.screens.probes import ProbesScreen
from odctl.tui.widgets.fleet_table import FleetTable
from odctl.tui.widgets.key_line import KeyLine
from odctl.tui.widgets.lines import LinesView
from odctl.tui.widgets.prompt import Prompt
from odctl.tui.widgets.tabs import TabsBar
from tests.odctl.tui import frozen_fleet as frozen
from tests.odctl.tui.conftest import make_app
from tests.odctl.tui.reading import SIZES, click_key, screen_text, settle

both_sizes = pytest.mark.parametrize("size", SIZES)


def fleet_app() -> OdctlApp:
    return make_app(frozen.FrozenFeed(frozen.snapshot()))


def table_of(app: OdctlApp) -> FleetTable:
    return app.screen.query_one(FleetTable)


def said(app: OdctlApp) -> str:
    return "\n".join(notice.message for notice in app._notifications)


async def type_command(pilot: Pilot[None], text: str) -> None:
    await pilot.press("colon", *text, "enter")
    await settle(pilot)


# --- the line of keys ---------------------------------------------------------------------------------------


@both_sizes
async def test_a_click_on_a_key_presses_it(size: tuple[int, int]) -> None:
    app = fleet_app()
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        await click_key(pilot, "Filter")
        assert app.screen.query_one(Prompt).display
        await pilot.press("escape")
        await click_key(pilot, "Devices")
        assert isinstance(app.screen, FleetScreen)
        assert app.screen.shows_devices


async def test_the_line_tells_the_keys_of_what_has_the_focus() -> None:
    app = fleet_app()
    async with app.run_test(size=(140, 40)) as pilot:
        await settle(pilot)
        assert "Metric" in screen_text(app).splitlines()[-1]
        await pilot.press("2")
        await settle(pilot)
        last = screen_text(app).splitlines()[-1]
        assert "Metric" not in last
        assert "Apply…" in last


async def test_keys_that_do_not_fit_are_reached_with_the_wheel() -> None:
    app = fleet_app()
    async with app.run_test(size=(40, 24)) as pilot:
        await pilot.press("2")
        await settle(pilot)
        line = app.screen.query_one(KeyLine)
        first, last = line.keys[0], line.keys[-1]
        assert screen_text(app).splitlines()[-1].endswith("…")
        for _ in range(len(line.keys) + 3):
            await pilot._post_mouse_events([events.MouseScrollDown], line, offset=(5, 0))
        await settle(pilot)
        text = screen_text(app).splitlines()[-1]
        assert text.startswith("… ")
        assert f"{last.label} {last.words}" in text
        for _ in range(len(line.keys)):
            await pilot._post_mouse_events([events.MouseScrollUp], line, offset=(5, 0))
        await settle(pilot)
        assert screen_text(app).splitlines()[-1].startswith(f"{first.label} {first.words}")


# --- tabs ---------------------------------------------------------------------------------------------------


def test_the_views_have_the_numbers_that_people_know_them_by() -> None:
    assert [mode for mode, _ in MODES] == [
        "fleet",
        "plans",
        "deployments",
        "faults",
        "learning",
        "logs",
        "chat",
        "models",
        "probes",
    ]


@both_sizes
async def test_every_tab_is_seen_and_a_click_goes_there_as_its_number_does(size: tuple[int, int]) -> None:
    app = fleet_app()
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        tabs = screen_text(app).splitlines()[1]
        assert all(f"{number} {title}" in tabs for number, (_, title) in enumerate(MODES, start=1))
        for number, (mode, _) in enumerate(MODES, start=1):
            bar = app.screen.query_one(TabsBar)
            await pilot.click(bar, offset=(bar.place_of(mode) + 1, 0))
            await settle(pilot)
            assert app.current_mode == mode
            await pilot.press("1", str(number))
            await settle(pilot)
            assert app.current_mode == mode


async def test_a_click_beside_the_tabs_goes_nowhere() -> None:
    app = fleet_app()
    async with app.run_test(size=(140, 40)) as pilot:
        await settle(pilot)
        await pilot.click(app.screen.query_one(TabsBar), offset=(139, 0))
        await settle(pilot)
        assert app.current_mode == "fleet"


# --- the line at the bottom ---------------------------------------------------------------------------------


@both_sizes
async def test_the_command_line_is_seen_with_what_it_may_become(size: tuple[int, int]) -> None:
    app = fleet_app()
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        await pilot.press("colon", *"ho")
        await settle(pilot)
        text = screen_text(app).splitlines()
        assert any(line.startswith(" :ho") for line in text)
        assert app.screen.query_one(Prompt).candidates == ("host ", "hosts ")
        await pilot.press("tab")
        await settle(pilot)
        assert any(line.startswith(" :host") for line in screen_text(app).splitlines())


@pytest.mark.parametrize(
    ("typed", "filled"),
    [
        ("hosts rac", "hosts rack="),
        ("hosts rack=", "hosts rack=a"),
        ("hosts stale c", "hosts stale cpu>"),
        ("host gp", "host gpu01"),
        ("logs cpu03", "logs cpu03"),
        ("plan ch", "plan chat"),
        ("chat c", "chat chat"),
        ("sort te", "sort temp"),
        ("theme colour", "theme colour-blind"),
        ("faul", "faults "),
    ],
)
async def test_tab_completes_commands_names_labels_and_filters(typed: str, filled: str) -> None:
    app = fleet_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("colon", *typed, "tab")
        await settle(pilot)
        assert app.screen.query_one("#prompt-input").value == filled  # type: ignore[attr-defined]


async def test_the_line_recalls_what_was_entered() -> None:
    app = fleet_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await type_command(pilot, "sort cpu")
        await type_command(pilot, "sort ram")
        await pilot.press("colon", "up", "up")
        assert app.screen.query_one("#prompt-input").value == "sort cpu"  # type: ignore[attr-defined]
        await pilot.press("down", "enter")
        await settle(pilot)
        assert isinstance(app.screen, FleetScreen)
        assert app.screen.sort is not None
        assert app.screen.sort.column == "ram"
        assert not app.screen.sort.is_descending, "the same column again turns the sort round"


async def test_hosts_by_label_and_what_means_nothing_is_told() -> None:
    app = fleet_app()
    async with app.run_test(size=(140, 40)) as pilot:
        await settle(pilot)
        await type_command(pilot, "hosts rack=a")
        assert table_of(app).shown_keys == ("gpu01",)
        await type_command(pilot, "hosts !rack=a state=stale")
        assert table_of(app).shown_keys == ("cpu02",)
        await type_command(pilot, "hosts util<90")
        assert table_of(app).shown_keys == ("gpu01",)
        await type_command(pilot, "hosts zone=9")
        text = screen_text(app)
        assert "no column or label `zone`: columns are host, state" in text
        assert len(table_of(app).shown_keys) == 6, "a filter that means nothing hides nothing"


async def test_a_plan_is_opened_by_the_name_of_its_deployment_or_by_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p-18.toml").write_text(plan_to_toml(frozen.plan("p-18")))
    app = fleet_app()
    async with app.run_test(size=(140, 40)) as pilot:
        await settle(pilot)
        await type_command(pilot, "plan chat")
        assert isinstance(app.screen, PlansScreen)
        assert "serving, generation 3" in screen_text(app)
        await pilot.press("colon", *"plan p-", "tab", "enter")
        await settle(pilot)
        assert "preview of p-18.toml" in screen_text(app)
        await type_command(pilot, "plan chat")
        assert "serving, generation 3" in screen_text(app)
        await type_command(pilot, "plan p-18")
        assert "preview of p-18.toml" in screen_text(app), "it is known by its name now"
        await type_command(pilot, "plan p-99")
        assert "no plan `p-99`, and no file of that name here; known plans: p-18, chat" in said(app)


# --- history ------------------------------------------------------------------------------------------------


async def test_views_come_back_with_what_they_showed() -> None:
    app = fleet_app()
    async with app.run_test(size=(140, 40)) as pilot:
        await settle(pilot)
        await type_command(pilot, "hosts rack=a")
        await type_command(pilot, "host cpu02")
        await pilot.press("4")
        await settle(pilot)
        await type_command(pilot, "devices gpu01")
        assert app.views.current == "devices gpu01"
        await back(pilot)
        assert app.current_mode == "faults"
        await back(pilot)
        assert isinstance(app.screen, HostScreen)
        assert app.screen.host == "cpu02"
        await back(pilot)
        assert isinstance(app.screen, FleetScreen)
        assert table_of(app).shown_keys == ("gpu01",)
        await back(pilot)
        assert isinstance(app.screen, FleetScreen)
        assert len(table_of(app).shown_keys) == 6
        await back(pilot)
        assert "no view before this one" in said(app)
        for _ in range(4):
            await pilot.press("right_square_bracket")
            await settle(pilot)
        assert app.views.current == "devices gpu01"
        assert isinstance(app.screen, FleetScreen)
        assert app.screen.shows_devices
        await pilot.press("right_square_bracket")
        await settle(pilot)
        assert "no view after this one" in said(app)


async def test_the_last_view_comes_back_and_so_does_this_one() -> None:
    app = fleet_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await type_command(pilot, "logs cpu01")
        await pilot.press("3")
        await settle(pilot)
        await pilot.press("minus")
        await settle(pilot)
        assert isinstance(app.screen, EventsScreen)
        assert app.screen.filter_text == "host=cpu01"
        await pilot.press("minus")
        await settle(pilot)
        assert app.current_mode == "deployments"


async def test_going_back_to_a_chat_leaves_the_keys_commands() -> None:
    app = fleet_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("7")
        await settle(pilot)
        await pilot.press("4")
        await settle(pilot)
        await back(pilot)
        assert isinstance(app.screen, ChatScreen)
        await pilot.press("3")
        await settle(pilot)
        assert app.current_mode == "deployments"


async def test_a_host_that_is_gone_does_not_end_the_history() -> None:
    feed = frozen.FrozenFeed(frozen.snapshot())
    app = make_app(feed)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await type_command(pilot, "host cpu02")
        await type_command(pilot, "faults")
        feed.push(frozen.snapshot(hosts=tuple(host for host in frozen.hosts() if host.name != "cpu02")))
        await settle(pilot)
        await back(pilot)
        assert app.current_mode == "faults"
        assert "no host `cpu02`" in said(app)
        await pilot.pause(0.6)
        await type_command(pilot, "models")
        await back(pilot)
        assert app.current_mode == "faults"


async def back(pilot: Pilot[None]) -> None:
    await pilot.press("left_square_bracket")
    await settle(pilot)


# --- jump ---------------------------------------------------------------------------------------------------


@both_sizes
async def test_jump_puts_letters_on_what_takes_the_focus_and_numbers_on_the_tabs(size: tuple[int, int]) -> None:
    app = fleet_app()
    async with app.run_test(size=size) as pilot:
        await pilot.press("3")
        await settle(pilot)
        deployments = app.screen
        await pilot.press("ctrl+o")
        await settle(pilot)
        assert isinstance(app.screen, JumpScreen)
        letters = [target.letter for target in app.screen.targets if target.letter.isalpha()]
        assert letters == ["a", "s"], "the table, and the page below it"
        text = screen_text(app).splitlines()
        assert all(text[target.y][target.x] == target.letter for target in app.screen.targets)
        assert "3 Deploy" in text[1], "what is below is still read"
        await pilot.press("s")
        await settle(pilot)
        assert app.screen is deployments
        assert app.focused is deployments.query_one(LinesView)
        await pilot.press("ctrl+o", "4")
        await settle(pilot)
        assert app.current_mode == "faults"
        await pilot.press("ctrl+o", "escape")
        await settle(pilot)
        assert app.current_mode == "faults"


async def test_a_jumps_letters_can_be_clicked() -> None:
    app = fleet_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("3")
        await settle(pilot)
        deployments = app.screen
        await pilot.press("ctrl+o")
        await settle(pilot)
        assert isinstance(app.screen, JumpScreen)
        page = next(target for target in app.screen.targets if target.letter == "s")
        await pilot.click(offset=(page.x, page.y))
        await settle(pilot)
        assert app.focused is deployments.query_one(LinesView)


# --- marks --------------------------------------------------------------------------------------------------


@both_sizes
async def test_marks_belong_to_keys_and_survive_sorts_filters_and_refreshes(size: tuple[int, int]) -> None:
    feed = frozen.FrozenFeed(frozen.snapshot())
    app = make_app(feed)
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        await pilot.press("space", "j", "space")
        await settle(pilot)
        table = table_of(app)
        assert table.marks == {"cpu01", "cpu03"}
        assert "◆ 2 marked" in screen_text(app)
        assert [line[:6] for line in screen_text(app).splitlines() if line.startswith("◆")] == ["◆cpu01", "◆cpu03"]
        await type_command(pilot, "sort state")
        feed.push(frozen.snapshot(taken_at_s=frozen.NOW_S + 1))
        await settle(pilot)
        assert [line[:6] for line in screen_text(app).splitlines() if line.startswith("◆")] == ["◆cpu03", "◆cpu01"]
        assert set(table.chosen) == {"cpu01", "cpu03"}
        await type_command(pilot, "hosts gpu")
        assert "2 marked, 2 of them not shown" in screen_text(app)
        await pilot.press("escape")
        await settle(pilot)
        feed.push(frozen.snapshot(hosts=tuple(host for host in frozen.hosts() if host.name != "cpu03")))
        await settle(pilot)
        assert table.chosen == ("cpu01",), "what is gone is not acted on"
        feed.push(frozen.snapshot())
        await settle(pilot)
        assert set(table.chosen) == {"cpu01", "cpu03"}, "and is marked still when it comes back"
        await pilot.press("ctrl+backslash")
        await settle(pilot)
        assert table.marks == frozenset()
        assert table.chosen == (table.cursor_key,), "without marks it is the row under the cursor"
        assert "marked" not in screen_text(app)


async def test_a_range_is_marked_from_the_last_mark_to_the_cursor() -> None:
    app = fleet_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("j", "space", "j", "j", "ctrl+@")
        await settle(pilot)
        assert table_of(app).marks == {"cpu02", "cpu03", "cpu04", "cpu05"}
        await pilot.press("home", "space", "space")
        await settle(pilot)
        assert "cpu01" in table_of(app).marks
        assert "cpu02" not in table_of(app).marks, "a mark is taken away again"


async def test_the_mouse_moves_opens_and_marks() -> None:
    app = fleet_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        table = table_of(app)
        await pilot.click(table, offset=(5, 2), control=True)
        await settle(pilot)
        assert table.marks == {"cpu02"}
        await pilot.click(table, offset=(5, 4))
        await settle(pilot)
        assert table.cursor_key == "cpu04"
        await pilot.click(table, offset=(5, 4))
        await settle(pilot)
        assert isinstance(app.screen, HostScreen)


async def test_a_host_with_several_rows_is_marked_as_one() -> None:
    from tests.odctl.tui import measured_fleet as measured

    app = make_app(frozen.FrozenFeed(measured.snapshot()))
    async with app.run_test(size=(140, 40)) as pilot:
        await pilot.press("9")
        await settle(pilot)
        await pilot.press("space")
        await settle(pilot)
        assert isinstance(app.screen, ProbesScreen)
        assert app.screen.marked == {"cpu01"}
        await pilot.press("v")
        await settle(pilot)
        assert app.screen.table.chosen == ("cpu01",), "also in the matrix"


# --- help ---------------------------------------------------------------------------------------------------


def help_text(app: OdctlApp) -> str:
    assert isinstance(app.screen, HelpScreen)
    return "\n".join("".join(span.text for span in spans) for spans in app.screen.query_one(LinesView).lines)


@both_sizes
async def test_help_begins_with_the_focused_thing_then_the_view_then_the_app(size: tuple[int, int]) -> None:
    app = fleet_app()
    async with app.run_test(size=size) as pilot:
        await pilot.press("3")
        await settle(pilot)
        await pilot.press("question_mark")
        await settle(pilot)
        text = help_text(app)
        here, view, everywhere = text.index("HERE"), text.index("THIS VIEW"), text.index("EVERYWHERE")
        assert here < text.index("Mark up to here") < view < text.index("Its plan") < everywhere
        assert everywhere < text.index("View before") < text.index("COMMANDS")
        assert "A row each." in text
        assert "table.range" in text, "the ids that the keymap file wants"
        assert all(len(line) <= size[0] for line in text.splitlines())
        await pilot.press("question_mark")
        await settle(pilot)
        app.screen.query_one(LinesView).focus()
        await settle(pilot)
        await pilot.press("question_mark")
        await settle(pilot)
        text = help_text(app)
        assert "Mark up to here" not in text, "another thing has the focus now"
        assert "Scroll down" in text[: text.index("THIS VIEW")]


async def test_help_is_had_while_writing_and_tells_the_prompts_keys() -> None:
    app = fleet_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("colon", "question_mark")
        assert app.screen.query_one("#prompt-input").value == "?"  # type: ignore[attr-defined]
        await pilot.press("f1")
        await settle(pilot)
        text = help_text(app)
        assert "Next candidate" in text[: text.index("THIS VIEW")]
        await pilot.press("escape")
        await settle(pilot)
        assert app.screen.query_one(Prompt).is_open, "one step back is back to the line"


@both_sizes
async def test_all_of_the_help_is_reached_by_scrolling(size: tuple[int, int]) -> None:
    app = fleet_app()
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        await pilot.press("question_mark")
        await settle(pilot)
        assert "GLYPHS" in help_text(app)
        await pilot.press("end")
        await settle(pilot)
        assert "◆ marked" in screen_text(app)


async def test_text_of_a_host_is_never_markup() -> None:
    base = frozen.host("odd", "unreachable", reason="[red]not[/] markup [E211]")
    app = make_app(frozen.FrozenFeed(frozen.snapshot(hosts=(msgspec.structs.replace(base, sample=None),))))
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await settle(pilot)
        app.screen.notify("[red]not[/] markup [E211")
        await settle(pilot)
        assert "[red]not[/] markup [E211" in screen_text(app)


async def test_the_wheel_scrolls_what_is_under_it() -> None:
    base = frozen.host("base")
    crowd = tuple(msgspec.structs.replace(base, name=f"h{number:03d}") for number in range(200))
    app = make_app(frozen.FrozenFeed(frozen.snapshot(hosts=crowd, faults=())))
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await pilot.press("v")
        await settle(pilot)
        table = table_of(app)
        assert "h000" in screen_text(app)
        for _ in range(4):
            await pilot._post_mouse_events([events.MouseScrollDown], table, offset=(5, 5))
        await settle(pilot)
        assert table.scroll_offset.y > 0
        first_row = screen_text(app).splitlines()[table.region.y + 1]
        assert first_row.startswith(f" h{table.scroll_offset.y:03d} ")
        assert table.cursor_key == "h000", "the wheel looks, it does not choose"
