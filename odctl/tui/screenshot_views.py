"""The views that pictures are taken of: a line each, in the order in which they are taken.

What changes the cluster (an apply) comes last but for what is to be seen of it afterwards.
"""

from __future__ import annotations

from textual.pilot import Pilot

from odctl.tui.app import OdctlApp
from odctl.tui.screens.chat import ChatScreen
from odctl.tui.screens.learning import LearningScreen
from odctl.tui.screens.models import ModelsScreen
from odctl.tui.screenshots import Scene, View, until

LIGHT, COLOUR_BLIND = "paper", "colour-blind"
ANSWER_TIMEOUT_S = 60.0
APPLY_TIMEOUT_S = 180.0


async def _models(pilot: Pilot[None], app: OdctlApp, scene: Scene) -> None:  # noqa: ARG001 - views have one shape
    await until(lambda: isinstance(app.screen, ModelsScreen) and app.screen.has_answers)


async def _learning(pilot: Pilot[None], app: OdctlApp, scene: Scene) -> None:  # noqa: ARG001
    await until(lambda: isinstance(app.screen, LearningScreen) and app.screen.report is not None)


async def _ask(pilot: Pilot[None], app: OdctlApp, scene: Scene) -> None:  # noqa: ARG001
    await until(lambda: isinstance(app.screen, ChatScreen) and bool(app.screen.deployment))
    screen = app.screen
    assert isinstance(screen, ChatScreen)
    screen.ask(scene.question)
    await until(lambda: not screen.conversation.is_waiting, ANSWER_TIMEOUT_S)


async def _edit(pilot: Pilot[None], app: OdctlApp, scene: Scene) -> None:  # noqa: ARG001
    """The plan that is shown, with its first boundary moved by a layer; nothing is written."""
    await until(lambda: app.preview is not None)
    await pilot.pause()
    await pilot.press("e")
    await until(lambda: type(app.screen).__name__ == "PlanEditorScreen")
    await pilot.press("plus")


async def _name_file(pilot: Pilot[None], app: OdctlApp, scene: Scene) -> None:
    await _edit(pilot, app, scene)
    await pilot.pause(1.0)
    await pilot.press("w")


async def _ask_to_apply(pilot: Pilot[None], app: OdctlApp, scene: Scene) -> None:
    app.set_read_only(False)
    app.run_command(f"apply {scene.other_plan}")
    # On top of the stack it is before its buttons are there.
    await until(lambda: type(app.screen).__name__ == "ConfirmScreen" and bool(app.screen.query("#confirm")))
    app.clear_notifications()
    await pilot.pause()


async def _apply(pilot: Pilot[None], app: OdctlApp, scene: Scene) -> None:
    """To its end: the picture has every phase, and what was predicted beside what was measured."""
    await _ask_to_apply(pilot, app, scene)
    if name := app.screen.query("#typed-name"):
        # It touches much of the fleet: the name is the yes.
        name.first().focus()
        await pilot.press(*scene.deployment, "enter")
    else:
        await pilot.press("tab", "enter")
    await until(lambda: type(app.screen).__name__ == "ApplyScreen")
    await until(lambda: app.screen.progress.is_over, APPLY_TIMEOUT_S)  # type: ignore[attr-defined]
    app.set_read_only(True)


VIEWS: tuple[View, ...] = (
    View(name="fleet", screen="FleetScreen", command="fleet", themes=(LIGHT, COLOUR_BLIND)),
    View(name="devices", screen="FleetScreen", command="devices", shows=r"▸ Devices"),
    View(name="host", screen="HostScreen", command="host {host}"),
    View(name="deployments", screen="DeploymentsScreen", command="deployments", shows=r"tok/s", themes=(LIGHT,)),
    View(name="faults", screen="FaultsScreen", command="faults"),
    View(name="models", screen="ModelsScreen", command="models", go=_models),
    View(name="logs", screen="EventsScreen", command="logs"),
    View(name="learning", screen="LearningScreen", command="learning", go=_learning),
    View(name="probes", screen="ProbesScreen", command="probes"),
    View(name="links", screen="ProbesScreen", command="probes", keys=("v",)),
    View(name="chat", screen="ChatScreen", command="chat {deployment}", go=_ask, shows=r"tok/s"),
    View(name="help", screen="HelpScreen", command="help"),
    View(name="jump", screen="JumpScreen", keys=("ctrl+o",)),
    View(name="plan", screen="PlansScreen", command="plan {plan}", shows=r"▸ Plans ▸ \w+", themes=(LIGHT,)),
    View(name="plan-editor", screen="PlanEditorScreen", command="plan {plan}", go=_edit),
    View(name="file-name", screen="FileNameScreen", command="plan {plan}", go=_name_file),
    View(name="apply-question", screen="ConfirmScreen", go=_ask_to_apply),
    View(name="apply", screen="ApplyScreen", go=_apply, shows=r"● serving"),
)

WITHOUT_PICTURE: dict[str, str] = {}
"""Screens that a lab cannot come to, and why."""

SIMULATED_VIEWS: tuple[View, ...] = (
    View(name="fleet-1024", screen="FleetScreen", command="fleet", shows=r"1,?024 hosts", themes=(LIGHT,)),
)
"""Of a simulated fleet, and labelled so."""
