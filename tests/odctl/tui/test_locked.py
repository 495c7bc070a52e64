"""`odctl --read-only`: a session that nothing unlocks, and that writes no files on the machine it runs on."""

from __future__ import annotations

from pathlib import Path

import pytest

from odctl.fleet import WriteGuard
from odctl.tui.app import OdctlApp
from odctl.tui.screens.file_name import FileNameScreen
from odctl.tui.screens.plan_editor import PlanEditorScreen
from tests.odctl.tui.reading import SIZES, screen_text, settle
from tests.odctl.tui.test_plan_editor import make_app

REASON = "it was opened with --read-only"


def said(app: OdctlApp) -> list[str]:
    return [notice.message for notice in app._notifications]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("keys", [("ctrl+x",), (":", *"unlock", "enter")], ids=["key", "command"])
async def test_nothing_unlocks_it_and_it_says_why(size: tuple[int, int], keys: tuple[str, ...]) -> None:
    app = make_app()
    app.guard = WriteGuard(never=REASON)
    async with app.run_test(size=size, notifications=True) as pilot:
        await settle(pilot)
        await pilot.press(*keys)
        await settle(pilot)
        assert app.is_read_only
        text = screen_text(app)
        assert said(app) == [f"this session stays read-only: {REASON}"]
    assert " RO " in text.splitlines()[0]


async def test_it_records_into_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    app = make_app()
    app.guard = WriteGuard(never=REASON)
    async with app.run_test(size=SIZES[0], notifications=True) as pilot:
        await settle(pilot)
        app.run_command("record here.odr")
        await settle(pilot)
        assert said(app) == [f"{REASON}: it writes no files either"]
    assert not any(tmp_path.iterdir())  # noqa: ASYNC240 - a folder of the test


async def test_its_editor_writes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    app = make_app()
    app.guard = WriteGuard(never=REASON)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await settle(pilot)
        await pilot.press("2")
        await settle(pilot)
        await pilot.press("e")
        await settle(pilot)
        await pilot.press("plus", "w")
        await settle(pilot)
        assert isinstance(app.screen, PlanEditorScreen)
        assert not isinstance(app.screen, FileNameScreen)
        assert said(app)[-1] == f"this session stays read-only: {REASON}"
    assert not any(tmp_path.iterdir())  # noqa: ASYNC240 - the app has ended
