"""Ctrl-C is a press while somebody waits for it, and what it was before afterwards."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from agent.errors import FleetError
from odctl.following import Presses, ctrl_c, until_pressed


async def endless(cleaned: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        cleaned.append("up")


async def failing() -> None:
    raise FleetError("E808", "no answer")


async def test_work_that_ends_is_answered() -> None:
    assert await until_pressed(asyncio.sleep(0, "done"), Presses()) == "done"


async def test_a_failure_comes_out_as_it_is() -> None:
    with pytest.raises(FleetError, match="no answer"):
        await until_pressed(failing(), Presses())


async def test_ctrl_c_ends_the_work_and_it_cleans_up() -> None:
    cleaned: list[str] = []
    with ctrl_c() as presses:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            await until_pressed(endless(cleaned), presses)
    assert (presses.count, cleaned) == (1, ["up"])


async def test_sigterm_is_a_press_where_it_is_asked_to_be() -> None:
    with ctrl_c(and_sigterm=True) as presses:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            await until_pressed(endless([]), presses)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


async def test_a_press_that_was_looked_at_stops_nothing_more() -> None:
    presses = Presses()
    presses.press()
    await presses.get()
    assert await until_pressed(asyncio.sleep(0, "done"), presses) == "done"
    assert presses.count == 1


def test_afterwards_ctrl_c_is_what_it_was() -> None:
    async def visit() -> None:
        before = signal.getsignal(signal.SIGINT)
        with ctrl_c():
            assert signal.getsignal(signal.SIGINT) != before
        assert signal.getsignal(signal.SIGINT) == before

    asyncio.run(visit())
