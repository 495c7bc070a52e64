"""ASCII, no colour, themes: how the same screens look otherwise."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.segment import Segment

from agent.errors import FleetError
from odctl.tui.app import OdctlApp
from odctl.tui.app_looks import check_theme
from odctl.tui.model.palettes import COLOUR_BLIND, DARK
from odctl.tui.options import UiOptions
from odctl.tui.screens.confirm import ConfirmScreen
from odctl.tui.widgets import paint, themes
from tests.odctl.tui import frozen_fleet as frozen
from tests.odctl.tui.reading import SIZES, screen_text, settle

both_sizes = pytest.mark.parametrize("size", SIZES)
BEYOND_ASCII = re.compile(r"[^ -~\n]")


@pytest.fixture(autouse=True)
def _default_tones() -> Iterator[None]:
    """Tones are the process's: the next test begins with those of the default theme."""
    yield
    paint.use_colours(DARK)


def app_with(**options: object) -> OdctlApp:
    found = UiOptions(**options)  # type: ignore[arg-type]
    app = OdctlApp(frozen.FrozenFeed(frozen.snapshot()), clock=frozen.FrozenClock(), options=found)
    app.animation_level = "none"
    return app


def segments(app: OdctlApp) -> list[Segment]:
    return [segment for strip in app.screen._compositor.render_strips(app.size) for segment in strip]


# --- ascii --------------------------------------------------------------------------------------------------


@both_sizes
async def test_no_view_has_a_glyph_beyond_ascii(size: tuple[int, int]) -> None:
    app = app_with(is_ascii=True)
    async with app.run_test(size=size, notifications=True) as pilot:
        await settle(pilot)

        def check(view: str) -> None:
            text = screen_text(app)
            assert not BEYOND_ASCII.search(text), f"{view}: {BEYOND_ASCII.findall(text)}"

        check("fleet")
        assert "x unreachable" in screen_text(app), "states keep their words"
        for key in "123456789":
            await pilot.press(key)
            await settle(pilot)
            check(key)
        await pilot.press("1", "G", "enter")
        await settle(pilot)
        check("host")
        await pilot.press("question_mark")
        await settle(pilot)
        check("help")
        await pilot.press("escape", "ctrl+o")
        await settle(pilot)
        check("jump")
        await pilot.press("escape", "colon", "h", "o")
        await settle(pilot)
        check("command line")
        await pilot.press("escape", "escape", "space", "ctrl+p")
        await settle(pilot)
        check("palette")
        await pilot.press("escape")
        app.push_screen(ConfirmScreen(title="Apply…?", lines=["→ a change"], verb="Apply", typed="p-18"))
        app.notify("● it is done … ✗", title="→")
        await settle(pilot)
        check("dialog and notice")


async def test_ascii_keeps_every_cell_in_its_place() -> None:
    plain, told = app_with(), app_with(is_ascii=True)
    texts = []
    for app in (plain, told):
        async with app.run_test(size=(140, 40)) as pilot:
            await settle(pilot)
            texts.append(screen_text(app).splitlines())
    for with_glyphs, ascii_only in zip(*texts, strict=True):
        if with_glyphs.isascii():
            assert ascii_only == with_glyphs
        assert len(ascii_only) == len(with_glyphs)


# --- no colour ----------------------------------------------------------------------------------------------


@both_sizes
async def test_no_color_leaves_no_colour_on_any_view(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    app = app_with(theme="colour-blind")
    async with app.run_test(size=size, notifications=True) as pilot:
        await settle(pilot)
        for keys in (("1",), ("2",), ("3",), ("4",), ("7",), ("1", "G", "enter"), ("question_mark",)):
            await pilot.press(*keys)
            await settle(pilot)
            for segment in segments(app):
                color = segment.style.color if segment.style else None
                background = segment.style.bgcolor if segment.style else None
                assert color is None or color.is_default, f"{keys}: {segment}"
                assert background is None or background.is_default, f"{keys}: {segment}"
        await pilot.press("escape", "colon", *"theme paper", "enter")
        await settle(pilot)
        assert app.theme == "ansi-dark"
        assert any("NO_COLOR is set" in notice.message for notice in app._notifications)


# --- themes -------------------------------------------------------------------------------------------------


def colours_on(app: OdctlApp) -> set[str]:
    return {
        segment.style.color.get_truecolor().hex
        for segment in segments(app)
        if segment.style and segment.style.color and segment.text.strip()
    }


async def test_a_theme_gives_the_tones_their_colours_at_once_and_on_every_view() -> None:
    app = app_with()
    async with app.run_test(size=(140, 40)) as pilot:
        await pilot.press("4")
        await settle(pilot)
        await pilot.press("1")
        await settle(pilot)
        assert DARK["fault"] in colours_on(app)
        await pilot.press("colon", *"theme colour-blind", "enter")
        await settle(pilot)
        assert app.theme == "colour-blind"
        assert COLOUR_BLIND["fault"] in colours_on(app)
        assert DARK["fault"] not in colours_on(app)
        await pilot.press("4")
        await settle(pilot)
        assert COLOUR_BLIND["fault"] in colours_on(app)
        assert DARK["fault"] not in colours_on(app)


async def test_a_theme_is_chosen_at_the_start_and_a_wrong_one_told() -> None:
    app = app_with(theme="colour-blind")
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert COLOUR_BLIND["fault"] in colours_on(app)
        await pilot.press("colon", *"theme nice", "enter")
        await settle(pilot)
        assert any("no theme `nice`" in notice.message for notice in app._notifications)
    with pytest.raises(FleetError, match="no theme `colour-blnd`") as caught:
        check_theme("colour-blnd")
    assert caught.value.hint == "did you mean `colour-blind`?"
    check_theme("")
    check_theme("nord")


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", themes.THEMES, ids=lambda theme: theme.name)
def test_every_tone_of_our_themes_is_read_on_its_background(theme: object) -> None:
    from textual.theme import Theme

    assert isinstance(theme, Theme)
    assert theme.background is not None
    page = luminance(theme.background)
    for tone, colour in themes.colours_of(theme).items():
        light, dark = sorted((luminance(colour), page), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{theme.name}: {tone}"


def test_a_wrong_theme_is_told_before_the_screen_opens(tmp_path: Path) -> None:
    inventory = tmp_path / "inventory.toml"
    inventory.write_text('[cluster]\nname = "lab"\n[hosts.one]\ntransport = "local"\n')
    argv = [sys.executable, "-m", "odctl", "-i", str(inventory), "--ascii", "--write", "--theme", "colour-blnd"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert "no theme `colour-blnd`" in done.stderr
    assert "did you mean `colour-blind`?" in done.stderr
    assert done.stdout == ""
