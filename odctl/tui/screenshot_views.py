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
    await pilot.press("minus")


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


async def _ask_to_bench(pilot: Pilot[None], app: OdctlApp, scene: Scene) -> None:
    app.set_read_only(False)
    app.run_command(f"bench {scene.deployment}")
    await until(lambda: type(app.screen).__name__ == "BenchDialog" and bool(app.screen.query("#cancel")))
    app.clear_notifications()
    await pilot.pause()


async def _bench(pilot: Pilot[None], app: OdctlApp, scene: Scene) -> None:
    """A short load beside the one that runs; the picture is of its figures."""
    await _ask_to_bench(pilot, app, scene)
    await pilot.press("right", "enter")
    await until(lambda: type(app.screen).__name__ == "BenchScreen")


async def _curl(pilot: Pilot[None], app: OdctlApp, scene: Scene) -> None:
    await _ask(pilot, app, scene)
    await pilot.press("ctrl+r")


async def _learning_charts(pilot: Pilot[None], app: OdctlApp, scene: Scene) -> None:
    await _learning(pilot, app, scene)
    await pilot.pause()
    await pilot.press("c")


async def _learning_run(pilot: Pilot[None], app: OdctlApp, scene: Scene) -> None:
    """The first choice of the history, opened."""
    await _learning(pilot, app, scene)
    await pilot.pause()
    await pilot.press("v")
    await pilot.pause()
    await pilot.press("enter")


VIEWS: tuple[View, ...] = (
    View(name="fleet", screen="FleetScreen", command="fleet", themes=(LIGHT, COLOUR_BLIND)),
    View(
        name="fleet-map", screen="FleetScreen", command="fleet", keys=("v",), leave=("v",), themes=(COLOUR_BLIND,)
    ),
    View(name="devices", screen="FleetScreen", command="devices", shows=r"▸ Devices"),
    View(name="host", screen="HostScreen", command="host {host}"),
    View(name="deployments", screen="DeploymentsScreen", command="deployments", shows=r"tok/s", themes=(LIGHT,)),
    View(
        name="deployment",
        screen="DeploymentScreen",
        command="deployments {deployment}",
        shows=r"tok/s",
        themes=(LIGHT,),
    ),
    View(name="bench-question", screen="BenchDialog", go=_ask_to_bench),
    View(name="bench", screen="BenchScreen", go=_bench),
    View(name="faults", screen="FaultsScreen", command="faults"),
    View(name="fault-story", screen="StoryScreen", command="faults", keys=("enter",)),
    View(name="models", screen="ModelsScreen", command="models", go=_models),
    View(name="logs", screen="EventsScreen", command="logs"),
    View(name="learning", screen="LearningScreen", command="learning", go=_learning),
    View(name="learning-charts", screen="LearningChartsScreen", command="learning", go=_learning_charts),
    View(name="learning-run", screen="RunScreen", command="learning", go=_learning_run),
    View(name="probes", screen="ProbesScreen", command="probes"),
    View(name="links", screen="ProbesScreen", command="probes", keys=("v",)),
    View(name="chat", screen="ChatScreen", command="chat {deployment}", go=_ask, shows=r"tok/s"),
    View(name="chat-curl", screen="RawTextScreen", command="chat {deployment}", go=_curl),
    View(name="chat-system", screen="OneLineScreen", command="chat {deployment}", keys=("ctrl+s",)),
    View(name="help", screen="HelpScreen", command="help"),
    View(name="jump", screen="JumpScreen", keys=("ctrl+o",)),
    View(name="plan", screen="PlansScreen", command="plan {plan}", shows=r"▸ Plans ▸ \w+", themes=(LIGHT,)),
    View(name="new-plan", screen="NewPlanScreen", command="new {model} objective=throughput"),
    View(name="compare", screen="CompareScreen", command="compare {plan} {other_plan}", themes=(LIGHT,)),
    View(name="plan-editor", screen="PlanEditorScreen", command="plan {plan}", go=_edit),
    View(name="file-name", screen="FileNameScreen", command="plan {plan}", go=_name_file),
    View(name="apply-question", screen="ConfirmScreen", go=_ask_to_apply),
    View(name="apply", screen="ApplyScreen", go=_apply, shows=r"● serving"),
    View(name="plan-history", screen="PlanHistoryScreen", command="history {deployment}"),
)

WITHOUT_PICTURE: dict[str, str] = {
    "EndProcessScreen": "it asks about a foreign process on a GPU, and a lab has none",
}
"""Screens that a lab cannot come to, and why."""

REPLAY_VIEWS: tuple[View, ...] = (View(name="replay", screen="FleetScreen", command="fleet", themes=(LIGHT,)),)
"""Of a recording of the lab."""
