"""What stands on the screen, as text."""

from __future__ import annotations

from textual.pilot import Pilot

from odctl.tui.app import OdctlApp

SIZES = ((80, 24), (140, 40))


def screen_text(app: OdctlApp) -> str:
    """Every line of the screen, as painted."""
    width, height = app.size
    strips = app.screen._compositor.render_strips(app.size)
    assert len(strips) == height
    assert all(strip.cell_length <= width for strip in strips)
    return "\n".join(strip.text for strip in strips)


async def settle(pilot: Pilot[None]) -> None:
    """Until messages, workers and repaints have all been done."""
    await pilot.pause()
    await pilot.app.workers.wait_for_complete()
    await pilot.pause()
    await pilot.pause()
