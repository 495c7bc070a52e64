"""The keymap file: keys that are moved work, and what is wrong in it is told at its place and left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from odctl.tui.app import OdctlApp
from odctl.tui.app_looks import user_keymap
from odctl.tui.keymap_file import keymap_path
from odctl.tui.model.keymap import Keymap, problem_text, read_keymap
from odctl.tui.screens.fleet import FleetScreen
from odctl.tui.screens.help import HelpScreen
from odctl.tui.screens.known_keys import known_keys, normal_key
from odctl.tui.widgets.lines import LinesView
from tests.odctl.tui import frozen_fleet as frozen
from tests.odctl.tui.reading import screen_text, settle


def read(text: str) -> Keymap:
    return read_keymap(text, path="keymap.toml", known=known_keys(), normal_key=normal_key)


def told(text: str) -> list[str]:
    return [problem_text(problem) for problem in read(text).problems]


def app_with(keymap: Keymap) -> OdctlApp:
    app = OdctlApp(frozen.FrozenFeed(frozen.snapshot()), clock=frozen.FrozenClock(), keymap=keymap)
    app.animation_level = "none"
    return app


@pytest.mark.parametrize(
    ("typed", "key"),
    [
        ("f1", "f1"),
        ("?", "question_mark"),
        ("G", "G"),
        ("^g", "ctrl+g"),
        ("ctrl+G", "ctrl+g"),
        ("esc", "escape"),
        ("ctrl+space", "ctrl+@"),
        ("^\\", "ctrl+backslash"),
        ("shift+left", "shift+left"),
        ("+", "plus"),
        ("question_mark", "question_mark"),
        ("pgdn", "pagedown"),
        ("nonsense", None),
        ("hold+x", None),
        ("ctrl+", None),
        ("", None),
    ],
)
def test_keys_are_written_as_people_write_them(typed: str, key: str | None) -> None:
    assert normal_key(typed) == key


def test_a_sound_file_says_which_keys_go_where() -> None:
    keymap = read('[keys]\n"app.help" = "f2"\n"table.down" = ["f8", "down"]\napp.jump = "^j"\n')
    assert keymap.problems == ()
    assert keymap.keys == {"app.help": "f2", "table.down": "f8,down", "app.jump": "ctrl+j"}


def test_two_bindings_may_change_keys_with_each_other() -> None:
    keymap = read('[keys]\n"app.help" = "q"\n"app.quit" = "question_mark"\n')
    assert keymap.problems == ()
    assert keymap.keys == {"app.help": "q", "app.quit": "question_mark"}


def test_every_problem_is_told_at_its_line_with_a_way_out_and_the_rest_holds() -> None:
    text = """
[keys]
"app.hepl" = "f2"
"app.jump" = 7
"app.quit" = "nonsense"
"table.down" = []
"table.up" = ["u"]
[colours]
ok = "green"
"""
    keymap = read(text)
    assert keymap.keys == {"table.up": "u"}
    assert told(text) == [
        "keymap.toml:3: unknown binding `app.hepl`: did you mean `app.help`?",
        'keymap.toml:4: the keys of `app.jump` are a text or a list of texts: such as "f1"',
        'keymap.toml:5: `nonsense` is no key: such as "f1", "ctrl+g", "?" or "space"',
        "keymap.toml:6: `table.down` has no key: leave the line out",
        "keymap.toml:8: unknown table `colours`: keys stand under [keys]",
    ]


def test_a_key_that_does_something_else_is_a_clash_and_the_old_keys_stay() -> None:
    [said] = told('[keys]\n"app.help" = "q"\n')
    assert said == (
        "keymap.toml:2: `app.help` = `q`: that key does `app.quit` (Quit): "
        "choose another key, or give `app.quit` another one too"
    )
    keymap = read('[keys]\n"table.down" = "d"\n"app.jump" = "f3"\n"app.palette" = "f3"\n')
    assert keymap.keys == {"app.jump": "f3"}, "the earlier line has the key that two want"
    assert [problem.span.line for problem in keymap.problems] == [2, 4]
    assert "that key does `" in problem_text(keymap.problems[0]), "the table stands on views that have the key"


def test_the_same_key_on_screens_that_are_never_seen_together_is_no_clash() -> None:
    assert told('[keys]\n"editor.pin" = "c"\n"deployments.chat" = "t"\n') == []


@pytest.mark.parametrize("text", ["[keys\n", "keys = 3\n"])
def test_a_file_that_is_no_keymap_is_told_and_changes_nothing(text: str) -> None:
    keymap = read(text)
    assert keymap.keys == {}
    assert len(keymap.problems) == 1


def test_the_file_lies_where_xdg_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert keymap_path() == tmp_path / "odctl" / "keymap.toml"
    assert user_keymap() == Keymap(path=str(keymap_path())), "no file is no trouble"
    keymap_path().parent.mkdir()
    keymap_path().write_text('[keys]\n"app.help" = "f2"\n')
    assert user_keymap().keys == {"app.help": "f2"}
    keymap_path().write_bytes(b"\xff\xfe")
    assert "it cannot be read" in problem_text(user_keymap().problems[0])
    monkeypatch.setenv("XDG_CONFIG_HOME", "not/absolute")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert keymap_path() == tmp_path / ".config" / "odctl" / "keymap.toml"


async def test_a_moved_key_works_in_its_new_place_only_and_the_help_shows_it() -> None:
    app = app_with(read('[keys]\n"app.help" = "f2"\n"table.down" = "f8"\n"mode.faults" = "f4"\n'))
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert isinstance(app.screen, FleetScreen)
        await pilot.press("f8", "f8")
        assert app.screen.table.cursor_key == "cpu03"
        await pilot.press("j", "down")
        assert app.screen.table.cursor_key == "cpu03"
        assert "f2 Help" in screen_text(app)
        await pilot.press("question_mark")
        await settle(pilot)
        assert isinstance(app.screen, FleetScreen)
        await pilot.press("f2")
        await settle(pilot)
        assert isinstance(app.screen, HelpScreen)
        text = "\n".join("".join(span.text for span in spans) for spans in app.screen.query_one(LinesView).lines)
        assert "f8             Down" in text
        await pilot.press("escape", "4")
        await settle(pilot)
        assert app.current_mode == "fleet"
        await pilot.press("f4")
        await settle(pilot)
        assert app.current_mode == "faults"


async def test_a_broken_keymap_is_told_at_the_start_and_nothing_else_breaks() -> None:
    app = app_with(read('[keys]\n"app.hepl" = "f2"\n"app.quit" = "?"\n"table.down" = "f8"\n'))
    async with app.run_test(size=(140, 40), notifications=True) as pilot:
        await settle(pilot)
        text = screen_text(app)
        assert "left out of the keymap file" in text
        assert "keymap.toml:2" in text
        assert "keymap.toml:3" in text
        await pilot.press("f8")
        assert isinstance(app.screen, FleetScreen)
        assert app.screen.table.cursor_key == "cpu02", "what is sound in it holds"
        await pilot.press("question_mark")
        await settle(pilot)
        assert isinstance(app.screen, HelpScreen)
        lines = app.screen.query_one(LinesView).lines
        assert any("keymap.toml:2" in "".join(span.text for span in spans) for spans in lines)
