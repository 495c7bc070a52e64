"""The terminal UI: modes, commands, and the latest snapshot. Screens draw; this decides which one and when."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

from textual import work
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.screen import Screen
from textual.timer import Timer

from agent.errors import FleetError
from agent.planner.file import plan_hash
from agent.planner.plan import Plan
from odctl.apply import ApplyPreview
from odctl.fleet import FleetSnapshot
from odctl.fleet.clock import Clock, SystemClock
from odctl.inventory import load_inventory
from odctl.result import exit_code_of, render_error
from odctl.tui.applying import Applier, FleetApplier
from odctl.tui.editing import BasisReader, FleetBasisReader
from odctl.tui.feed import Feed, FleetFeed
from odctl.tui.model.commands import COMMANDS, Call, CommandError, parse_command
from odctl.tui.model.frame import MODES as TABS
from odctl.tui.model.plan_editor import open_editor
from odctl.tui.model.plans import PlanChoice, preview_of
from odctl.tui.probing import FleetProber, Prober
from odctl.tui.screens.apply import ApplyScreen
from odctl.tui.screens.chat import ChatScreen
from odctl.tui.screens.confirm import ConfirmScreen
from odctl.tui.screens.deployments import DeploymentsScreen
from odctl.tui.screens.events import EventsScreen
from odctl.tui.screens.faults import FaultsScreen
from odctl.tui.screens.fleet import FleetScreen
from odctl.tui.screens.frame import FrameScreen
from odctl.tui.screens.help import HelpScreen
from odctl.tui.screens.host import HostScreen
from odctl.tui.screens.learning import LearningScreen
from odctl.tui.screens.models import ModelsScreen
from odctl.tui.screens.plan_editor import PlanEditorScreen
from odctl.tui.screens.plans import PlansScreen
from odctl.tui.screens.probes import ProbesScreen
from odctl.tui.screens.table import TableScreen

UNLOCKED_S = 600.0
THEME = "textual-dark"
NO_COLOR_THEME = "ansi-dark"


class SnapshotTaken(Message):
    """The fleet a moment ago, from the feed's thread. A newer one replaces an older that is still queued."""

    def __init__(self, snapshot: FleetSnapshot) -> None:
        super().__init__()
        self.snapshot = snapshot

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, SnapshotTaken)


class OdctlApp(App[None]):
    TITLE = "odctl"
    CSS_PATH = "odctl.tcss"
    ENABLE_COMMAND_PALETTE = True
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-mid"), (130, "-wide")]  # noqa: RUF012 - as Textual declares it
    VERTICAL_BREAKPOINTS = [(0, "-short"), (30, "-tall")]  # noqa: RUF012
    MODES: ClassVar[dict[str, str | Callable[[], Screen[Any]]]] = {
        "fleet": FleetScreen,
        "plans": PlansScreen,
        "deployments": DeploymentsScreen,
        "faults": FaultsScreen,
        "chat": ChatScreen,
        "models": ModelsScreen,
        "events": EventsScreen,
        "learning": LearningScreen,
        "probes": ProbesScreen,
    }
    DEFAULT_MODE = "fleet"
    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            Binding(str(number), f"mode('{mode}')", title, id=f"mode.{mode}", show=False)
            for number, (mode, title) in enumerate(TABS, start=1)
        ),
        Binding("minus", "last_mode", "Last view", key_display="-", id="app.last_view", show=False),
        Binding("question_mark", "help", "Help", key_display="?", id="app.help"),
        Binding("ctrl+x", "toggle_lock", "Unlock", id="app.unlock", show=False),
        Binding("q", "quit", "Quit", id="app.quit"),
    ]

    def __init__(
        self,
        feed: Feed,
        *,
        clock: Clock,
        applier: Applier | None = None,
        basis_reader: BasisReader | None = None,
        prober: Prober | None = None,
    ) -> None:
        # Only native ANSI colours can be dropped: Textual greys others, and then default text turns black on black.
        has_no_color = os.environ.get("NO_COLOR") is not None
        super().__init__(ansi_color=True if has_no_color else None)
        self.feed = feed
        self.clock = clock
        self.snapshot: FleetSnapshot | None = None
        self.preview: PlanChoice | None = None
        self.preview_error = ""
        self.is_read_only = True
        self._applier: Applier = applier or FleetApplier()
        self._basis_reader: BasisReader = basis_reader or FleetBasisReader()
        self.prober: Prober = prober or FleetProber()
        self._relock: Timer | None = None
        self._last_mode = ""
        self._failure: BaseException | None = None
        self.theme = NO_COLOR_THEME if has_no_color else THEME

    def on_mount(self) -> None:
        self.feed.start(self._take, lambda failure: self.call_from_thread(self._fail, failure))

    async def on_unmount(self) -> None:
        await self.feed.stop()

    def _take(self, snapshot: FleetSnapshot) -> None:
        """From the feed's thread: posting a message is all that may be done there."""
        self.post_message(SnapshotTaken(snapshot))

    def on_snapshot_taken(self, message: SnapshotTaken) -> None:
        self.snapshot = message.snapshot
        self.redraw()

    def redraw(self) -> None:
        """Draw the current screen anew; the others draw when they come back."""
        if isinstance(self.screen, FrameScreen):
            self.screen.redraw()

    def _fail(self, failure: BaseException) -> None:
        self._failure = failure
        self.exit(return_code=1, message=f"odctl: the fleet's thread broke: {failure!r}")

    # --- moving about -------------------------------------------------------------------------------------

    def action_mode(self, mode: str) -> None:
        """Go to a view; its own number again leads back to its first screen."""
        if mode == self.current_mode:
            if isinstance(self.screen, FrameScreen) and not self.screen.may_leave():
                return
            while len(self.screen_stack) > 1:
                self.pop_screen()
            return
        self._last_mode = self.current_mode
        self.switch_mode(mode)

    def action_last_mode(self) -> None:
        if self._last_mode:
            self.action_mode(self._last_mode)

    async def action_quit(self) -> None:
        """Leave, but ask first where edits would be lost."""
        unsaved = [
            screen
            for stack in self._screen_stacks.values()
            for screen in stack
            if isinstance(screen, PlanEditorScreen) and screen.is_unsaved
        ]
        if not unsaved:
            self.exit()
            return
        self.push_screen(unsaved[0].question("Quit"), lambda is_sure: self.exit() if is_sure else None)

    def action_help(self) -> None:
        self.push_screen(HelpScreen(dict(self.screen.active_bindings)))

    def open_host(self, name: str) -> None:
        """The host's page, above whatever asked for it."""
        if self.snapshot is not None and self.snapshot.host(name) is None:
            known = ", ".join(host.name for host in self.snapshot.hosts[:12])
            self.notify(f"no host `{name}`: {known}", severity="warning")
            return
        if isinstance(self.screen, HostScreen):
            self.screen.host = name
            self.screen.redraw()
        else:
            self.push_screen(HostScreen(name))

    def open_plan_of(self, deployment: str) -> None:
        self.preview_error = ""
        self.action_mode("plans")
        self.call_after_refresh(self._with_screen, PlansScreen, lambda screen: screen.choose_deployment(deployment))

    def open_deployment(self, name: str) -> None:
        self.action_mode("deployments")
        self.call_after_refresh(self._with_screen, DeploymentsScreen, lambda screen: screen.table.move_to(name))

    def open_preview(self, choice: PlanChoice) -> None:
        """Show a plan that was found elsewhere as the previewed one."""
        self.preview, self.preview_error = choice, ""
        self.action_mode("plans")
        self.call_after_refresh(self._with_screen, PlansScreen, _show_first)

    def open_chat(self, deployment: str) -> None:
        self.action_mode("chat")
        self.call_after_refresh(self._with_screen, ChatScreen, lambda screen: screen.choose(deployment))

    def _with_screen(self, kind: type[Screen[Any]], do: Callable[[Any], None]) -> None:
        if isinstance(self.screen, kind):
            do(self.screen)

    # --- plans --------------------------------------------------------------------------------------------

    @work(exclusive=True, group="preview")
    async def preview_file(self, path: str, *, applies: bool = False) -> None:
        """Read a plan file and show it; what is wrong with it stands on the screen instead."""
        self.preview, self.preview_error = None, ""
        try:
            text = await asyncio.to_thread(_read_text, path)
            self.preview = preview_of(text, path=path)
        except (OSError, UnicodeDecodeError) as error:
            self.preview_error = f"cannot read {path}: {error}"
        except FleetError as error:
            self.preview_error = str(error)
        if self.current_mode != "plans":
            self.action_mode("plans")
        self.call_after_refresh(self._with_screen, PlansScreen, _show_first)
        if applies and self.preview is not None:
            self.ask_to_apply(self.preview)

    def edit_plan(self, choice: PlanChoice) -> None:
        """Open the editor over a plan, once the fleet has said what it is to be computed over."""
        self.notify(f"asking the fleet about {choice.plan.model.name} …", timeout=2)
        self._open_editor(choice)

    @work(exclusive=True, group="editor")
    async def _open_editor(self, choice: PlanChoice) -> None:
        try:
            found = await self._basis_reader.read(self.feed, choice.plan)
            state = await asyncio.to_thread(open_editor, choice.origin, choice.plan, found.basis)
        except FleetError as error:
            self.notify(str(error), title=f"{choice.plan.name} cannot be edited", severity="error", timeout=12)
            return
        if isinstance(self.screen, PlansScreen):
            self.clear_notifications()
            self.push_screen(PlanEditorScreen(state, found.basis))
            for host, reason in sorted(found.missing.items()):
                self.notify(f"{host} does not answer: {reason.message}", severity="warning")

    def show_written(self, plan: Plan, *, path: str) -> None:
        """A plan that was written is the one that is previewed, so that it can be applied."""
        self.preview_error = ""
        self.preview = PlanChoice(origin=path, plan=plan, plan_hash=plan_hash(plan))

    def ask_to_apply(self, choice: PlanChoice) -> None:
        """Hold the plan against the fleet, ask, and apply."""
        if self.is_read_only:
            self.notify("this session is read-only: ^x (or :unlock) allows changes for ten minutes", title="RO")
            return
        self.notify(f"holding {choice.plan.name} against the fleet …", timeout=2)
        self._prepare_apply(choice)

    @work(exclusive=True, group="prepare")
    async def _prepare_apply(self, choice: PlanChoice) -> None:
        try:
            preview = await self._applier.preview(self.feed, choice.plan)
        except FleetError as error:
            self.notify(str(error), title=f"{choice.plan.name} cannot be applied", severity="error", timeout=12)
            return
        if preview.is_noop:
            self.notify(f"generation {preview.running_generation} serves this very plan", title="no changes")
            return
        hosts = f"{len(preview.plan.hosts)} hosts" if len(preview.plan.hosts) != 1 else "1 host"
        self.clear_notifications()
        title = f"Apply {preview.plan.name} to {hosts}?"
        self.push_screen(
            ConfirmScreen(title=title, lines=preview.lines, verb="Apply"),
            lambda is_sure: self._apply(preview) if is_sure else None,
        )

    def _apply(self, preview: ApplyPreview) -> None:
        if self.current_mode != "plans":
            self.action_mode("plans")
        self.push_screen(ApplyScreen(preview, self._applier))

    # --- read-only ----------------------------------------------------------------------------------------

    def action_toggle_lock(self) -> None:
        self.set_read_only(not self.is_read_only)

    def set_read_only(self, is_read_only: bool) -> None:
        """Unlocking lasts ten minutes."""
        if self._relock is not None:
            self._relock.stop()
            self._relock = None
        self.is_read_only = is_read_only
        if not is_read_only:
            self._relock = self.set_timer(UNLOCKED_S, lambda: self.set_read_only(True))
            self.notify("changes are allowed for ten minutes; ^x locks again", title="RW")
        self.redraw()

    # --- commands -----------------------------------------------------------------------------------------

    def run_command(self, text: str) -> None:
        """What was typed after `:`."""
        try:
            self.perform(parse_command(text))
        except CommandError as error:
            self.notify(str(error), severity="warning")

    def perform(self, call: Call) -> None:
        argument = call.argument
        match call.command:
            case "fleet" | "devices":
                self._open_fleet(argument, shows_devices=call.command == "devices")
            case "host":
                self.open_host(argument)
            case "plan":
                self.preview_file(argument)
            case "apply" if argument:
                self.preview_file(argument, applies=True)
            case "apply":
                self._apply_shown()
            case "chat" if argument:
                self.open_chat(argument)
            case "events" if argument:
                self.action_mode("events")
                self.call_after_refresh(self._with_screen, EventsScreen, lambda screen: screen.choose(argument))
            case "plans" | "deployments" | "chat" | "faults" | "models" | "events" | "learning" | "probes":
                self.action_mode(call.command)
            case "sort":
                self._sort(argument)
            case "unlock" | "lock":
                self.set_read_only(call.command == "lock")
            case "theme":
                self._set_theme(argument)
            case "help":
                self.action_help()
            case "edit":
                self._edit_shown()
            case "set":
                self._set(argument)
            case "quit":
                self.call_later(self.action_quit)
            case _:
                raise AssertionError(f"a command without an action: {call.command}")

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:  # noqa: ARG002 - Textual's
        """The palette offers the same commands; those that need more words open the prompt with them."""
        for command in COMMANDS:
            title = f":{command.name} {command.argument}".rstrip()
            yield SystemCommand(title, command.help, self._from_palette(command.name, bool(command.argument)))
        yield SystemCommand("Screenshot", "an SVG of this screen", self._save_screenshot)
        yield SystemCommand("Theme", "choose colours", self.action_change_theme)

    def _save_screenshot(self) -> None:
        self.deliver_screenshot()

    def _from_palette(self, name: str, needs_more: bool) -> Callable[[], None]:
        def do() -> None:
            if needs_more and isinstance(self.screen, FrameScreen):
                self.screen.open_prompt(f"{name} ")
            else:
                self.run_command(name)

        return do

    def _open_fleet(self, filter_text: str, *, shows_devices: bool) -> None:
        self.action_mode("fleet")

        def show(screen: FleetScreen) -> None:
            screen.show_devices(shows_devices)
            screen.set_filter(filter_text)

        self.call_after_refresh(self._with_screen, FleetScreen, show)

    def _apply_shown(self) -> None:
        if isinstance(self.screen, PlansScreen):
            self.screen.action_apply()
        else:
            self.notify("show a plan first: 2 Plans, or :plan FILE", severity="warning")

    def _edit_shown(self) -> None:
        if isinstance(self.screen, PlansScreen):
            self.screen.action_edit()
        else:
            self.notify("show a plan first: 2 Plans, or :plan FILE", severity="warning")

    def _set(self, text: str) -> None:
        if isinstance(self.screen, PlanEditorScreen):
            self.screen.set_serving(text)
        else:
            self.notify("open a plan's editor first: 2 Plans, then e", severity="warning")

    def _sort(self, column: str) -> None:
        if isinstance(self.screen, TableScreen):
            self.screen.set_sort(column)
        else:
            self.notify("there is no table here to sort", severity="warning")

    def _set_theme(self, name: str) -> None:
        if not name:
            self.action_change_theme()
        elif name in self.available_themes:
            self.theme = name
        else:
            self.notify(f"no theme `{name}`: {', '.join(sorted(self.available_themes))}", severity="warning")


def _read_text(path: str) -> str:
    return Path(path).expanduser().read_text(encoding="utf-8")


def _show_first(screen: PlansScreen) -> None:
    screen.chosen = 0
    screen.redraw()


def run_app(inventory_path: str) -> None:
    """Open the UI over an inventory, and leave with an exit code. A bad inventory is told before it opens."""
    try:
        inventory = load_inventory(inventory_path)
    except FleetError as error:
        sys.stderr.write(render_error(error.detail))
        sys.exit(exit_code_of(error))
    clock = SystemClock()
    app = OdctlApp(FleetFeed(inventory, clock), clock=clock)
    app.run()
    sys.exit(app.return_code or 0)
