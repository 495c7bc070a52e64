"""Pure parts of the frame: completion, history, ASCII, consent, the filter's words."""

from __future__ import annotations

import pytest

from odctl.tui.model.commands import COMMANDS, CommandError, command_named, parse_command
from odctl.tui.model.completion import (
    MAX_CANDIDATES,
    Vocabulary,
    candidate_line,
    command_candidates,
    filter_candidates,
)
from odctl.tui.model.consent import name_to_type
from odctl.tui.model.frame import MODES, tab_at, tab_place, tabs_line, title_line
from odctl.tui.model.jump import LETTERS, lettered
from odctl.tui.model.key_line import ShownKey, key_at, key_line, last_first
from odctl.tui.model.palettes import ANSI, DARK, LIGHT, tone_colours
from odctl.tui.model.plain_ascii import ascii_text
from odctl.tui.model.text import line_text, line_width
from odctl.tui.model.view_history import MAX_VIEWS, ViewHistory
from tests.odctl.tui import frozen_fleet as frozen

WORDS = Vocabulary(
    hosts=("cpu01", "cpu02", "gpu01"),
    deployments=("chat", "code"),
    plans=("chat", "p-18"),
    columns={"": ("host", "temp"), "fleet": ("host", "cpu", "ram")},
    figures=frozenset({"cpu", "ram", "temp"}),
    labels=("rack=r01", "rack=r02", "zone=a"),
    themes=("colour-blind", "paper"),
)


# --- commands and completion --------------------------------------------------------------------------------


def test_the_views_names_are_commands_too() -> None:
    assert all(command_named(mode) is not None for mode, _ in MODES)
    assert parse_command("events gpu01").command == "logs"
    assert parse_command("faults gpu").argument == "gpu"
    with pytest.raises(CommandError, match="nothing after it"):
        parse_command("unlock now")


def test_what_changes_the_fleet_says_so() -> None:
    assert {command.name for command in COMMANDS if command.changes} == {"apply", "bench"}


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("fau", ("faults ",)),
        ("host ", ("host cpu01", "host cpu02", "host gpu01")),
        ("hosts r", ("hosts ram>", "hosts rack=")),
        ("hosts rack=r0", ("hosts rack=r01", "hosts rack=r02")),
        ("hosts ho", ("hosts host=",)),
        ("hosts cpu>5 !z", ("hosts cpu>5 !zone=",)),
        ("plan p", ("plan p-18", "plan p-18.toml")),
        ("chat co", ("chat code",)),
        ("sort t", ("sort temp",)),
        ("lock ", ()),
        ("nonsense x", ()),
    ],
)
def test_a_line_is_completed_with_what_there_is(typed: str, found: tuple[str, ...]) -> None:
    assert command_candidates(typed, WORDS, lambda beginning: [f"{beginning}-18.toml"]) == found


def test_a_filter_is_completed_with_columns_labels_and_hosts() -> None:
    assert filter_candidates("te", WORDS) == ("temp>",)
    assert filter_candidates("x !g", WORDS) == ("x !gpu01",)
    assert filter_candidates("zone=", WORDS) == ("zone=a",)


def test_ten_thousand_names_are_not_offered() -> None:
    many = Vocabulary(hosts=tuple(f"h{number:05d}" for number in range(10_000)))
    assert len(command_candidates("host h", many)) == MAX_CANDIDATES


def test_candidates_stand_in_one_line_from_the_chosen_one_on() -> None:
    found = tuple(f"host gpu{number:02d}" for number in range(40))
    shown = line_text(candidate_line(found, "host g", 3, width=80))
    assert shown.startswith(" gpu03  gpu04")
    assert len(shown) == 80
    assert "nothing known begins so" in line_text(candidate_line((), "host zz", None, width=80))
    assert candidate_line((), "", None, width=80) == ()


# --- history ------------------------------------------------------------------------------------------------


def test_a_new_view_forgets_what_was_left_by_going_back() -> None:
    history = ViewHistory()
    for address in ("fleet", "fleet", "faults", "host a"):
        history.visit(address)
    assert history.back() == "faults"
    history.visit("host a")
    assert history.current == "faults", "what is still on the screen is no visit"
    history.visit("faults")
    history.visit("models")
    assert history.forward() == ""
    assert history.back() == "faults"
    history.visit("faults")
    assert history.back() == "fleet"
    history.visit("fleet")
    assert history.back() == ""
    assert history.forward() == "faults"


def test_the_last_view_toggles() -> None:
    history = ViewHistory()
    assert history.last() == ""
    history.visit("fleet")
    assert history.last() == ""
    history.visit("faults")
    for expected in ("fleet", "faults", "fleet"):
        assert history.last() == expected
        history.visit(expected)


def test_a_view_that_could_not_be_shown_ends_the_wait_for_it() -> None:
    history = ViewHistory()
    for address in ("host gone", "faults"):
        history.visit(address)
    history.back()
    history.arrived()
    history.visit("faults")
    history.visit("models")
    assert history.back() == "faults"


def test_while_views_are_held_nothing_is_a_visit() -> None:
    history = ViewHistory()
    history.visit("faults")
    history.hold()
    history.visit("fleet old filter")
    history.release()
    history.visit("fleet rack=a")
    assert history.back() == "faults"


def test_a_history_has_an_end() -> None:
    history = ViewHistory()
    for number in range(MAX_VIEWS + 10):
        history.visit(f"host {number}")
    steps = 0
    while address := history.back():
        history.visit(address)
        steps += 1
    assert steps == MAX_VIEWS - 1


# --- ascii --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("plain text", "plain text"),
        ("● live ▲ stale ✗ lost ○ connecting ↻ healing", "* live ! stale x lost o connecting @ healing"),
        ("██▌·· 52%", "##+.. 52%"),
        ("▁▂▃▄▅▆▇█", "_.-:=+*#"),
        ("╭─┬─╮│├┼┤╰═╯", "+-+-+|++++-+"),
        ("Grüße, naïve", "Gru?e, naive"),
        ("⠀⠁⠿⣿", " .*#"),
        ("日本", "????"),
    ],
)
def test_glyphs_become_ascii_of_the_same_width(text: str, plain: str) -> None:
    assert ascii_text(text) == plain


# --- the rest -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hosts", "fleet", "is_asked"),
    [(1, 1, False), (1, 6, False), (2, 6, True), (2, 40, False), (3, 59, True), (3, 60, False), (50, 1000, False)],
)
def test_more_than_a_twentieth_of_the_fleet_wants_its_name_typed(hosts: int, fleet: int, is_asked: bool) -> None:
    assert name_to_type("p-18", num_hosts=hosts, fleet_hosts=fleet) == ("p-18" if is_asked else "")


@pytest.mark.parametrize("width", [80, 96, 110, 140])
@pytest.mark.parametrize("current", [mode for mode, _ in MODES])
def test_a_tab_is_found_by_every_cell_of_it(current: str, width: int) -> None:
    text = line_text(tabs_line(current, width=width))
    assert len(text) <= width
    for number, (mode, title) in enumerate(MODES, start=1):
        place = tab_place(current, mode, width=width)
        assert text[place:].startswith(f"{number} {title}")
        assert {tab_at(current, place + at, width=width) for at in range(len(title) + 2)} == {mode}
    assert tab_at(current, width + 5, width=width) == ""


KEYS = (
    ShownKey("colon", ":", "Command"),
    ShownKey("up", "↑", "Up"),
    ShownKey("a", "a", "Apply…", is_enabled=False),
    ShownKey("enter", "⏎", ""),
)


@pytest.mark.parametrize("first", range(4))
def test_a_key_is_found_by_every_cell_of_it(first: int) -> None:
    text = line_text(key_line(KEYS, width=40, first=first))
    assert line_width(key_line(KEYS, width=40, first=first)) == 40
    for key in KEYS[first:]:
        said = f"{key.label} {key.words}".strip()
        at = text.index(said)
        assert {key_at(KEYS, at + cell, first=first) for cell in range(len(said) + 1)} == {key}
    assert key_at(KEYS, 39, first=first) is None
    if first:
        assert text.startswith("… ")
        assert key_at(KEYS, 0, first=first) is None


@pytest.mark.parametrize("width", range(3, 25))
def test_keys_that_do_not_fit_are_told_by_an_ellipsis(width: int) -> None:
    shown = key_line(KEYS, width=width)
    assert line_width(shown) == width
    assert line_text(shown).rstrip().endswith("…")


@pytest.mark.parametrize(("width", "first"), [(80, 0), (25, 0), (24, 1), (17, 1), (16, 2), (4, 3), (1, 3)])
def test_the_last_key_can_be_brought_into_sight(width: int, first: int) -> None:
    assert line_width(key_line(KEYS, width=80)) == 80
    assert last_first(KEYS, width=width) == first
    assert last_first((), width=width) == 0


def test_the_title_says_how_long_changes_are_allowed() -> None:
    def title(**more: object) -> str:
        spans = title_line(frozen.snapshot(), ("Fleet",), width=80, now_s=frozen.NOW_S, **more)  # type: ignore[arg-type]
        assert line_width(spans) == 80
        return line_text(spans)

    assert title(is_read_only=True).endswith(" RO ")
    assert title(is_read_only=False, unlocked_for_s=541.0).endswith(" RW 10m ")
    assert title(is_read_only=False, unlocked_for_s=0.5).endswith(" RW 1m ")


def test_letters_follow_the_order_of_reading_and_are_not_used_twice() -> None:
    assert lettered([(40, 3), (0, 9), (0, 3)]) == (("a", 0, 3), ("s", 40, 3), ("d", 0, 9))
    assert len(lettered([(0, row) for row in range(60)])) == len(LETTERS) == 26


def test_a_theme_has_its_own_word_on_tones_or_what_suits_its_page() -> None:
    assert tone_colours({}, is_dark=True, is_ansi=False) == DARK
    assert tone_colours({}, is_dark=False, is_ansi=False) == LIGHT
    assert tone_colours({}, is_dark=True, is_ansi=True) == ANSI
    own = tone_colours({"tone-ok": "#123456", "primary": "red"}, is_dark=True, is_ansi=False)
    assert own == {**DARK, "ok": "#123456"}
