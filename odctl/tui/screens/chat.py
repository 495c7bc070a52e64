"""A conversation with a deployment: the answer streams in as it is made, and can be stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any, ClassVar

import msgspec
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Input

from agent.errors import FleetError
from agent.wire.agent import DeploymentStatus
from odctl.chat import chat_body, curl_command
from odctl.fleet import FleetSnapshot
from odctl.tui.asking import ask
from odctl.tui.model.chat_summary import chat_summary
from odctl.tui.model.conversation import Conversation, Piece, conversation_lines
from odctl.tui.screens.frame import FrameScreen
from odctl.tui.screens.one_line import OneLineScreen
from odctl.tui.screens.raw_text import RawTextScreen
from odctl.tui.widgets.lines import LinesBar, LinesView

WRITING, IDLE = "ask, and press enter; esc leads out of here", "enter writes a question"


class ChatScreen(FrameScreen):
    """Each deployment has a conversation of its own; an answer goes on while another one is looked at."""

    mode = "chat"
    DEFAULT_CSS = """
    ChatScreen #question { border: none; height: 1; padding: 0 1; background: $panel; }
    ChatScreen #question:focus { border: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "Stop/leave", id="chat.back"),
        # Priority: in the input ^c copies, but while an answer streams it is the hand that stops it.
        Binding("ctrl+c", "stop_answer", "Stop", id="chat.stop", show=False, priority=True),
        Binding("enter,i", "write", "Write", id="chat.write", show=False),
        Binding("n,ctrl+n", "new_conversation", "Clear", id="chat.new"),
        Binding("y,ctrl+y", "copy_answer", "Copy answer", id="chat.copy"),
        Binding("u,ctrl+r", "raw_request", "As curl", id="chat.raw"),
        Binding("s,ctrl+s", "system_prompt", "System…", id="chat.system"),
        Binding("t,ctrl+t", "toggle_thinking", "Thoughts", id="chat.thinking", show=False),
        Binding("less_than_sign", "step(-1)", "Deployment before", key_display="<", id="chat.before", show=False),
        Binding("greater_than_sign", "step(1)", "Next", key_display=">", id="chat.next"),
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
        yield Input(placeholder=IDLE, id="question", compact=True)

    @property
    def conversation(self) -> Conversation:
        return self.conversations.get(self.deployment, Conversation())

    def draw(self, snapshot: FleetSnapshot | None) -> None:
        names = self._names()
        if self.deployment not in names and not self.conversation.turns:
            self.deployment = names[0] if names else ""
        self.query_one("#summary", LinesBar).show(chat_summary(snapshot, self.deployment, width=self.size.width))
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

    def on_descendant_focus(self) -> None:
        question = self.query_one("#question", Input)
        question.placeholder = WRITING if self.focused is question else IDLE

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "stop_answer":
            return self.conversation.is_waiting
        return super().check_action(action, parameters)

    def action_write(self) -> None:
        self.query_one("#question", Input).focus()

    def action_back(self) -> None:
        """Stop the answer that streams; else out of the input, so that single keys work; then one step back."""
        if self.conversation.is_waiting and not self.has_prompt:
            self.action_stop_answer()
        elif self.focused is self.query_one("#question", Input):
            self.focus_body()
        else:
            super().action_back()

    # --- asking ---------------------------------------------------------------------------------------------

    def on_input_submitted(self, event: Input.Submitted) -> None:
        question = event.value.strip()
        if event.input.id == "question" and question and self.ask(question):
            event.input.value = ""

    def ask(self, question: str) -> bool:
        """Send a question, unless something is in the way: that is said, and the answer is False."""
        snapshot = self.odctl.snapshot
        view = snapshot.deployment(self.deployment) if snapshot else None
        if view is None:
            others = ", ".join(self._names())
            way_out = f"> goes on to another one: {others}" if others else "2 Plans previews and applies one"
            self.notify(f"{self.deployment} is not deployed any more; {way_out}", severity="warning")
            return False
        if view.status is None:
            self.notify(f"its controller {view.record.controller} does not answer", severity="warning")
            return False
        if self.conversation.is_waiting:
            self.notify("the answer before is still coming; esc stops it", severity="warning")
            return False
        body = self._body(question)
        deployment, status = self.deployment, view.status
        self._update(deployment, self.conversation.ask(question, now_s=self._steady_clock()))
        self.run_worker(
            self.answer(deployment, status, body), group=_group(deployment), exclusive=True, exit_on_error=True
        )
        return True

    def _body(self, question: str) -> dict[str, Any]:
        conversation = self.conversation
        return chat_body(self.deployment, question, history=conversation.history, system=conversation.system)

    async def answer(self, deployment: str, status: DeploymentStatus, body: dict[str, Any]) -> None:
        """Stream the answer to the last question of this deployment's conversation.

        Whatever ends the stream ends the turn. Once that has ended nothing more is taken: the reader may have
        stopped or cleared it meanwhile.
        """
        asked_at_s = self.conversations[deployment].turns[-1].asked_at_s

        def change(make: Callable[[Conversation], Conversation]) -> None:
            conversation = self.conversations[deployment]
            if conversation.is_waiting and conversation.turns[-1].asked_at_s == asked_at_s:
                self._update(deployment, make(conversation))

        def take(piece: Piece) -> None:
            now_s = self._steady_clock()
            change(lambda conversation: conversation.take(piece, now_s=now_s))

        pieces = self.odctl.feed.stream(lambda fleet: ask(fleet, status, body))
        try:
            async with aclosing(pieces) as found:
                async for piece in found:
                    take(piece)
        except FleetError as error:
            message, hint = error.message, error.hint
            change(lambda conversation: conversation.fail(message, hint))
        change(lambda conversation: conversation.fail("the answer was cut off here", "ask again"))

    def action_stop_answer(self) -> None:
        """At once on the screen; the gateway hears of it as soon as the way there allows."""
        if self.conversation.is_waiting:
            self._update(self.deployment, self.conversation.stop())
        self.workers.cancel_group(self, _group(self.deployment))

    # --- around it ------------------------------------------------------------------------------------------

    def action_new_conversation(self) -> None:
        """Forget the turns; the system prompt stays."""
        self.action_stop_answer()
        self._update(self.deployment, self.conversation.cleared())

    def action_copy_answer(self) -> None:
        answer = self.conversation.last_answer
        if not answer:
            self.notify("there is no answer to copy yet")
            return
        self.app.copy_to_clipboard(answer)
        self.notify(f"{len(answer):,} characters copied, where the terminal takes OSC 52")

    def action_raw_request(self) -> None:
        """The last request as curl, or the one that enter would send now."""
        snapshot = self.odctl.snapshot
        view = snapshot.deployment(self.deployment) if snapshot else None
        if view is None or view.status is None:
            self.notify("where it listens is not known: its controller does not answer", severity="warning")
            return
        typed, turns = self.query_one("#question", Input).value.strip(), self.conversation.turns
        if typed or not turns:
            body, title = self._body(typed or "…"), "The request that enter sends"
        else:
            before = msgspec.structs.replace(self.conversation, turns=turns[:-1])
            body = chat_body(self.deployment, turns[-1].question, history=before.history, system=before.system)
            title = "The last request"
        gateway = snapshot.host(view.status.gateway_host) if snapshot else None
        address = gateway.facts.cluster_address if gateway is not None and gateway.facts is not None else ""
        text = curl_command(body, view.status.listen, host=view.status.gateway_host, address=address)
        self.app.push_screen(RawTextScreen(title=title, text=text))

    def action_system_prompt(self) -> None:
        if not self.deployment:
            return
        deployment = self.deployment

        def take(text: str | None) -> None:
            if text is not None:
                conversation = self.conversations.get(deployment, Conversation())
                self._update(deployment, msgspec.structs.replace(conversation, system=text))

        self.app.push_screen(
            OneLineScreen(
                title=f"What {deployment} is told before everything else",
                text=self.conversation.system,
                hint="enter takes it for the questions from now on, empty is none; esc leaves it as it is",
            ),
            take,
        )

    def action_toggle_thinking(self) -> None:
        shows = not self.conversation.shows_thinking
        self._update(self.deployment, msgspec.structs.replace(self.conversation, shows_thinking=shows))

    def action_step(self, step: int) -> None:
        names = self._names()
        if names:
            index = names.index(self.deployment) if self.deployment in names else -step
            self.choose(names[(index + step) % len(names)])

    def _update(self, deployment: str, conversation: Conversation) -> None:
        self.conversations[deployment] = conversation
        if self.has_parts and self.is_current and deployment == self.deployment:
            self._draw_conversation()

    def _names(self) -> list[str]:
        snapshot = self.odctl.snapshot
        return [view.name for view in snapshot.deployments] if snapshot else []


def _group(deployment: str) -> str:
    """Of workers: an answer of one deployment does not cut off another's."""
    return f"chat {deployment}"
