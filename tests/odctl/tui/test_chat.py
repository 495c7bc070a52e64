"""The chat by its keys: several turns, stopping, copying, the request as curl, and deployments that vanish."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar, cast

import msgspec
import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from agent.errors import FleetError
from odctl.fleet import Fleet, FleetSnapshot
from odctl.tui.app import OdctlApp
from odctl.tui.model.conversation import Piece
from odctl.tui.screens.chat import ChatScreen
from odctl.tui.screens.one_line import OneLineScreen
from odctl.tui.screens.raw_text import RawTextScreen
from tests.odctl.tui import frozen_fleet as frozen
from tests.odctl.tui import live_fleet as live
from tests.odctl.tui.conftest import make_app
from tests.odctl.tui.reading import SIZES, screen_text, settle

T = TypeVar("T")
both_sizes = pytest.mark.parametrize("size", SIZES)


class TalkingFeed(frozen.FrozenFeed):
    """Answers come as the test says them: pieces, an error, or None, which ends the stream without a word."""

    def __init__(self, snapshot: FleetSnapshot) -> None:
        super().__init__(snapshot)
        self.said: asyncio.Queue[Piece | FleetError | None] = asyncio.Queue()
        self.num_closed = 0

    async def stream(
        self,
        work: Callable[[Fleet], AsyncGenerator[T, None]],  # noqa: ARG002 - the Protocol's
    ) -> AsyncGenerator[T, None]:
        try:
            while (item := await self.said.get()) is not None:
                if isinstance(item, FleetError):
                    raise item
                yield cast("T", item)
                if item.is_done:
                    return
        finally:
            self.num_closed += 1

    def say(self, *items: Piece | FleetError | None) -> None:
        for item in items:
            self.said.put_nowait(item)


def answer(text: str, *, thinking: str = "") -> tuple[Piece, ...]:
    thoughts = (Piece(thinking=thinking),) if thinking else ()
    return (*thoughts, Piece(text=text), Piece(is_done=True, num_tokens=7, prompt_tokens=5, done_reason="stop"))


def chat_app(*names: str) -> tuple[OdctlApp, TalkingFeed]:
    feed = TalkingFeed(live.snapshot(*(live.deployment(name) for name in names)))
    return make_app(feed), feed


async def open_chat(pilot: Pilot[None], app: OdctlApp) -> ChatScreen:
    app.action_mode("chat")
    await settle(pilot)
    assert isinstance(app.screen, ChatScreen)
    return app.screen


async def ask(pilot: Pilot[None], text: str) -> None:
    """Type a question and send it; the answer may still be awaited then."""
    screen = pilot.app.screen
    assert isinstance(screen, ChatScreen)
    screen.action_write()
    screen.query_one("#question", Input).value = text
    await pilot.press("enter")
    await pilot.pause()


def is_waiting(screen: ChatScreen) -> bool:
    return screen.conversation.is_waiting


def notices(app: OdctlApp) -> str:
    return "\n".join(notice.message for notice in app._notifications)


@both_sizes
async def test_several_turns_are_told_with_what_each_took(size: tuple[int, int]) -> None:
    app, feed = chat_app("chat")
    async with app.run_test(size=size) as pilot:
        screen = await open_chat(pilot, app)
        feed.say(*answer("Hello there"))
        await ask(pilot, "hi?")
        await settle(pilot)
        feed.say(*answer("Forty-two", thinking="six times nine"))
        await ask(pilot, "and now?")
        await settle(pilot)
        text = screen_text(app)
        for said in ("▸ hi?", "Hello there", "▸ and now?", "~ thought 3 words", "Forty-two", "7 tokens"):
            assert said in text
        assert "prompt 5 tokens" in text
        assert len(screen.conversation.history) == 4
        await pilot.press("escape", "t")
        await settle(pilot)
        assert "~ six times nine" in screen_text(app)


@pytest.mark.parametrize("key", ["escape", "ctrl+c"])
async def test_an_answer_is_stopped_by_hand_and_the_next_one_is_whole(key: str) -> None:
    app, feed = chat_app("chat")
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_chat(pilot, app)
        feed.say(Piece(text="endless "))
        await ask(pilot, "go on")
        await pilot.pause()
        assert is_waiting(screen)
        assert isinstance(screen.focused, Input)
        await pilot.press(key)
        await settle(pilot)
        assert not is_waiting(screen)
        assert feed.num_closed == 1, "the way to the gateway is closed: it frees the slot"
        assert "stopped" in screen_text(app)
        assert isinstance(screen.focused, Input), "stopping is all that the key did"
        feed.say(*answer("short"))
        await ask(pilot, "again")
        await settle(pilot)
        assert screen.conversation.turns[-1].answer == "short"
        assert ("assistant", "endless ") in screen.conversation.history


async def test_pieces_that_come_after_the_end_are_not_taken() -> None:
    """1. Stopped. 2. Cleared, and asked anew at once. 3. What is late of the first answer goes nowhere."""
    app, feed = chat_app("chat")
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_chat(pilot, app)
        feed.say(Piece(text="first "))
        await ask(pilot, "one")
        await pilot.press("ctrl+n")
        assert not [*screen.conversation.turns]
        feed.say(*answer("second"))
        await ask(pilot, "two")
        await settle(pilot)
        assert [(turn.question, turn.answer) for turn in screen.conversation.turns] == [("two", "second")]


async def test_another_deployments_answer_is_not_cut_off() -> None:
    app, feed = chat_app("chat", "code")
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_chat(pilot, app)
        feed.say(Piece(text="from chat "))
        await ask(pilot, "slow one")
        await pilot.pause()
        screen.action_step(1)
        await pilot.pause()
        assert screen.deployment == "code"
        feed.say(Piece(text="on and on"), *answer("done"), *answer("done"))
        await ask(pilot, "other one")
        await settle(pilot)
        assert {name: talk.is_waiting for name, talk in screen.conversations.items()} == {
            "chat": False,
            "code": False,
        }
        assert all(talk.turns[-1].final is not None for talk in screen.conversations.values())


async def test_an_error_keeps_what_came_and_tells_the_way_out() -> None:
    app, feed = chat_app("chat")
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_chat(pilot, app)
        feed.say(Piece(text="half an"), FleetError("E808", "replica 0 lost cpu01", hint="ask again in a moment"))
        await ask(pilot, "hi")
        await settle(pilot)
        text = screen_text(app)
        for said in ("half an", "✗ replica 0 lost cpu01", "→ ask again in a moment", "cut off"):
            assert said in text
        feed.say(None)
        await ask(pilot, "hi again")
        await settle(pilot)
        assert "✗ the answer was cut off here" in screen_text(app)
        assert screen.conversation.history == ()


async def test_a_deployment_that_vanishes_in_mid_answer_leaves_what_was_said() -> None:
    app, feed = chat_app("chat")
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_chat(pilot, app)
        feed.say(Piece(text="so far "))
        await ask(pilot, "hi")
        feed.push(frozen.snapshot(deployments=()))
        feed.say(FleetError("E206", "no agent answers on this host", hint="start it", host="gpu01"))
        await settle(pilot)
        text = screen_text(app)
        for said in ("chat ▲ is not deployed any more", "so far", "✗ no agent answers on this host"):
            assert said in text
        await ask(pilot, "still there?")
        await settle(pilot)
        assert "chat is not deployed any more; 2 Plans" in notices(app)
        assert len(screen.conversation.turns) == 1
        feed.push(live.snapshot(live.deployment("code")))
        await settle(pilot)
        await pilot.press("escape", "greater_than_sign")
        await settle(pilot)
        assert screen.deployment == "code"


@both_sizes
async def test_the_request_is_shown_as_curl_and_copied(size: tuple[int, int]) -> None:
    app, feed = chat_app("chat")
    copied: list[str] = []
    app.copy_to_clipboard = copied.append  # type: ignore[method-assign,assignment]
    async with app.run_test(size=size) as pilot:
        screen = await open_chat(pilot, app)
        screen.conversations["chat"] = msgspec.structs.replace(screen.conversation, system="be brief")
        feed.say(*answer("Hello"))
        await ask(pilot, "hi?")
        await settle(pilot)
        await pilot.press("ctrl+r")
        await settle(pilot)
        assert isinstance(app.screen, RawTextScreen)
        assert "curl -sN http://127.0.0.1:11434/v1/chat/completions" in screen_text(app)
        await pilot.press("y")
        await settle(pilot)
        body = msgspec.json.decode(copied[-1].split("-d '")[1].rstrip("'"))
        sent: list[Any] = [(message["role"], message["content"]) for message in body["messages"]]
        assert sent == [("system", "be brief"), ("user", "hi?")], "as it was sent: without its own answer"
        await pilot.press("escape")
        await settle(pilot)
        screen.query_one("#question", Input).value = "and then?"
        await pilot.press("escape", "u")
        await settle(pilot)
        await pilot.press("y", "escape")
        await settle(pilot)
        assert "and then?" in copied[-1], "what is typed is what enter would send"
        assert '"Hello"' in copied[-1]
        await pilot.press("y")
        await settle(pilot)
        assert copied[-1] == "Hello", "the last answer"


async def test_without_an_answer_there_is_nothing_to_copy() -> None:
    app, _ = chat_app("chat")
    copied: list[str] = []
    app.copy_to_clipboard = copied.append  # type: ignore[method-assign,assignment]
    async with app.run_test(size=(80, 24)) as pilot:
        await open_chat(pilot, app)
        await pilot.press("y")
        await settle(pilot)
        assert "there is no answer to copy yet" in notices(app)
    assert copied == []


@both_sizes
async def test_a_system_prompt_is_set_kept_through_clearing_and_taken_away(size: tuple[int, int]) -> None:
    app, _ = chat_app("chat")
    async with app.run_test(size=size) as pilot:
        screen = await open_chat(pilot, app)
        await pilot.press("s")
        await settle(pilot)
        assert isinstance(app.screen, OneLineScreen)
        await pilot.press(*"brief", "enter")
        await settle(pilot)
        assert "system brief" in screen_text(app)
        await pilot.press("n")
        await settle(pilot)
        assert screen.conversation.system == "brief"
        await pilot.press("s", "x", "escape")
        await settle(pilot)
        assert screen.conversation.system == "brief", "escape leaves it as it is"
        await pilot.press("s", *["backspace"] * 5, "enter")
        await settle(pilot)
        assert screen.conversation.system == ""


async def test_letters_are_letters_while_a_question_is_written() -> None:
    app, _ = chat_app("chat")
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_chat(pilot, app)
        await pilot.press("i", *"nyust:/")
        await settle(pilot)
        assert screen.query_one("#question", Input).value == "nyust:/"
        assert app.screen is screen
