"""What stands on the screen, as text."""

from __future__ import annotations

from textual.pilot import Pilot

from odctl.tui.app import OdctlApp
from odctl.tui.model.text import line_text
from odctl.tui.widgets.key_line import KeyLine
from odctl.tui.widgets.lines import LinesBar, LinesView

SIZES = ((80, 24), (140, 40))
LAYOUTS = 50
"""Most times that a layout that is still being made is waited for."""


def screen_text(app: OdctlApp) -> str:
    """Every line of the screen, as painted."""
    width, height = app.size
    strips = app.screen._compositor.render_strips(app.size)
    assert len(strips) == height
    assert all(strip.cell_length <= width for strip in strips)
    return "\n".join(strip.text for strip in strips)


async def settle(pilot: Pilot[None]) -> None:
    """Until messages, workers and repaints have all been done, bars are as high as their lines, pages as wide."""
    await pilot.pause()
    await pilot.app.workers.wait_for_complete()
    await pilot.pause()
    await pilot.pause()
    for _ in range(LAYOUTS):
        screen = pilot.app.screen
        bars = (bar for bar in screen.query(LinesBar) if bar.display)
        pages = (page for page in screen.query(LinesView) if page.display and page.lines)
        if all(bar.region.height >= min(1, len(bar.lines)) for bar in bars) and all(
            page.shown_width == page.content_width for page in pages
        ):
            return
        await pilot.pause(0.02)


async def click_key(pilot: Pilot[None], words: str) -> None:
    """A click on the key of these words, on the line of keys."""
    keys = pilot.app.screen.query_one(KeyLine)
    [shown] = keys.lines
    at = line_text(shown).index(words)
    await pilot.click(keys, offset=(at, 0))
    await settle(pilot)
