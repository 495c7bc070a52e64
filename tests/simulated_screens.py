"""Pictures of the fleet view over a SIMULATED fleet of 1,024 hosts: what no lab here is big enough to show.

The title of each says `simulated`. The clock stands still and the fleet is seeded: equal code gives equal pictures.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from odctl.tui.app import OdctlApp
from tests.odctl.tui.frozen_fleet import NOW_S, FrozenClock, FrozenFeed
from tests.odctl.tui.reading import settle
from tests.simulated_fleet import SimulatedFleet

NUM_HOSTS = 1024
SIZES = ((80, 24), (140, 40))
VIEWS: dict[str, tuple[str, ...]] = {
    "simulated-map": ("n",),
    "simulated-racks": ("g", "n"),
    "simulated-table": ("v", "g", "down"),
}
"""Names of pictures, and the keys that lead there from the start."""


async def take(out: Path) -> list[Path]:
    """Write every view in both sizes. Returns the paths."""
    snapshot = SimulatedFleet(NUM_HOSTS, frames=1, now_s=NOW_S).frames[0]
    written = []
    for width, height in SIZES:
        for name, keys in VIEWS.items():
            app = OdctlApp(FrozenFeed(snapshot), clock=FrozenClock())
            app.animation_level = "none"
            async with app.run_test(size=(width, height)) as pilot:
                await settle(pilot)
                await settle(pilot)
                for key in keys:
                    await pilot.press(key)
                    await settle(pilot)
                path = out / f"{name}-{width}x{height}.svg"
                picture = app.export_screenshot(title=f"odctl: {NUM_HOSTS:,} simulated hosts")
                await asyncio.to_thread(path.write_text, picture, encoding="utf-8")
                written.append(path)
    return written


def main() -> None:
    for path in asyncio.run(take(Path(__file__).parent.parent / "screenshots")):
        print(path)


if __name__ == "__main__":
    main()
