"""A conversation with a deployment: the answer streams in as it is made."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import aclosing
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Input

from agent.errors import FleetError
from agent.wire.agent import DeploymentStatus
from odctl.fleet import FleetSnapshot
from odctl.tui.asking import ask
from odctl.tui.model.conversation import Conversation, conversation_lines
from odctl.tui.model.marks import deployment_mark
from odctl.tui.model.text import Line, Span, line
from odctl.tui.screens.frame import FrameScreen
from odctl.tui.widgets.lines import LinesBar, LinesView


class ChatScreen(FrameScreen):
    mode = "chat"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "Leave the input", id="chat.back"),
        Binding("enter,i", "write", "Write", id="chat.write", show=False),
        Binding("ctrl+n", "new_conversation", "New", id="chat.new"),
        Binding("ctrl+s", "stop_answer", "Stop", id="chat.stop"),
        Binding("less_than_sign", "step(-1)", "Deployment before", key_display="<", id="chat.before", show=False),
        Binding("greater_than_sign", "step(1)", "Next deployment", key_display=">", id="chat.next"),
    ]

    def __init__(self, *, steady_clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.deployment = ""
        self.conversations: dict[str, Conversation] = {}
        self._steady_clock = steady_clock

    def trail(self) -> tuple[str, ...]:
        return ("Chat", self.deployment) if self.deployment else ("Chat",)

    def address(self) -> str:
        return f"chat {self.deployment}".rstrip()

    def compose_body(self) -> ComposeResult:
        yield LinesBar(id="summary")
        page = LinesView(id="page")
        page.follows_end = True
        yield page
        yield Input(placeholder="ask, and press enter", id="question", compact=True)

    @property
    def conversation(self) -> Conversation:
        return self.conversations.get(self.deployment, Conversation())

    def draw(self, snapshot: FleetSnapshot | None) -> None:
        names = [view.name for view in snapshot.deployments] if snapshot else []
        if self.deployment not in names and not self.conversation.turns:
            self.deployment = names[0] if names else ""
        self.query_one("#summary", LinesBar).show([_summary(snapshot, self.deployment)])
        self.query_one("#question", Input).disabled = not self.deployment
        self._draw_conversation()

    def _draw_conversation(self) -> None:
        page = self.query_one("#page", LinesView)
        page.show(conversation_lines(self.conversation, width=page.content_width))

    def choose(self, deployment: str) -> None:
        self.deployment = deployment
        if self.is_current:
            self.redraw()
            self.action_write()

    def focus_body(self) -> None:
        self.query_one("#page", LinesView).focus()

    def action_write(self) -> None:
        self.query_one("#question", Input).focus()

    def action_back(self) -> None:
        """Out of the input first, so that the number keys work again; then one step back."""
        if self.focused is self.query_one("#question", Input):
            self.focus_body()
            return
        super().action_back()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        question = event.value.strip()
        if event.input.id == "question" and question and self.ask(question):
            event.input.value = ""

    def ask(self, question: str) -> bool:
        """Send a question, unless something is in the way: that is said, and the answer is False."""
        status = self._status()
        if status is None:
            self.notify("its controller does not answer", severity="warning")
            return False
        if self.conversation.is_waiting:
            self.notify("the answer before is still coming; ^s stops it", severity="warning")
            return False
        self._update(self.deployment, self.conversation.ask(question, now_s=self._steady_clock()))
        self.answer(self.deployment, status)
        return True

    @work(exclusive=True, group="chat")
    async def answer(self, deployment: str, status: DeploymentStatus) -> None:
        """Stream the answer to the last question of this deployment's conversation."""
        conversation = self.conversations[deployment]
        question, history = conversation.turns[-1].question, conversation.history
        pieces = self.odctl.feed.stream(lambda fleet: ask(fleet, status, question, history))
        try:
            async with aclosing(pieces) as found:
                async for piece in found:
                    now_s = self._steady_clock()
                    self._update(deployment, self.conversations[deployment].take(piece, now_s=now_s))
        except FleetError as error:
            self._update(deployment, self.conversations[deployment].fail(error.message, error.hint))
        finally:
            # Stopped by hand, or ended without a last piece: what came stays, and says that it was cut.
            if self.conversations[deployment].is_waiting:
                self._update(deployment, self.conversations[deployment].fail("the answer was cut off here", ""))

    def action_stop_answer(self) -> None:
        self.workers.cancel_group(self, "chat")

    def action_new_conversation(self) -> None:
        self.action_stop_answer()
        self._update(self.deployment, Conversation())

    def action_step(self, step: int) -> None:
        snapshot = self.odctl.snapshot
        names = [view.name for view in snapshot.deployments] if snapshot else []
        if names:
            index = names.index(self.deployment) if self.deployment in names else 0
            self.choose(names[(index + step) % len(names)])

    def _update(self, deployment: str, conversation: Conversation) -> None:
        self.conversations[deployment] = conversation
        if self.is_mounted and self.is_current and deployment == self.deployment:
            self._draw_conversation()

    def _status(self) -> DeploymentStatus | None:
        snapshot = self.odctl.snapshot
        view = snapshot.deployment(self.deployment) if snapshot else None
        return view.status if view else None


def _summary(snapshot: FleetSnapshot | None, name: str) -> Line:
    view = snapshot.deployment(name) if snapshot else None
    if view is None:
        return line(Span(" nothing is deployed to talk to: 2 Plans previews and applies one", "dim"))
    served = f"  {view.status.gateway_host} {view.status.listen}" if view.status else ""
    return line(" ", Span(name, "bold"), " ", deployment_mark(view).span, Span(served, "dim"))
