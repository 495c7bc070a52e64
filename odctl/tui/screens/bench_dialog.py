"""The question before a benchmark: which load, on whom. Cancel has the focus; escape is no."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Button, Input, Static

from agent.errors import FleetError
from agent.planner.plan import Serving
from agent.wire.agent import DeploymentStatus
from odctl.bench.deployment import default_load, parse_load
from odctl.bench.report import load_line
from odctl.bench.run import Settings
from odctl.tui.model.plans import deployed_plan
from odctl.tui.screens.bench import BenchScreen
from odctl.tui.screens.dialog import Dialog

if TYPE_CHECKING:
    from odctl.tui.app import OdctlApp


class BenchDialog(Dialog[Settings | None]):
    """The load as it was confirmed; None when it was given up."""

    DEFAULT_CSS = """
    BenchDialog #dialog-text { height: auto; max-height: 60%; }
    BenchDialog Static { width: 1fr; height: auto; }
    BenchDialog #load { border: none; height: 1; margin: 1 0 0 0; padding: 0 1; background: $panel; }
    BenchDialog #load:focus { border: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "give_up", "Cancel", id="bench_dialog.cancel"),
        Binding("left,right", "other_button", "Other button", id="bench_dialog.other", show=False),
        Binding("up,down,tab", "edit", "The load", id="bench_dialog.edit", show=False),
    ]

    def __init__(self, status: DeploymentStatus, serving: Serving) -> None:
        super().__init__()
        self.status = status
        self._serving = serving
        self.settings: Settings | None = None
        """What is typed, when it is a load."""

    def compose(self) -> ComposeResult:
        backend = self.status.backend
        busy = (
            f"{backend.running} running and {backend.queued} queued now" if backend is not None else "load unknown"
        )
        with Vertical(id="dialog"):
            yield Static(f"Put load on {self.status.name}?", id="dialog-title", markup=False)
            yield Input(default_load(self._serving), id="load", compact=True, select_on_focus=False)
            yield Static("", id="load-words", markup=False)
            yield Static(
                f"{self.status.name} has {busy}. These requests stand in the same queue as everybody's, "
                "and slow the others' answers down. ↑ edits the load; the measurement can be stopped.",
                id="dialog-text",
                markup=False,
            )
            with Horizontal(id="dialog-buttons"):
                yield Button("Cancel", id="cancel", compact=True)
                yield Button("Measure", id="confirm", variant="warning", compact=True)

    def on_mount(self) -> None:
        self.query_one("#cancel", Button).focus()
        self._judge(self.query_one("#load", Input).value)

    def on_input_changed(self, event: Input.Changed) -> None:
        self._judge(event.value)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Enter in the line only leaves it: a load is begun by its button."""
        event.stop()
        self.query_one("#confirm" if self.settings is not None else "#cancel", Button).focus()

    def _judge(self, text: str) -> None:
        words = self.query_one("#load-words", Static)
        try:
            self.settings = parse_load(text, self._serving)
        except FleetError as error:
            self.settings = None
            words.update(f"▲ {error}")
        else:
            warm_up = f", after {self.settings.warm_up} to warm up" if self.settings.warm_up else ""
            load = self.settings.load
            words.update(f"{load.num_requests} requests, {load_line(load)}{warm_up}")
        self.query_one("#confirm", Button).disabled = self.settings is None

    def on_button_pressed(self, event: Button.Pressed) -> None:
        self.dismiss(self.settings if event.button.id == "confirm" else None)

    def action_give_up(self) -> None:
        self.dismiss(None)

    def action_other_button(self) -> None:
        self.focus_next(Button)

    def action_edit(self) -> None:
        if isinstance(self.focused, Input):
            self.query_one("#cancel", Button).focus()
        else:
            self.query_one("#load", Input).focus()


def ask_to_bench(app: OdctlApp, name: str) -> None:
    """Ask for a load, then put it on the deployment. What is in the way is said."""
    snapshot = app.snapshot
    views = snapshot.deployments if snapshot is not None else ()
    view = next((each for each in views if each.name == name), views[0] if len(views) == 1 and not name else None)
    if view is None:
        known = ", ".join(each.name for each in views) or "nothing is deployed"
        app.notify(f"no deployment `{name}`: {known}", severity="warning")
        return
    if app.is_read_only:
        app.notify("this session is read-only: ^x (or :unlock) allows changes for ten minutes", title="RO")
        return
    if view.status is None or view.error is not None:
        app.notify(f"the controller of {view.name}, {view.record.controller}, does not answer", severity="warning")
        return
    status = view.status
    plan = deployed_plan(status)
    serving = plan.serving if plan is not None else Serving()

    def begin(settings: Settings | None) -> None:
        if settings is not None:
            app.push_screen(BenchScreen(status, settings))

    app.push_screen(BenchDialog(status, serving), begin)
