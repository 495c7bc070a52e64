"""The terminal UI: modes, commands, and the latest snapshot. Screens draw; this decides which one and when."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from textual.app import SystemCommand
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.screen import Screen

from agent.errors import FleetError
from odctl.fleet import FleetSnapshot, WriteGuard
from odctl.fleet.clock import Clock, SystemClock
from odctl.inventory import load_inventory
from odctl.result import exit_code_of, render_error
from odctl.tui import screens
from odctl.tui.app_looks import check_theme, user_keymap
from odctl.tui.app_making import AppMaking
from odctl.tui.app_web import leave_with_parent
from odctl.tui.applying import Applier, FleetApplier
from odctl.tui.editing import BasisReader, FleetBasisReader
from odctl.tui.feed import Feed, FleetFeed
from odctl.tui.hosting import FleetHostOperator, HostOperator
from odctl.tui.model.commands import COMMANDS, Call, CommandError, command_named, parse_command, words_of
from odctl.tui.model.fleet_columns import prepare_columns
from odctl.tui.model.frame import MODES as TABS
from odctl.tui.model.keymap import Keymap
from odctl.tui.model.plans import PlanChoice
from odctl.tui.operating import FleetOperator, Operator
from odctl.tui.options import UiOptions
from odctl.tui.planning import FleetPlanner, Planner
from odctl.tui.probing import FleetProber, Prober
from odctl.tui.responsive import answer_keys_first, collect_young
from odctl.tui.screens.fleet import FleetScreen
from odctl.tui.screens.frame import FrameScreen
from odctl.tui.screens.table import TableScreen

if TYPE_CHECKING:
    from odctl.recording import Recording


class SnapshotTaken(Message):
    """The fleet a moment ago, from the feed's thread. A newer one replaces an older that is still queued."""

    def __init__(self, snapshot: FleetSnapshot) -> None:
        super().__init__()
        self.snapshot = snapshot

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, SnapshotTaken)


def _later(screen: Callable[[], type[Screen[Any]]]) -> Callable[[], Screen[Any]]:
    """A view's first screen, imported when it is first opened."""

    def make() -> Screen[Any]:
        return screen()()

    return make


class OdctlApp(AppMaking):
    TITLE = "odctl"
    CSS_PATH = "odctl.tcss"
    ENABLE_COMMAND_PALETTE = True
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-mid"), (130, "-wide")]  # noqa: RUF012 - as Textual declares it
    VERTICAL_BREAKPOINTS = [(0, "-short"), (30, "-tall")]  # noqa: RUF012
    MODES: ClassVar[dict[str, str | Callable[[], Screen[Any]]]] = {
        "fleet": FleetScreen,
        "plans": _later(lambda: screens.plans.PlansScreen),
        "deployments": _later(lambda: screens.deployments.DeploymentsScreen),
        "faults": _later(lambda: screens.faults.FaultsScreen),
        "learning": _later(lambda: screens.learning.LearningScreen),
        "logs": _later(lambda: screens.events.EventsScreen),
        "chat": _later(lambda: screens.chat.ChatScreen),
        "models": _later(lambda: screens.models.ModelsScreen),
        "probes": _later(lambda: screens.probes.ProbesScreen),
    }
    DEFAULT_MODE = "fleet"
    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            Binding(str(number), f"mode('{mode}')", title, id=f"mode.{mode}", show=False)
            for number, (mode, title) in enumerate(TABS, start=1)
        ),
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
        planner: Planner | None = None,
        options: UiOptions | None = None,
        keymap: Keymap | None = None,
        host_operator: HostOperator | None = None,
        recording: Recording | None = None,
    ) -> None:
        super().__init__(feed, options=options or UiOptions(), keymap=keymap or Keymap())
        self.clock = clock
        self.set_up_time(recording)
        self.preview: PlanChoice | None = None
        self.preview_error = ""
        self._applier: Applier = applier or FleetApplier()
        self._basis_reader: BasisReader = basis_reader or FleetBasisReader()
        self.prober: Prober = prober or FleetProber()
        self.planner: Planner = planner or FleetPlanner()
        self.host_operator: HostOperator = host_operator or FleetHostOperator()
        self.operator: Operator = FleetOperator(lambda: self.is_read_only)
        self._failure: BaseException | None = None

    def on_mount(self) -> None:
        self.use_looks()
        if self.options.is_unlocked:
            self.set_read_only(False)
        leave_with_parent(self)
        if self.time.recording is not None:
            self.show_moment()
        self.feed.start(self._take, lambda failure: self.call_from_thread(self._fail, failure))

    async def on_unmount(self) -> None:
        await self.feed.stop()
        self.time.stop_recording()

    def _take(self, snapshot: FleetSnapshot) -> None:
        """From the feed's thread: the screen is told by a message."""
        self.time.write(snapshot)
        if not self.time.is_past:
            prepare_columns(snapshot)
        self.post_message(SnapshotTaken(snapshot))

    def on_snapshot_taken(self, message: SnapshotTaken) -> None:
        self.take_live(message.snapshot)
        self.call_after_refresh(collect_young)

    def _fail(self, failure: BaseException) -> None:
        self._failure = failure
        self.exit(return_code=1, message=f"odctl: the fleet's thread broke: {failure!r}")

    async def action_quit(self) -> None:
        """Leave, but ask first where something would be lost."""
        opened = [screen for stack in self._screen_stacks.values() for screen in stack]
        questions = [screen.leave_question("Quit") for screen in opened if isinstance(screen, FrameScreen)]
        question = next((found for found in questions if found is not None), None)
        if question is None:
            self.exit()
        else:
            self.push_screen(question, lambda is_sure: self.exit() if is_sure else None)

    # --- commands -----------------------------------------------------------------------------------------

    def run_command(self, text: str) -> None:
        """What was typed after `:`."""
        try:
            self.perform(parse_command(text))
        except CommandError as error:
            self.notify(str(error), severity="warning")
        self.hold_views()

    def perform(self, call: Call) -> None:
        argument = call.argument
        command = command_named(call.command)
        if command is not None and command.changes and not self.may_change():
            return
        match call.command:
            case "fleet" | "devices":
                self.open_fleet(argument, shows_devices=call.command == "devices")
            case "host":
                self.open_host(argument)
            case "plan":
                self.open_plan(argument)
            case "apply" if argument:
                self.open_plan(argument, applies=True)
            case "apply":
                self._apply_shown()
            case "new":
                model, _, words = argument.partition(" ")
                self.new_plan(model, words=words.strip())
            case "compare" if len(words_of(argument)) > 1:
                self.compare_files(words_of(argument))
            case "compare":
                self._compare_shown()
            case "history":
                self.open_history(argument)
            case "progress":
                self.show_apply(argument)
            case "chat" if argument:
                self.open_chat(argument)
            case "logs" if argument:
                self.open_logs(argument)
            case "plans" | "chat" | "logs":
                self.go_to(call.command)
            case "deployments" if argument:
                self.open_deployment(argument)
            case "bench":
                screens.bench_dialog.ask_to_bench(self, argument)
            case "deployments" | "faults" | "models" | "learning" | "probes":
                self.open_table(call.command, argument)
            case "sort":
                self._sort(argument)
            case "unlock" | "lock":
                self.set_read_only(call.command == "lock")
            case "theme":
                self.set_theme(argument)
            case "help":
                self.action_help()
            case "edit":
                self._edit_shown()
            case "set":
                self._set(argument)
            case "pause" | "live" | "time" | "record":
                self.perform_time(call.command, argument)
            case "quit":
                self.call_later(self.action_quit)
            case _:
                raise AssertionError(f"a command without an action: {call.command}")

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:  # noqa: ARG002 - Textual's
        """The palette offers the same commands; those that need more words open the prompt with them."""
        for command in COMMANDS:
            if command.changes and self.is_read_only:
                continue
            title = f":{command.name} {command.argument}".rstrip()
            yield SystemCommand(title, command.help, self._from_palette(command.name, bool(command.argument)))
        yield SystemCommand("Screenshot", "an SVG of this screen", self._save_screenshot)
        yield SystemCommand("Theme", "choose colours", lambda: self.set_theme(""))

    def _save_screenshot(self) -> None:
        self.deliver_screenshot()

    def _from_palette(self, name: str, needs_more: bool) -> Callable[[], None]:
        def do() -> None:
            if needs_more and isinstance(self.screen, FrameScreen):
                self.screen.open_prompt(f"{name} ")
            else:
                self.run_command(name)

        return do

    def _apply_shown(self) -> None:
        if isinstance(self.screen, screens.plans.PlansScreen):
            self.screen.action_apply()
        else:
            self.notify("show a plan first: 2 Plans, or :plan FILE", severity="warning")

    def _edit_shown(self) -> None:
        if isinstance(self.screen, screens.plans.PlansScreen):
            self.screen.action_edit()
        else:
            self.notify("show a plan first: 2 Plans, or :plan FILE", severity="warning")

    def _compare_shown(self) -> None:
        if isinstance(self.screen, screens.plans.PlansScreen):
            self.screen.action_compare()
        else:
            self.notify("say which: :compare A B, files or names of what runs", severity="warning")

    def _set(self, text: str) -> None:
        if isinstance(self.screen, screens.plan_editor.PlanEditorScreen):
            self.screen.set_serving(text)
        else:
            self.notify("open a plan's editor first: 2 Plans, then e", severity="warning")

    def _sort(self, column: str) -> None:
        if isinstance(self.screen, TableScreen):
            self.screen.set_sort(column)
        else:
            self.notify("there is no table here to sort", severity="warning")


def run_app(inventory_path: str, options: UiOptions | None = None) -> None:
    """Open the UI over an inventory, and leave with an exit code. A bad inventory is told before it opens."""
    try:
        inventory = load_inventory(inventory_path)
        check_theme(options.theme if options is not None else "")
    except FleetError as error:
        sys.stderr.write(render_error(error.detail))
        sys.exit(exit_code_of(error))
    clock = SystemClock()
    guard = WriteGuard(never=options.lock_reason if options else "")
    app = OdctlApp(
        FleetFeed(inventory, clock, guard=guard),
        clock=clock,
        options=options,
        keymap=user_keymap(),
        host_operator=FleetHostOperator(inventory),
        planner=FleetPlanner(inventory),
    )
    answer_keys_first()
    app.run()
    sys.exit(app.return_code or 0)
