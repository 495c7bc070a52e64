"""Pictures: each view is reached and recognised, and what is missing is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from odctl.tui import screenshots
from odctl.tui.app import OdctlApp
from odctl.tui.screenshot_views import REPLAY_VIEWS, VIEWS, WITHOUT_PICTURE
from odctl.tui.screenshots import Scene, View, screen_names, screens_without_view, take_pictures
from tests.odctl.tui import frozen_fleet as frozen
from tests.odctl.tui.conftest import make_app
from tests.pngs import local_svg, size_of

STEADY = {"fleet", "devices", "host", "deployments", "help"}
"""Views that a fleet that stands still has, too."""


def frozen_app() -> OdctlApp:
    """Without the host that is still being connected: pictures wait for all of them."""
    snapshot = frozen.snapshot()
    answering = tuple(host for host in snapshot.hosts if host.state != "connecting")
    return make_app(frozen.FrozenFeed(frozen.snapshot(hosts=answering)))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fleet that stands still needs no time to settle, and what does not come in a second does not come."""
    monkeypatch.setattr(screenshots, "SETTLE_S", 0.05)
    monkeypatch.setattr(screenshots, "VIEW_TIMEOUT_S", 1.0)


def test_every_screen_has_a_view_and_every_view_a_screen() -> None:
    assert set(screens_without_view(VIEWS)) == WITHOUT_PICTURE.keys()
    assert {view.screen for view in (*VIEWS, *REPLAY_VIEWS)} <= screen_names()
    names = [view.name for view in VIEWS]
    assert len(set(names)) == len(names)


def test_a_screen_without_a_view_is_found() -> None:
    views = [view for view in VIEWS if view.screen != "HostScreen"]
    assert set(screens_without_view(views)) - WITHOUT_PICTURE.keys() == {"HostScreen"}
    assert "FrameScreen" not in screen_names(), "what screens are made of is no screen"


async def test_views_are_taken_at_both_sizes_and_in_their_themes(tmp_path: Path, quick: None) -> None:
    views = [view for view in VIEWS if view.name in STEADY]
    host = frozen.snapshot().hosts[0].name
    taken = await take_pictures(frozen_app, views, tmp_path, scene=Scene(host=host), label="frozen", warm_up_s=0.0)
    assert taken.missing == ()
    names = {path.name for path in taken.pictures}
    assert {"fleet-frozen-80x24.svg", "host-frozen-140x40.svg", "fleet-frozen-paper-80x24.svg"} <= names
    texts = {path.name: path.read_text(encoding="utf-8") for path in taken.pictures}
    assert all("odctl" in text and "frozen)" in text for text in texts.values())
    assert texts["fleet-frozen-80x24.svg"] != texts["fleet-frozen-paper-80x24.svg"]
    assert host in texts["host-frozen-80x24.svg"]


async def test_a_view_that_does_not_come_is_told_and_the_next_one_is_taken(tmp_path: Path, quick: None) -> None:
    views = [
        View(name="none", screen="HostScreen", command="host nobody"),
        View(name="typo", screen="FleetScreen", command="no_such_command", shows="never"),
        View(name="faults", screen="FaultsScreen", command="faults"),
    ]
    taken = await take_pictures(frozen_app, views, tmp_path, warm_up_s=0.0, sizes=((80, 24),))
    assert [path.name for path in taken.pictures] == ["faults-80x24.svg"]
    assert [each.name for each in taken.missing] == ["none at 80x24", "typo at 80x24"]
    assert taken.missing[0].reason.startswith("no HostScreen but FleetScreen (no host `nobody`")
    assert taken.missing[1].reason.startswith("no FleetScreen with 'never' but FleetScreen (no command")


def test_a_picture_to_be_drawn_asks_no_other_site_and_keeps_its_spaces() -> None:
    svg = frozen_svg()
    assert "https://" in "".join(re.findall(r"url\(.*?\)", svg))
    drawn = local_svg(svg)
    assert 'url("https://' not in drawn
    assert drawn.count('<text xml:space="preserve" ') == svg.count("<text ") > 20
    width, height = size_of(svg)
    assert (width, height) == size_of(drawn)
    assert width > height > 100
    with pytest.raises(ValueError, match="viewBox"):
        size_of("<svg></svg>")


def frozen_svg() -> str:
    """A picture that is kept for comparison."""
    name = "test_view[fleet-80x24].svg"
    return (Path(__file__).parent / "__snapshots__" / "test_snapshots" / name).read_text(encoding="utf-8")
