"""Opening what was named: a table, a host, a deployment, a plan or its file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from textual import work
from textual.screen import Screen

from agent.errors import FleetError
from odctl.tui import screens
from odctl.tui.app_plans import AppPlans
from odctl.tui.model.plans import PlanChoice, plan_choices, preview_of
from odctl.tui.plan_files import is_plan_file, read_plan_text
from odctl.tui.screens.fleet import FleetScreen
from odctl.tui.screens.frame import FrameScreen
from odctl.tui.screens.table import TableScreen

if TYPE_CHECKING:
    from odctl.tui.screens.plans import PlansScreen


class AppOpening(AppPlans):
    """The app's part of going to what has a name."""

    preview_error: str
    """Why there is no preview; empty: nothing was wrong."""

    def open_table(self, mode: str, filter_text: str) -> None:
        """A mode whose first screen is a table, filtered."""
        self.go_to(mode)
        self.call_after_refresh(self._with_screen, TableScreen, lambda screen: screen.set_filter(filter_text))

    def open_fleet(self, filter_text: str, *, shows_devices: bool) -> None:
        """The fleet's hosts or devices, filtered."""
        self.go_to("fleet")

        def show(screen: FleetScreen) -> None:
            screen.show_devices(shows_devices)
            screen.set_filter(filter_text)

        self.call_after_refresh(self._with_screen, FleetScreen, show)

    def open_host(self, name: str) -> None:
        """The host's page, above whatever asked for it."""
        if self.snapshot is not None and self.snapshot.host(name) is None:
            known = ", ".join(host.name for host in self.snapshot.hosts[:12])
            self.notify(f"no host `{name}`: {known}", severity="warning")
            return
        if isinstance(self.screen, screens.host.HostScreen):
            self.screen.host = name
            self.screen.redraw()
        else:
            self.push_screen(screens.host.HostScreen(name))

    def open_logs(self, host: str) -> None:
        """What one host says, followed."""
        self.go_to("logs")
        self.call_after_refresh(self._with_screen, screens.events.EventsScreen, lambda screen: screen.choose(host))

    def open_deployment(self, name: str) -> None:
        """The deployment's page, above the list of them."""
        known = [view.name for view in self.snapshot.deployments] if self.snapshot is not None else []
        if name not in known:
            self.notify(f"no deployment `{name}`: {', '.join(known) or 'nothing is deployed'}", severity="warning")
        elif isinstance(self.screen, screens.deployment.DeploymentScreen):
            self.screen.show_deployment(name)
        elif isinstance(self.screen, screens.deployments.DeploymentsScreen):
            self.push_screen(screens.deployment.DeploymentScreen(name))
        else:
            self.go_to("deployments")
            self.call_after_refresh(self._with_screen, FrameScreen, lambda _screen: self._open_on_top(name))

    def _open_on_top(self, name: str) -> None:
        """Of the deployments' screens, whichever of them was left open there."""
        if isinstance(self.screen, screens.deployment.DeploymentScreen | screens.deployments.DeploymentsScreen):
            self.open_deployment(name)
        else:
            self.push_screen(screens.deployment.DeploymentScreen(name))

    def open_plan_of(self, deployment: str) -> None:
        self.preview_error = ""
        self.go_to("plans")
        self.call_after_refresh(
            self._with_screen, screens.plans.PlansScreen, lambda screen: screen.choose_deployment(deployment)
        )

    def open_preview(self, choice: PlanChoice) -> None:
        """Show a plan that was found elsewhere as the previewed one."""
        self.preview, self.preview_error = choice, ""
        self.action_mode("plans")
        self.call_after_refresh(self._with_screen, screens.plans.PlansScreen, _show_first)

    def open_chat(self, deployment: str) -> None:
        self.go_to("chat")
        self.call_after_refresh(
            self._with_screen, screens.chat.ChatScreen, lambda screen: screen.choose(deployment)
        )

    def open_plan(self, name: str, *, applies: bool = False) -> None:
        """A plan by name (that of a deployment, or the previewed one), or else the file of that name.

        To apply, the previewed one comes first: it is what the running one is to become.
        """
        choices = plan_choices(self.snapshot, self.preview)
        running = next((choice for choice in choices if choice.status and choice.status.name == name), None)
        is_previewed = self.preview is not None and name in (self.preview.plan.name, self.preview.origin)
        if self.preview is not None and is_previewed and (applies or running is None):
            if is_plan_file(self.preview.origin):
                # Read again: its file may say something else by now.
                self.preview_file(self.preview.origin, applies=applies)
                return
            self.open_preview(self.preview)
            if applies:
                self.ask_to_apply(self.preview)
        elif running is not None:
            self.open_plan_of(name)
            if applies:
                self.ask_to_apply(running)
        elif is_plan_file(name):
            self.preview_file(name, applies=applies)
        else:
            known = ", ".join(choice.plan.name for choice in choices) or "none"
            said = f"no plan `{name}`, and no file of that name here; known plans: {known}"
            self.notify(said, severity="warning")

    @work(exclusive=True, group="preview")
    async def preview_file(self, path: str, *, applies: bool = False) -> None:
        """Read a plan file and show it; what is wrong with it stands on the screen instead."""
        self.preview, self.preview_error = None, ""
        try:
            text = await asyncio.to_thread(read_plan_text, path)
            self.preview = preview_of(text, path=path)
        except (OSError, UnicodeDecodeError) as error:
            self.preview_error = f"cannot read {path}: {error}"
        except FleetError as error:
            self.preview_error = str(error)
        if self.current_mode != "plans":
            self.action_mode("plans")
        self.call_after_refresh(self._with_screen, screens.plans.PlansScreen, _show_first)
        self.hold_views()
        if applies and self.preview is not None:
            self.ask_to_apply(self.preview)

    def _with_screen(self, kind: type[Screen[Any]], do: Callable[[Any], None]) -> None:
        if isinstance(self.screen, kind):
            do(self.screen)


def _show_first(screen: PlansScreen) -> None:
    screen.choose_first()
