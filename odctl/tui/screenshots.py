"""`python -m odctl.tui.screenshots --inventory X --out DIR`: SVGs of the real UI over a real cluster.

It changes nothing, but asks the first deployment one question when there is one.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from textual.pilot import Pilot

from agent.errors import FleetError
from odctl.fleet.clock import SystemClock
from odctl.inventory import Inventory, load_inventory
from odctl.result import exit_code_of, render_error
from odctl.tui.app import OdctlApp
from odctl.tui.feed import FleetFeed
from odctl.tui.screens.chat import ChatScreen
from odctl.tui.screens.learning import LearningScreen
from odctl.tui.screens.models import ModelsScreen
from odctl.tui.screens.plan_editor import PlanEditorScreen

SIZES = ((80, 24), (140, 40))
LIVE_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 60.0
SETTLE_S = 2.5
"""A little more than two snapshots: what is drawn is then of the screen that is shown."""
QUESTION = "What does this function return?"

Step = tuple[str, Callable[["Pilot[None]", OdctlApp], Awaitable[None]]]


async def take_screenshots(
    inventory: Inventory, out: Path, *, plan: Path | None, warm_up_s: float, question: str
) -> list[Path]:
    """Walk through every screen at every size. Raises TimeoutError when no host is live in time."""
    written: list[Path] = []
    for width, height in SIZES:
        clock = SystemClock()
        app = OdctlApp(FleetFeed(inventory, clock), clock=clock)
        app.animation_level = "none"
        async with app.run_test(size=(width, height), notifications=True) as pilot:
            await _until(lambda: _is_live(app), LIVE_TIMEOUT_S)  # noqa: B023 - awaited in this turn of the loop
            await asyncio.sleep(warm_up_s)
            for name, go in _steps(plan, question):
                await go(pilot, app)
                path = out / f"{name}-{width}x{height}.svg"
                picture = app.export_screenshot(title=f"odctl: {name}")
                await asyncio.to_thread(path.write_text, picture, encoding="utf-8")
                written.append(path)
    return written


def _steps(plan: Path | None, question: str) -> list[Step]:
    steps: list[Step] = [
        ("fleet", _keys("1")),
        ("devices", _keys("d")),
        ("host", _keys("d", "enter")),
        ("deployments", _keys("3")),
        ("faults", _keys("4")),
        ("models", _models),
        ("logs", _keys("6")),
        ("learning", _learning),
        ("probes", _keys("9")),
        ("links", _keys("v")),
        ("chat", _chat(question)),
        ("help", _keys("1", "question_mark")),
    ]
    if plan is not None:
        steps.append(("plan", _command(f"plan {plan}")))
    else:
        steps.append(("plan", _keys("escape", "2")))
    steps.append(("plan-editor", _editor))
    return steps


def _keys(*keys: str) -> Callable[[Pilot[None], OdctlApp], Awaitable[None]]:
    async def go(pilot: Pilot[None], app: OdctlApp) -> None:  # noqa: ARG001 - steps have one shape
        await pilot.press(*keys)
        await pilot.pause(SETTLE_S)

    return go


def _command(text: str) -> Callable[[Pilot[None], OdctlApp], Awaitable[None]]:
    async def go(pilot: Pilot[None], app: OdctlApp) -> None:
        await pilot.press("escape")
        app.run_command(text)
        await pilot.pause(SETTLE_S)

    return go


async def _editor(pilot: Pilot[None], app: OdctlApp) -> None:
    """The plan that is shown, with its first boundary moved by a layer; nothing is written."""
    await pilot.press("e")
    await _until(lambda: isinstance(app.screen, PlanEditorScreen), LIVE_TIMEOUT_S)
    await pilot.press("plus")
    await pilot.pause(SETTLE_S)


async def _models(pilot: Pilot[None], app: OdctlApp) -> None:
    await pilot.press("8")
    await _until(lambda: isinstance(app.screen, ModelsScreen) and app.screen.has_answers, LIVE_TIMEOUT_S)
    await pilot.pause(SETTLE_S)


async def _learning(pilot: Pilot[None], app: OdctlApp) -> None:
    await pilot.press("5")
    await _until(lambda: isinstance(app.screen, LearningScreen) and app.screen.report is not None, LIVE_TIMEOUT_S)
    await pilot.pause(SETTLE_S)


def _chat(question: str) -> Callable[[Pilot[None], OdctlApp], Awaitable[None]]:
    async def go(pilot: Pilot[None], app: OdctlApp) -> None:
        await pilot.press("7")
        await pilot.pause(SETTLE_S)
        screen = app.screen
        assert isinstance(screen, ChatScreen)
        if screen.deployment:
            screen.ask(question)
            await _until(lambda: not screen.conversation.is_waiting, ANSWER_TIMEOUT_S)
            await pilot.pause(SETTLE_S)

    return go


def _is_live(app: OdctlApp) -> bool:
    return app.snapshot is not None and all(host.state != "connecting" for host in app.snapshot.hosts)


async def _until(condition: Callable[[], bool], timeout_s: float) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - the app has no event for "all hosts answered"
            await asyncio.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inventory", required=True)
    parser.add_argument("--out", type=Path, default=Path("screenshots"))
    parser.add_argument("--plan", type=Path, help="A plan file to preview; without it, the running plan is shown.")
    parser.add_argument("--warm-up", type=float, default=5.0, help="Seconds of history to wait for.")
    parser.add_argument("--question", default=QUESTION)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    try:
        written = asyncio.run(
            take_screenshots(
                load_inventory(arguments.inventory),
                arguments.out,
                plan=arguments.plan,
                warm_up_s=arguments.warm_up,
                question=arguments.question,
            )
        )
    except FleetError as error:
        sys.stderr.write(render_error(error.detail))
        sys.exit(exit_code_of(error))
    sys.stdout.write("".join(f"{path}\n" for path in written))


if __name__ == "__main__":
    main()
